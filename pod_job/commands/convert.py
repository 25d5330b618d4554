"""`pod-job convert MODEL OUT_DIR`: writes a model's weights as one orbax checkpoint."""

import logging
from argparse import Namespace

from pod_job.checkpoints.convert import convert
from pod_job.commands.command_line import exit_status, make_parser


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    examples = ["Qwen/Qwen2.5-7B gs://my-bucket/models/Qwen2.5-7B", "gs://my-bucket/hf/my-model runs/models/my-model"]
    parser = make_parser("convert", __doc__ or "", examples)
    parser.add_argument("model", metavar="MODEL", help="as model.path: a folder, gs://bucket/folder, or a hub name")
    parser.add_argument("out", metavar="OUT", help="a local folder or gs://bucket/folder")
    parser.add_argument("--revision", help="of the hub's repository")
    options = parser.parse_args(argv)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax finds our chunks small; a slice should cost no more
    return exit_status(lambda: convert_and_tell(options))


def convert_and_tell(options: Namespace) -> int:
    converted = convert(options.model, options.out, options.revision)
    print(f"{converted.folder.url}: {converted.name}, {len(converted.weights)} weights; use it as model.path")
    return 0
