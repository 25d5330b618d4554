"""Computes the vectors of the parity gate's prompts by Hugging Face's model, and stores them in the run folder.

`run` and `watch` start it where torch is installed; people need not.
"""

from argparse import ArgumentParser, Namespace

from pod_job.commands.command_line import DONE, Command, add_overrides

EXAMPLES = ("experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run",)


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)


def send_reference(options: Namespace) -> int:
    from pod_job.checking.shipping import ship_reference
    from pod_job.config.load import load
    from pod_job.planning.inputs import read_inputs
    from pod_job.planning.task_index import ESTIMATED

    print(ship_reference(read_inputs(load(options.overrides), reading=ESTIMATED)))
    return DONE


COMMAND = Command("send-reference", __doc__, EXAMPLES, add_arguments, send_reference)
main = COMMAND.main
