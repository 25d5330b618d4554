"""What all command lines share: how help looks, how a command ends, and which commands there are.

Exit status of every command: 0 done; 1 it ran and the answer is no, or it failed; 2 bad input, told in one line;
128 + n ended by signal n. docs/commands.md says what 1 means for each.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from pod_job.errors import JobError

DONE, FAILED, BAD_INPUT = 0, 1, 2
RUN_DIR_HELP = "a local folder or gs://bucket/prefix"
PIPED_WIDTH = 160

COMMANDS = {
    "inspect": "show a run, a batch, a tap, or a row with the text around it",
    "report": "one HTML page about a run: norms, outliers, spectra, similarity, speed, cost",
    "verify": "read every file of a run and say what is wrong",
    "diff": "what two runs differ in, key by key",
    "merge": "write metadata.json for what is committed so far",
    "shuffle": "a finished run with its rows in random order, as another run",
    "export": "the pickle files of the extraction document",
    "export_sae_lens": "a tap as the cached activations that SAELens trains on",
    "import_pickles": "a run made of such pickle files",
    "convert": "a model's weights as one orbax checkpoint, of which every host reads its own slices",
    "preflight": "memory, time and cost of a job on a TPU pod, before it is started",
}
"""Of `python -m pod_job.NAME`, in the order of their use."""


def make_parser(name: str, purpose: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of `python -m pod_job.NAME`; each example is what follows that."""
    command = f"python -m pod_job.{name}"
    shown = "\n".join(f"  {command} {example}" for example in examples)
    return argparse.ArgumentParser(
        prog=command,
        description=purpose,
        epilog=f"examples:\n{shown}\n\nexit status: 0 done, 1 no or failed, 2 bad input",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def exit_status(command: Callable[[], int]) -> int:
    """Runs the command; its own status, or that of how it ended."""
    try:
        return command()
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Who read us has seen enough; python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def stdout_console() -> Console:
    """Colours and the terminal's width on a terminal; neither in a pipe or a file."""
    return Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)


def command_list() -> str:
    """For `python -m pod_job --help`."""
    lines = [f"  python -m pod_job.{name:<15} {purpose}" for name, purpose in COMMANDS.items()]
    return "commands on a run, each with --help:\n" + "\n".join(lines)
