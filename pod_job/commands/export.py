"""`pod-job export RUN_DIR OUT_DIR`: writes a run as the pickle files of the extraction document."""

from pod_job.commands.command_line import RUN_DIR_HELP, exit_status, make_parser
from pod_job.interop.pickle_export import export_pickles


def main(argv: list[str] | None = None) -> int:
    """The command line: the name of each file as it is written."""
    parser = make_parser(
        "export", __doc__ or "", ["runs/first activations", "gs://my-bucket/run gs://my-bucket/pickles"]
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help=RUN_DIR_HELP)
    parser.add_argument("out", metavar="OUT", help="where the pickle files go, a local folder or gs://bucket/prefix")
    parser.add_argument("--layers", type=int, nargs="+", metavar="LAYER", help="by default all that the run has")
    options = parser.parse_args(argv)

    def command() -> int:
        export_pickles(options.run_dir, options.out, print, options.layers)
        return 0

    return exit_status(command)
