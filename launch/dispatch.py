"""From the words after `pod-job` to the verb that takes them; only that verb's module is imported."""

import difflib
import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module

from launch.verb_table import GROUPS, VERBS
from pod_job.commands.command_line import BAD_INPUT, DONE, Command, exit_status
from pod_job.commands.completion import complete, completing
from pod_job.errors import JobError

PURPOSE = "Language-model activations from a TPU pod to one finished, verified dataset."
EXAMPLES = """\
examples:
  pod-job plan experiment=demo
  pod-job run experiment=demo storage.run_dir=runs/first tasks.limit=8
  pod-job watch experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run cloud.zones=us-west4-a
  pod-job status gs://my-bucket/run
  pod-job verify gs://my-bucket/run

`pod-job VERB --help` shows the arguments of a verb.
exit status: 0 done, 1 no or failed, 2 bad input, 128 + n ended by signal n"""


def dispatch(words: Sequence[str]) -> int:
    """Runs `pod-job WORDS`; returns the exit status."""
    if completing():
        complete(completion_parser(os.environ["COMP_LINE"].split()))
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return DONE if words else BAD_INPUT

    def run() -> int:
        command, options = parse(words)
        return command.run(options)

    return exit_status(run)


def parse(words: Sequence[str]) -> tuple[Command, Namespace]:
    """Checks the arguments in `pod-job WORDS` and runs nothing: the documentation's examples go through this.

    Raises:
        JobError: the verb does not exist.
        SystemExit: the verb does not take these arguments; or --help, with status 0.
    """
    verb, *arguments = words
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"write the verb first: {', '.join(VERBS)}"
        raise JobError(f"{verb} is not a verb of pod-job; {fix}")
    command = command_of(verb)
    return command, command.parse(arguments)


def command_of(verb: str) -> Command:
    return import_module(VERBS[verb].module).COMMAND


def help_text() -> str:
    width = max(map(len, VERBS)) + 2
    groups = [
        "\n".join([f"{title}:", *(f"  {name:<{width}}{verb.purpose}" for name, verb in verbs.items())])
        for title, verbs in GROUPS.items()
    ]
    return "\n\n".join(["usage: pod-job VERB [ARGUMENT ...]", PURPOSE, *groups, EXAMPLES])


def completion_parser(line: Sequence[str]) -> ArgumentParser:
    """Returns a parser of whole command lines for argcomplete; only a verb in `line` has its arguments in it."""
    parser = ArgumentParser(prog="pod-job", formatter_class=RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb")
    for name, verb in VERBS.items():
        subparser = verbs.add_parser(name, help=verb.purpose)
        if name in line:
            command_of(name).add_arguments(subparser)
    return parser
