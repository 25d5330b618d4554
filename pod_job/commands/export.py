"""Writes a run as the pickle files of the extraction document, or SAEs in another layout, with `--to`.

Prints the name of each file, or each SAE, once it is written.
"""

from argparse import ArgumentParser, Namespace

from pod_job.commands.command_line import DONE, RUN_DIR_HELP, Command
from pod_job.errors import JobError

EXAMPLES = (
    "runs/first activations",
    "gs://my-bucket/run gs://my-bucket/pickles --layers 6 12",
    "runs/saes dictionaries --to dictionary-learning",
    "runs/transcoders for-circuit-tracer --to circuit-tracer",
)
PICKLE, OF_PICKLES = "pickle", ("layers", "save_every_n_samples")
SAE_LAYOUTS = ("sae-lens", "dictionary-learning", "circuit-tracer")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help=f"a run, or with --to a training run or SAE: {RUN_DIR_HELP}")
    parser.add_argument("out", metavar="OUT", help="where the files go, a local folder or gs://bucket/prefix")
    parser.add_argument("--to", choices=(PICKLE, *SAE_LAYOUTS), default=PICKLE, help="the layout (pickle)")
    parser.add_argument("--sae", nargs="+", default=[], metavar="NAME", help="of SAEs: only these")
    parser.add_argument(
        "--save-every-n-samples", type=int, metavar="N", help="activations in a pickle; by default the run's number"
    )
    parser.add_argument("--layers", type=int, nargs="+", metavar="LAYER", help="of pickles: by default all")


def run_export(options: Namespace) -> int:
    if options.to == PICKLE:
        return run_pickles(options)
    for name in OF_PICKLES:
        if getattr(options, name) is not None:
            raise JobError(f"--{name.replace('_', '-')} is of --to pickle; leave it out with --to {options.to}")
    from pod_job.training.layouts.export import export_saes

    export_saes(options.run_dir, options.out, options.to, options.sae, print)
    return DONE


def run_pickles(options: Namespace) -> int:
    from pod_job.interop.pickle_export import export_pickles
    from pod_job.storage.open import open_folder
    from pod_job.training.layouts.read import sae_names

    if options.sae:
        raise JobError(f"--sae {options.sae[0]} is of SAEs; add --to, one of {', '.join(SAE_LAYOUTS)}")
    if sae_names(open_folder(options.run_dir)):
        raise JobError(f"{options.run_dir}: is a training run; add --to, one of {', '.join(SAE_LAYOUTS)}")
    export_pickles(options.run_dir, options.out, print, options.layers, options.save_every_n_samples)
    return DONE


COMMAND = Command("export", __doc__, EXAMPLES, add_arguments, run_export)
main = COMMAND.main
