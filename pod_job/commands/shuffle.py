"""`pod-job shuffle RUN_DIR OUT_DIR`: writes a finished run with its rows in random order as another run."""

from argparse import Namespace

from pod_job.commands.command_line import RUN_DIR_HELP, exit_status, make_parser
from pod_job.finishing.shuffle import shuffle
from pod_job.progress import progress_bar


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    examples = ["runs/first runs/shuffled", "gs://my-bucket/run gs://my-bucket/shuffled --host 3 --hosts 16"]
    parser = make_parser("shuffle", __doc__ or "", examples)
    parser.add_argument("run_dir", metavar="RUN_DIR", help=f"a finished run: {RUN_DIR_HELP}")
    parser.add_argument("out", metavar="OUT", help="the new run folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--host", type=int, default=0, help="this process, of --hosts that share the work")
    parser.add_argument("--hosts", type=int, default=1)
    options = parser.parse_args(argv)
    return exit_status(lambda: shuffle_and_tell(options))


def shuffle_and_tell(options: Namespace) -> int:
    described = shuffle(
        options.run_dir, options.out, options.seed, host=options.host, hosts=options.hosts, progress=progress_bar
    )
    state = "complete" if described["complete"] else f"{len(described['missing'])} batches to come from other hosts"
    print(f"{described['rows']:,} rows in {described['total_batches']} batches, {state}")
    return 0
