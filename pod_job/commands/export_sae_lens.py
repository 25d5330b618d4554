"""`pod-job export-sae-lens RUN_DIR OUT_DIR`: writes a tap as the cached activations that SAELens trains on."""

from collections.abc import Sequence
from pathlib import Path

from pod_job.commands.command_line import RUN_DIR_HELP, exit_status, make_parser
from pod_job.interop.sae_lens import export_sae_lens


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = make_parser("export_sae_lens", __doc__ or "", ["runs/first runs/cached --layer 12 --exclude sink"])
    parser.add_argument("run_dir", metavar="RUN_DIR", help=f"a finished run: {RUN_DIR_HELP}")
    parser.add_argument("out", metavar="OUT", type=Path, help="the new folder, for SAELens' cached_activations_path")
    parser.add_argument("--layer", required=True, help="a layer's number or a tap's name")
    parser.add_argument("--context-size", type=int, default=128, help="rows in one sample, SAELens' context_size")
    parser.add_argument("--hook-name", help="the column; by default TransformerLens' name of the tap")
    parser.add_argument("--exclude", nargs="+", default=(), help="flags of rows to leave out")
    options = parser.parse_args(argv)
    layer = int(options.layer) if options.layer.isdecimal() else options.layer

    def command() -> int:
        dataset_rows = export_sae_lens(
            options.run_dir,
            options.out,
            layer,
            context_size=options.context_size,
            hook_name=options.hook_name,
            exclude=options.exclude,
        )
        print(f"{dataset_rows:,} rows in {options.out}")
        return 0

    return exit_status(command)
