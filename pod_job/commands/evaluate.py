"""Measures SAEs on documents: L0, explained variance, dead latents, and the model's loss with each SAE spliced in.

SAE is a training run, or a folder in the layout of SAELens, dictionary_learning, circuit-tracer or Gemma Scope. In a
training run the results and the latents' top contexts are kept, and `pod-job report` shows them.
"""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from pod_job.commands.command_line import DONE, RUN_DIR_HELP, Command, add_json, add_overrides
from pod_job.errors import at_least
from pod_job.formats.records import encode, now
from pod_job.progress import progress_bar
from pod_job.terminal import one_line

if TYPE_CHECKING:
    from pod_job.training.evaluation import EvaluationRecord

EXAMPLES = (
    "runs/saes model.path=Qwen/Qwen2.5-0.5B tasks.path=held-out.jsonl",
    "gemma-scope/average_l0_71 --tap layer_20 model.path=google/gemma-2-2b tasks.path=held-out.jsonl --json",
)
DEFAULTS = (
    "storage.run_dir=unused",  # nothing is written there
    "extract.positions=all",
    "extract.exclude=[special]",
    "extract.too_long=split",
)
SEQ_LEN = 512
"""Tokens of a context, where the SAE does not say on how many it was trained."""
MOST_CONTEXT = 1 << 20
"""Tokens of a context at most; an SAE whose files name more does not say it."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("path", metavar="SAE", help=f"a training run, or the folder of an SAE: {RUN_DIR_HELP}")
    add_overrides(parser, "model and documents: model.path=... tasks.path=... extract.seq_len=... model.dtype=float32")
    parser.add_argument("--sae", nargs="+", default=[], metavar="NAME", help="only these SAEs of the folder")
    parser.add_argument("--tap", help="the tap that the SAE reads, where its files do not say: layer_12")
    parser.add_argument("--target", metavar="TAP", help="the tap that it writes, of a transcoder: layer_12.mlp_out")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="documents that are passed over first (0)")
    parser.add_argument("--tokens", type=int, default=131072, metavar="N", help="tokens of the documents (131072)")
    parser.add_argument("--contexts", type=int, default=6, metavar="K", help="top contexts of each latent (6)")
    add_json(parser, "the results")


def run_evaluate(options: Namespace) -> int:
    for name, least in (("skip", 0), ("tokens", 1), ("contexts", 0)):
        at_least(f"--{name}", getattr(options, name), least)
    from pod_job.host.tpu_slice import devices_here

    of_machine = devices_here()  # before anything imports jax
    from pod_job.config.load import load  # Hydra and jax, which --help does not need
    from pod_job.planning.identity import package_versions
    from pod_job.run_folder import layout
    from pod_job.run_folder.start import shared_name
    from pod_job.storage.open import open_folder
    from pod_job.training.contexts import write_contexts
    from pod_job.training.evaluation import EvaluationRecord
    from pod_job.training.held_out import evaluate, open_model
    from pod_job.training.layouts.read import read_saes, sae_names
    from pod_job.training.saes import at_taps

    saes = {
        name: at_taps(sae, options.tap, options.target) for name, sae in read_saes(options.path, options.sae).items()
    }
    stated = [sae.origin.context_size or 0 for sae in saes.values()]
    sizes = [size for size in stated if 0 < size <= MOST_CONTEXT]
    of_saes = f"extract.seq_len={max(sizes, default=SEQ_LEN)}"
    config = load([*DEFAULTS, *of_machine, of_saes, *options.overrides])
    opened = open_model(config, saes, options.skip, options.tokens)
    folder = open_folder(options.path)
    keeps = bool(sae_names(folder))
    measured = evaluate(opened, saes, options.contexts if keeps else 0, progress_bar)
    record = EvaluationRecord(
        format=1,
        model=shared_name(config.model.path),
        documents=", ".join(shared_name(path) for path in config.tasks.paths),
        skipped=options.skip,
        seq_len=config.extract.seq_len,
        dtype=config.model.dtype.value,
        saes=measured.results,
        versions=package_versions(),
        measured=now(),
    )
    if keeps:
        for name, contexts in measured.contexts.items():
            write_contexts(folder, name, contexts)
        folder.replace(layout.EVALUATION, encode(record, indent=1))
    print(encode(record, indent=1).decode() if options.json else "\n".join(lines(record)))
    return DONE


def lines(record: "EvaluationRecord") -> list[str]:
    """Returns the results as lines for people."""
    text = [f"{record.documents}, {record.seq_len} tokens each at most, {record.dtype}"]
    for sae in record.saes:
        loss = sae.cross_entropy
        text += [
            f"{sae.name}: L0 {sae.l0:.1f}, explained variance {sae.explained_variance:.4f}, cosine {sae.cosine:.4f}, "
            f"dead {sae.dead:.2%} of {sae.latents:,} latents on {sae.rows:,} rows",
            f"  loss {loss.model:.4f}, with the SAE {loss.spliced:.4f}, with zeros {loss.zeros:.4f}: "
            f"{sae.recovered:.2%} recovered",
        ]
    return [one_line(line) for line in text]


COMMAND = Command("evaluate", __doc__, EXAMPLES, add_arguments, run_evaluate)
main = COMMAND.main
