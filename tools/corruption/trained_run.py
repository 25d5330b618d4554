"""A finished training of the corpus, written without training: every file that one leaves, with random SAEs."""

import dataclasses

import msgspec

from pod_job.config.train import Architecture, SaeGrid, TrainConfig
from pod_job.formats.records import encode
from pod_job.planning.training_schedule import train_identity
from pod_job.run_folder import layout
from pod_job.run_folder.identity import Identity, claim, read_run
from pod_job.run_folder.metadata import read_any
from pod_job.run_folder.train_identity import SaeRecord
from pod_job.run_folder.training import (
    MetricsPoint,
    MetricsRecord,
    SaeMetrics,
    TrainedEntry,
    TrainingMetadata,
    write_metrics,
)
from pod_job.storage.folder import Folder
from pod_job.training.evaluation import DENSITY_EDGES, CrossEntropy, EvaluationRecord, SaeEvaluation
from pod_job.training.layouts.sae_lens import write_sae
from tools.fuzz.sae_targets import random_sae

TAP, LATENTS, STEPS, TIME = "layer_0", 8, 6, "2026-11-27"
METRICS = SaeMetrics(loss=1.0, l0=2.0, explained_variance=0.5, dead=0.1)


def write_trained(source: Folder, folder: Folder) -> None:
    """Writes a training on the rows of a run: its identity, curves, SAEs, evaluation, and the record that ends it."""
    described, record = read_any(source), read_run(source)
    config = TrainConfig(saes=[SaeGrid(tap=TAP, latents=LATENTS, k=2)])
    what = msgspec.structs.replace(record.identity, train=train_identity(config, described.widths, STEPS))
    assert what.train is not None
    [sae] = what.train.saes
    claim(folder, what, record.config or {})
    points = [MetricsPoint(step, 16 * step, float(step), [METRICS]) for step in range(1, STEPS + 1)]
    write_metrics(folder, MetricsRecord(1, [sae.name], points))
    entry = write_one(folder, sae, what, described.widths[TAP])
    numbers = dict.fromkeys(("l0", "mse", "explained_variance", "cosine", "dead", "recovered"), 0.5)
    of_rows = {"rows": 60, "latents": LATENTS, "densities": [1] * len(DENSITY_EDGES)}
    measured = SaeEvaluation(name=sae.name, cross_entropy=CrossEntropy(9, 1.0, 1.5, 2.0), **of_rows, **numbers)
    texts = {"model": "model", "documents": "tasks.jsonl", "dtype": "float32", "measured": TIME}
    evaluation = EvaluationRecord(format=1, saes=[measured], skipped=0, seq_len=32, versions={}, **texts)
    folder.replace(layout.EVALUATION, encode(evaluation))
    numbers = {"steps": STEPS, "rows": 16 * STEPS, "seconds": float(STEPS)}
    ended = {"complete": True, "packages": {}, "pod_job_version": "0.2.0", "written": TIME}
    metadata = TrainingMetadata(format=1, saes=[entry], provenance=what, **numbers, **ended)
    folder.replace(layout.SAES_METADATA, encode(metadata))


def write_one(folder: Folder, sae: SaeRecord, identity: Identity, width: int) -> TrainedEntry:
    """Writes random parameters as those of an SAE; returns its entry."""
    trained = random_sae(Architecture.batch_topk, width=width)
    origin = msgspec.structs.replace(trained.origin, name=sae.name, taps=(TAP,), identity=identity)
    files = write_sae(folder, layout.sae_prefix(sae.name), dataclasses.replace(trained, origin=origin))
    return TrainedEntry(sae, f"{sae.name}/", METRICS, files)
