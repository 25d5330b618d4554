"""Evaluation of SAEs on documents: the model runs as it is, with each SAE spliced in, and with zeros in its place.

B rows of a step, S positions, D width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32

from pod_job.checkpoints.checkpoint import Checkpoint, check_checkpoint, fitted, read_checkpoint
from pod_job.checkpoints.load import load_params
from pod_job.checkpoints.locate import find_model
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.extraction.feeding import step_rows
from pod_job.extraction.packing import StepInput
from pod_job.models.arch import read_arch_file
from pod_job.models.decoder import Decoder, Output, Params
from pod_job.models.layer_attention import Tokens
from pod_job.models.mesh import make_mesh, placement, weight_shardings
from pod_job.models.sharding import check_divides
from pod_job.models.taps import Tap, resolve
from pod_job.models.token_facts import TokenFacts
from pod_job.models.weight_table import weight_table
from pod_job.planning.task_index import find_tasks
from pod_job.progress import Progress
from pod_job.prompts.prompt import PromptRules
from pod_job.prompts.tokenizer import TokenizerFolder
from pod_job.training.contexts import Contexts, contexts_of
from pod_job.training.documents import Documents
from pod_job.training.evaluation import Measured, RowInputs, SaeEvaluation, without_sinks
from pod_job.training.saes import TrainedSae


@dataclass(frozen=True)
class EvaluatedModel:
    """The model with the taps of the SAEs, its weights on the mesh, and the documents."""

    config: JobConfig
    model: Decoder
    params: Params
    documents: Documents

    @property
    def mesh(self) -> Mesh:
        assert self.model.placement.mesh is not None
        return self.model.placement.mesh

    def steps(self) -> Iterator[tuple[StepInput, Int32[np.ndarray, "B S"]]]:
        """Yields the documents packed into rows of `extract.seq_len`, and the number of each token's document."""
        extract, rows = self.config.extract, step_rows(self.config, self.mesh).count
        return self.documents.steps(rows, extract.seq_len, extract.prompts_per_row)


@dataclass(frozen=True)
class SaePass:
    """An SAE with the taps that it reads and those that its output replaces, and what is measured of it so far."""

    name: str
    inputs: tuple[Tap, ...]
    targets: tuple[Tap, ...]
    params: dict[str, Array]
    measured: Measured


def open_model(config: JobConfig, saes: Mapping[str, TrainedSae], skip: int, tokens: int) -> EvaluatedModel:
    """Loads the model and opens the documents.

    Raises:
        JobError: the model or the tasks are missing or do not go together, or an SAE is of a tap or a width that the
            model does not have.
    """
    files = find_model(config.model.path, config.model.revision)
    folder = TokenizerFolder(files.directory)
    read = read_arch_file(folder.path / "config.json")
    names = dict.fromkeys(name for sae in saes.values() for name in tap_names(sae))
    taps = resolve([], list(names), read)
    check_widths(saes, {tap.name: tap.width(read) for tap in taps})
    check_divides(weight_table(read), config.mesh, config.sharding)
    checkpoint: Checkpoint = read_checkpoint(files.weights)
    arch, table = fitted(read, checkpoint, head=True)
    check_checkpoint(checkpoint, table)
    samples = find_tasks(config.tasks, arch.vocab).samples
    if skip >= len(samples):
        raise JobError(f"--skip {skip}: tasks.path has {len(samples)} documents; skip fewer")
    documents = Documents(samples, folder.tokenizer, PromptRules.of(config, arch.vocab), skip, tokens)
    mesh, dtype = make_mesh(config.mesh), jnp.dtype(config.model.dtype.value)
    shardings = weight_shardings(mesh, config.sharding, table)
    model = Decoder(arch, taps, dtype, placement(mesh, config.sharding, shardings, config.model.kernels))
    return EvaluatedModel(config, model, load_params(checkpoint, table, dtype, shardings), documents)


def tap_names(sae: TrainedSae) -> list[str]:
    """Returns the taps that the SAE reads, then the one that it writes. JobError where they are not known."""
    origin = sae.origin
    if not origin.taps:
        raise JobError(f"{origin.name}: its files do not say of which tap it is; add --tap, such as --tap layer_12")
    return [*origin.taps, *([origin.target] if origin.target else [])]


def check_widths(saes: Mapping[str, TrainedSae], widths: Mapping[str, int]) -> None:
    """Raises JobError for an SAE whose rows are of another size than those of its taps."""
    for name, sae in saes.items():
        origin, shape = sae.origin, sae.shape
        if missing := [tap for tap in tap_names(sae) if tap not in widths]:
            raise JobError(f"{name}: {missing[0]} is no tap of the model; give the model that it was trained on")
        read = sum(widths[tap] for tap in origin.taps)
        written = widths[origin.target] if origin.target else read
        if (read, written) != (shape.input_width, shape.output_width):
            raise JobError(
                f"{name}: is of width {shape.input_width}, and {'+'.join(origin.taps)} of the model of {read}; give "
                "the model that it was trained on, or another --tap"
            )


class Evaluated(NamedTuple):
    """Measurements of each SAE, and the contexts in which its latents are most active."""

    results: list[SaeEvaluation]
    contexts: dict[str, Contexts]


def evaluate(opened: EvaluatedModel, saes: Mapping[str, TrainedSae], k: int, progress: Progress) -> Evaluated:
    """Returns the evaluation of each SAE, with `k` contexts of each latent.

    Raises:
        JobError: there is no token to measure on.
    """
    by_name = {tap.name: tap for tap in opened.model.taps}
    passes = [
        SaePass(
            name,
            tuple(by_name[tap] for tap in sae.origin.taps),
            tuple(by_name[tap] for tap in ([sae.origin.target] if sae.origin.target else sae.origin.taps)),
            {key: jnp.asarray(values) for key, values in sae.parameters.items()},
            Measured(sae.shape, k),
        )
        for name, sae in saes.items()
    ]
    programs, shifts = Programs(opened), {}
    items: list[StepInput] = []
    expected = -(
        -opened.documents.tokens // (step_rows(opened.config, opened.mesh).count * opened.config.extract.seq_len)
    )
    for item, documents in progress(opened.steps(), expected, "steps"):
        step = Tokens(*(jnp.asarray(array) for array in (item.token_ids, item.positions, item.segment_ids)))
        values, loss = programs.clean(step)
        zeros: dict[tuple[Tap, ...], np.ndarray] = {}
        for one in passes:
            counted = item.counted.astype(bool)
            if opened.config.extract.exclude:
                counted = without_sinks(values, {tap.name for tap in (*one.inputs, *one.targets)}, counted)
            rows, targets = (together(values, taps) for taps in (one.inputs, one.targets))
            shift = shifts.setdefault(one.targets, jnp.mean(targets, axis=0))
            of_rows = (jnp.asarray(counted.reshape(-1)), jnp.asarray(documents.reshape(-1)))
            inputs = RowInputs(rows, targets, *of_rows, shift)
            output = one.measured.add_rows(one.params, inputs, len(items) * item.token_ids.size)
            if one.targets not in zeros:
                none = {tap: jnp.zeros_like(values[tap.name]) for tap in one.targets}
                zeros[one.targets] = programs.spliced(step, none)
            spliced = programs.spliced(step, replacement(one.targets, values, output, counted))
            one.measured.add_losses([loss, spliced, zeros[one.targets]], counted)
        items.append(item)
    if not items or not passes[0].measured.loss_sums[3]:
        raise JobError("tasks.path has no token to evaluate on; give longer documents, or a smaller --skip")
    tokens, segments = (np.stack([getattr(item, name) for item in items]) for name in ("token_ids", "segment_ids"))
    contexts = {one.name: contexts_of(one.measured.top_rows, tokens, segments) for one in passes} if k else {}
    return Evaluated([one.measured.result(one.name) for one in passes], contexts)


def together(values: Mapping[str, Float[Array, "B S _"]], taps: Sequence[Tap]) -> Float[Array, "N width"]:
    """Returns the vectors of some taps side by side in float32, a row for each token."""
    joined_taps = jnp.concatenate([values[tap.name].astype(jnp.float32) for tap in taps], axis=-1)
    return joined_taps.reshape(-1, joined_taps.shape[-1])


def replacement(
    taps: Sequence[Tap],
    values: Mapping[str, Float[Array, "B S _"]],
    output: Float[Array, "N width"],
    counted: np.ndarray,
) -> dict[Tap, Float[Array, "B S _"]]:
    """Returns the SAE's output at the tokens that count, and the model's own values at the others."""
    parts = jnp.split(output.reshape(*counted.shape, -1), len(taps), axis=-1)
    return {
        tap: jnp.where(jnp.asarray(counted)[..., None], part, values[tap.name].astype(jnp.float32))
        for tap, part in zip(taps, parts, strict=True)
    }


class Programs:
    """The compiled forward passes: with the values at the taps, and with values in the place of some."""

    def __init__(self, opened: EvaluatedModel) -> None:
        self.params, model = opened.params, opened.model

        @jax.jit
        def clean(params: Params, step: Tokens) -> tuple[dict[str, Array], Array]:
            scored = model.apply(
                params, step.ids, positions=step.positions, segment_ids=step.segment_ids, method="score"
            )
            output, facts = cast(tuple[Output, TokenFacts], scored)
            return output.activations, facts.logprob

        def spliced(params: Params, step: Tokens, taps: tuple[Tap, ...], values: tuple[Array, ...]) -> Array:
            replaced = dict(zip(taps, values, strict=True))
            return cast(TokenFacts, model.apply(params, step, replaced, method="score_spliced")).logprob

        self._clean, self._spliced = clean, jax.jit(spliced, static_argnums=2)

    def clean(self, step: Tokens) -> tuple[dict[str, Array], np.ndarray]:
        """Returns the values at all taps, and the loss of each token."""
        values, logprob = self._clean(self.params, step)
        return values, -np.asarray(logprob)

    def spliced(self, step: Tokens, replaced: Mapping[Tap, Array]) -> np.ndarray:
        """Returns the loss of each token with `replaced` in place of the values there."""
        return -np.asarray(self._spliced(self.params, step, tuple(replaced), tuple(replaced.values())))
