"""Makes a run of pickle files in the layout of the extraction document, or of shards (`shard_0001.pkl.gz`)."""

from argparse import ArgumentParser, Namespace

from pod_job.commands.command_line import DONE, Command
from pod_job.interop.pickle_import import FLOATS, import_pickles

EXAMPLES = ("activations runs/imported", "activations gs://my-bucket/run --dtype bfloat16")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "pickles", metavar="PICKLES", help="the folder with metadata.json and the pickle files, or with shards"
    )
    parser.add_argument("out", metavar="OUT", help="the new run, a local folder or gs://bucket/prefix")
    parser.add_argument("--dtype", default="float32", help=f"of the stored vectors: {', '.join(FLOATS)}")


def run_import(options: Namespace) -> int:
    described = import_pickles(options.pickles, options.out, options.dtype)
    print(f"{described.rows:,} rows in {described.total_batches} batches")
    return DONE


COMMAND = Command("import", __doc__, EXAMPLES, add_arguments, run_import)
main = COMMAND.main
