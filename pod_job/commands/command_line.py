"""A command of `pod-job`: its arguments, its help, and how it ends.

Exit status of every command: 0 done; 1 it ran and the answer is no, or it failed; 2 bad input, told in one line;
128 + n ended by signal n. docs/commands.md says what 1 means for each.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from pod_job.commands.completion import offer, override_words
from pod_job.errors import JobError, Stopped
from pod_job.terminal import error_line, escaped_output

if TYPE_CHECKING:
    from pod_job.checking.consent import Consent

DONE, FAILED, BAD_INPUT = 0, 1, 2
RUN_DIR_HELP = "a local folder or gs://bucket/prefix"


class Parser(ArgumentParser):
    """An argument parser that refuses in one line, as everything here does."""

    def error(self, message: str) -> NoReturn:
        message = message.replace(", OVERRIDE", "")  # which argparse counts among the required ones beside RUN_DIR
        self.exit(BAD_INPUT, f"error: {message}; see {self.prog} --help\n")


@dataclass(frozen=True)
class Command:
    """A verb of `pod-job`, which its own module defines as `COMMAND`.

    Attributes:
        name: the verb as people type it.
        description: the text of its help below the usage.
        examples: arguments that may follow the verb.
        add_arguments: adds its arguments to a parser.
        run: takes the parsed arguments, returns the exit status.
        failure: the meaning of exit status 1.
    """

    name: str
    description: str | None
    examples: Sequence[str]
    add_arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    failure: str = "failed"

    def parser(self) -> Parser:
        """Returns the parser of `pod-job NAME`."""
        prog = f"pod-job {self.name}"
        examples = "\n".join(f"  {prog} {example}".rstrip() for example in self.examples)
        parser = Parser(
            prog=prog,
            description=self.description,
            epilog=f"examples:\n{examples}\n\nexit status: 0 done, 1 {self.failure}, 2 bad input",
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_arguments(parser)
        return parser

    def parse(self, argv: Sequence[str] | None = None) -> Namespace:
        """Returns the parsed arguments; options may stand between positionals. SystemExit 2 for an unknown option."""
        return self.parser().parse_intermixed_args(argv)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Parses the arguments and runs the command; returns the exit status."""
        return exit_status(lambda: self.run(self.parse(argv)))


def exit_status(command: Callable[[], int]) -> int:
    """Runs the command with its output escaped; returns its own status, or the one of how it ended."""
    with escaped_output():
        return _exit_status(command)


def _exit_status(command: Callable[[], int]) -> int:
    try:
        status = command()
        print(end="", flush=True)  # while a full disk can still be told
        return status
    except JobError as error:
        return refusal(error)
    except Stopped as stopped:
        print(f"stopped by {stopped}; the same command again finishes what is missing", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader has seen enough
        drop_output()
        return 128 + signal.SIGPIPE


def refusal(error: JobError) -> int:
    """Prints the error in one line, wherever that can be; returns the exit status."""
    try:
        print(end="", flush=True)
    except (JobError, BrokenPipeError):
        drop_output()
    with contextlib.suppress(JobError, BrokenPipeError):
        print(f"error: {error_line(error)}", file=sys.stderr, flush=True)
    return BAD_INPUT


def drop_output() -> None:
    """Sends stdout nowhere: Python would complain again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def add_run_dir(parser: ArgumentParser, kind: str = "") -> None:
    """Adds the argument RUN_DIR; `kind`: which runs are accepted."""
    parser.add_argument("run_dir", metavar="RUN_DIR", help=f"{kind}: {RUN_DIR_HELP}" if kind else RUN_DIR_HELP)


def add_overrides(
    parser: ArgumentParser, purpose: str = "key=value, as Hydra reads it", metavar: str = "OVERRIDE"
) -> None:
    """Adds overrides of the configuration, any number of them."""
    offer(parser.add_argument("overrides", nargs="*", metavar=metavar, help=purpose), override_words)


def add_inputs(parser: ArgumentParser) -> None:
    """Adds the words by which inputs of a run are opened: what a run folder names is opened only with consent."""
    add_overrides(parser, "the run's inputs, wherever they are: model.path=... tasks.path=...")
    parser.add_argument(
        "--follow-recorded", action="store_true", help="open the model and the tasks that the run folder names"
    )


def consent_of(options: Namespace, used_by: str | None = None) -> Consent:
    """Returns which inputs of the run may be opened.

    Args:
        used_by: the option that would read them, where it is not given.
    Raises:
        JobError: a word that is not key=value of the configuration, or any where no option that reads the inputs is
            given.
    """
    from pod_job.checking.consent import Consent  # Hydra, which --help does not need
    from pod_job.config.load import check_fields

    words = [*options.overrides, *(["--follow-recorded"] if options.follow_recorded else [])]
    for word in options.overrides:
        if "=" not in word:
            raise JobError(f"{word} is not key=value; give one RUN_DIR, and overrides such as model.path=...")
    check_fields(options.overrides)
    if words and used_by:
        raise JobError(f"{words[0]} is read with {used_by} only; leave it out, or add {used_by}")
    return Consent(options.overrides, options.follow_recorded)


def add_json(parser: ArgumentParser, content: str = "the result") -> None:
    """Adds the option --json."""
    parser.add_argument("--json", action="store_true", help=f"{content} as JSON on stdout")
