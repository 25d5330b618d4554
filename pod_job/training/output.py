"""SAEs of a training run in its folder: each in SAELens' layout below saes/, then the record that all are there."""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from pod_job import __version__
from pod_job.formats.records import encode, now
from pod_job.planning.identity import package_versions
from pod_job.planning.training import TrainInputs
from pod_job.run_folder.layout import SAES, SAES_METADATA
from pod_job.run_folder.train_identity import SaeRecord
from pod_job.run_folder.training import LostSae, SaeMetrics, TrainedEntry, TrainingMetadata, read_metrics
from pod_job.training.group import GroupState
from pod_job.training.layouts.sae_lens import write_sae
from pod_job.training.plans import plan_of
from pod_job.training.saes import SaeOrigin, TrainedSae, folded
from pod_job.training.trainer import Trainer, TrainerState

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers", "tokenizers")
"""Packages that trained weights may depend on."""
NOT_MEASURED = SaeMetrics(loss=float("nan"), l0=float("nan"), explained_variance=float("nan"), dead=float("nan"))

log = logging.getLogger("pod_job")


def write_saes(inputs: TrainInputs, trainer: Trainer, state: TrainerState, seconds: float) -> None:
    """Writes every SAE and saes/metadata.json, on host 0; every host must call it."""
    metrics, written = read_metrics(inputs.folder), now()
    last = metrics.points[-1].saes if metrics is not None and metrics.points else []
    lost, records = [], {sae.name: sae for sae in inputs.train.saes}
    entries: dict[str, TrainedEntry] = {}
    for name, group, number in members(trainer, state):
        member = one_of(group, number, trainer)
        if (frozen_at := int(member.frozen_at)) >= 0:
            lost.append(LostSae(name, frozen_at))
        measured = dict(zip(metrics.names, last, strict=True)).get(name) if metrics is not None and last else None
        if jax.process_index() == 0:
            sae = trained_sae(inputs, records[name], member, written)
            files = write_sae(inputs.folder, f"{SAES}{name}/", sae)
            entries[name] = TrainedEntry(records[name], f"{name}/", measured or NOT_MEASURED, files)
            log.info("%s is written", name)
    if jax.process_index() == 0:
        described = TrainingMetadata(
            format=1,
            complete=True,
            saes=[entries[sae.name] for sae in inputs.train.saes],
            steps=inputs.train.steps,
            rows=inputs.train.rows,
            seconds=round(seconds, 3),
            provenance=inputs.identity,
            pod_job_version=__version__,
            packages=versions(),
            written=written,
            lost=lost,
        )
        inputs.folder.replace(SAES_METADATA, encode(described, indent=1))


def members(trainer: Trainer, state: TrainerState) -> Iterator[tuple[str, GroupState, int]]:
    """Yields the name of each SAE, the state of its group, and its place in the group."""
    for group, members_state in zip(trainer.groups, state.groups, strict=True):
        for number, plan in enumerate(group.plans):
            yield plan.name, members_state, number


class Member(NamedTuple):
    """State of one SAE of a group in arrays of NumPy, with the fields of GroupState."""

    params: Any
    scales: Any
    frozen_at: Any


def one_of(group: GroupState, number: int, trainer: Trainer) -> Member:
    """Returns one SAE of a group; every host must call it."""
    everywhere = NamedSharding(trainer.mesh, PartitionSpec())
    wanted = Member(group.params, group.scales, group.frozen_at)
    chosen = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[number], tree), out_shardings=everywhere)(wanted)
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), chosen)


def trained_sae(inputs: TrainInputs, sae: SaeRecord, member: Member, written: str) -> TrainedSae:
    """Returns the SAE for rows that are not scaled."""
    shape, scales, identity = plan_of(sae).shape, member.scales, inputs.identity
    uniform = {name: float(values[0]) for name, values in scales._asdict().items() if (values == values[0]).all()}
    origin = SaeOrigin(
        name=sae.name,
        model=identity.model.name,
        taps=tuple(sae.taps),
        target=sae.target,
        identity=identity,
        input_scale=uniform.get("inputs"),
        target_scale=uniform.get("targets"),
        rows=inputs.train.rows,
        steps=inputs.train.steps,
        data=inputs.config.tasks.path if inputs.stream and isinstance(inputs.config.tasks.path, str) else None,
        context_size=identity.seq_len,
        versions=versions(),
        created=written,
    )
    return TrainedSae(shape, folded(shape, member.params, scales.inputs, scales.targets), origin)


def versions() -> dict[str, str]:
    """Returns the versions of PACKAGES that are installed, and of this one."""
    return {"pod_job": __version__, **package_versions(PACKAGES)}
