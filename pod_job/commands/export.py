"""Writes a run as the pickle files of the extraction document; prints the name of each file once it is written."""

from argparse import ArgumentParser, Namespace

from pod_job.commands.command_line import DONE, Command, add_run_dir

EXAMPLES = ("runs/first activations", "gs://my-bucket/run gs://my-bucket/pickles --layers 6 12")


def add_arguments(parser: ArgumentParser) -> None:
    add_run_dir(parser)
    parser.add_argument("out", metavar="OUT", help="where the pickle files go, a local folder or gs://bucket/prefix")
    parser.add_argument(
        "--save-every-n-samples", type=int, metavar="N", help="activations in a file; by default the run's number"
    )
    parser.add_argument("--layers", type=int, nargs="+", metavar="LAYER", help="by default all that the run has")


def run_export(options: Namespace) -> int:
    from pod_job.interop.pickle_export import export_pickles

    export_pickles(options.run_dir, options.out, print, options.layers, options.save_every_n_samples)
    return DONE


COMMAND = Command("export", __doc__, EXAMPLES, add_arguments, run_export)
main = COMMAND.main
