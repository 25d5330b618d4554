"""Writes a finished run with its rows in random order as another run."""

from argparse import ArgumentParser, Namespace

from pod_job.commands.command_line import DONE, Command, add_run_dir
from pod_job.finishing.shuffle import shuffle
from pod_job.progress import progress_bar

EXAMPLES = ("runs/first runs/shuffled", "gs://my-bucket/run gs://my-bucket/shuffled --host 3 --hosts 16")


def add_arguments(parser: ArgumentParser) -> None:
    add_run_dir(parser, "a finished run")
    parser.add_argument("out", metavar="OUT", help="the new run folder")
    parser.add_argument("--seed", type=int, default=0, help="chooses the order (0)")
    parser.add_argument("--host", type=int, default=0, help="index of this process among --hosts (0)")
    parser.add_argument("--hosts", type=int, default=1, help="processes that share the work (1)")


def run_shuffle(options: Namespace) -> int:
    described = shuffle(
        options.run_dir, options.out, options.seed, shard=(options.host, options.hosts), progress=progress_bar
    )
    state = "complete" if described.complete else f"{len(described.missing)} batches to come from other hosts"
    print(f"{described.rows:,} rows in {described.total_batches} batches, {state}")
    return DONE


COMMAND = Command("shuffle", __doc__, EXAMPLES, add_arguments, run_shuffle)
main = COMMAND.main
