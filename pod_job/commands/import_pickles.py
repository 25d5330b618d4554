"""`pod-job import-pickles PICKLES OUT_DIR`: makes a run of pickle files."""

from pod_job.commands.command_line import exit_status, make_parser
from pod_job.interop.pickle_import import FLOATS, import_pickles


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = make_parser(
        "import_pickles", __doc__ or "", ["activations runs/imported", "activations gs://my-bucket/run"]
    )
    parser.add_argument("pickles", metavar="PICKLES", help="the folder with metadata.json and the pickle files")
    parser.add_argument("out", metavar="OUT", help="the new run, a local folder or gs://bucket/prefix")
    parser.add_argument("--dtype", default="float32", help=f"of the stored vectors: {', '.join(FLOATS)}")
    options = parser.parse_args(argv)

    def command() -> int:
        described = import_pickles(options.pickles, options.out, options.dtype)
        print(f"{described['rows']:,} rows in {described['total_batches']} batches")
        return 0

    return exit_status(command)
