"""Writes a tap as the cached activations that SAELens trains on."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from pod_job.commands.command_line import DONE, Command, add_run_dir

EXAMPLES = ("runs/first runs/cached --layer 12", "runs/first runs/cached --layer layer_12.attn_out --exclude sink")


def add_arguments(parser: ArgumentParser) -> None:
    add_run_dir(parser, "a finished run")
    parser.add_argument("out", metavar="OUT", type=Path, help="the new folder, for SAELens' cached_activations_path")
    parser.add_argument("--layer", required=True, help="a layer's number or a tap's name")
    parser.add_argument("--context-size", type=int, default=128, help="rows in one sample, SAELens' context_size")
    parser.add_argument("--hook-name", help="the column; by default TransformerLens' name of the tap")
    parser.add_argument("--exclude", nargs="+", default=(), help="flags of rows to leave out")


def run_export_sae_lens(options: Namespace) -> int:
    from pod_job.interop.sae_lens import export_sae_lens

    dataset_rows = export_sae_lens(
        options.run_dir,
        options.out,
        int(options.layer) if options.layer.isdecimal() else options.layer,
        context_size=options.context_size,
        hook_name=options.hook_name,
        exclude=options.exclude,
    )
    print(f"{dataset_rows:,} rows in {options.out}")
    return DONE


COMMAND = Command("export-sae-lens", __doc__, EXAMPLES, add_arguments, run_export_sae_lens)
main = COMMAND.main
