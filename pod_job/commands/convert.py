"""Writes a model's weights as one orbax checkpoint, of which every host reads its own slices."""

import logging
from argparse import ArgumentParser, Namespace

from pod_job.commands.command_line import DONE, Command

EXAMPLES = (
    "Qwen/Qwen2.5-7B gs://my-bucket/models/Qwen2.5-7B",
    "gs://my-bucket/hf/my-model runs/models/my-model",
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="as model.path: a folder, gs://bucket/folder, or a hub name")
    parser.add_argument("out", metavar="OUT", help="a local folder or gs://bucket/folder")
    parser.add_argument("--revision", help="of the hub's repository")


def run_convert(options: Namespace) -> int:
    from pod_job.checkpoints.convert import convert  # jax, which --help does not need

    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax finds our chunks small; a slice should cost no more
    converted = convert(options.model, options.out, options.revision)
    manifest = converted.manifest
    print(f"{converted.folder.url}: {manifest.name}, {len(manifest.weights)} weights; use it as model.path")
    return DONE


COMMAND = Command("convert", __doc__, EXAMPLES, add_arguments, run_convert)
main = COMMAND.main
