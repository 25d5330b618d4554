"""Runs of real prompts with random vectors, in the format of the job, for tests of commands that show a run."""

import json
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from pod_job.config.load import load, to_json
from pod_job.config.schema import ExtractConfig, JobConfig
from pod_job.finishing.merge import merge
from pod_job.formats import rows_table
from pod_job.planning.batches import batch_samples, total_batches
from pod_job.prompts.tasks import read_tasks
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.prompts.tokens import tokenize
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import Identity, ModelIdentity, TasksIdentity, claim
from pod_job.run_folder.timeline import COUNTERS
from pod_job.run_folder.tokenizer import store_tokenizer
from pod_job.storage.folder import Folder
from tools.tiny_model import write_tiny_model

WIDTH = 32
OUTLIER_DIMENSION = 5
TIME = "2025-01-15T10:30:00+00:00"
SINK = 50.0
"""Factor of the vectors of each prompt's first token."""


def text_run(
    folder: Folder,
    model: Path,
    positions: str = "all",
    taps: Sequence[str] = ("layer_1", "layer_2"),
    skip: Sequence[int] = (),
    mode: str = "prefill",
) -> JobConfig:
    """Writes a run of 12 ARC prompts in batches of 4, without those in `skip`, merged if complete."""
    write_tiny_model(model, layers=3)
    settings = {"mode": mode, "tasks.limit": 12, "extract.save_every_n_samples": 4, "extract.positions": positions}
    settings |= {"model.path": model, "storage.run_dir": folder.url, "extract.seq_len": 512}
    config = load(["tasks=arc_sample", *(f"{key}={value}" for key, value in settings.items())])
    samples = read_tasks(config.tasks).samples
    identity = Identity(
        model=ModelIdentity(name="tiny", family="qwen2", layers=3, hidden_dim=WIDTH, dtype="bfloat16"),
        tasks=TasksIdentity(format="arc", fingerprint="f", samples=len(samples), skipped=0),
        taps=list(taps),
        positions=positions,
        dtype="bfloat16",
        save_every_n_samples=4,
    )
    claim(folder, identity, to_json(config))
    tokenizer = load_tokenizer(model)
    store_tokenizer(folder, tokenizer)
    for number in range(1, total_batches(len(samples), 4) + 1):
        chosen = [samples[i] for i in batch_samples(number, len(samples), 4)]
        if number not in skip:
            commit_batch(folder, _batch(number, tokenizer, chosen, config.extract, taps), host=number % 2)
    _write_timelines(folder)
    if not skip:
        merge(folder)
    return config


def _batch(number: int, tokenizer: object, samples: list, extract: ExtractConfig, taps: Sequence[str]) -> Batch:
    columns: dict[str, list] = {name: [] for name in rows_table.COLUMNS}
    for prompt in tokenize(tokenizer, samples, extract.seq_len, extract.too_long):
        ids = prompt.token_ids.tolist()
        for position in range(len(ids)) if extract.positions.value == "all" else [len(ids) - 1]:
            origin = (prompt.sample.task_id, prompt.sample.sample_idx, position, ids[position])
            for name, value in zip(rows_table.COLUMNS, origin, strict=True):
                columns[name].append(value)
    rng = np.random.default_rng(number)
    first = np.array(columns["position"]) == 0
    vectors = {}
    for depth, tap in enumerate(taps, 1):
        made = rng.standard_normal((len(first), WIDTH)) * depth
        made[:, OUTLIER_DIMENSION] += 20 * depth
        made[first] *= SINK
        vectors[tap] = made.astype(np.float32).astype(ml_dtypes.bfloat16)
    return Batch(number, len(samples), rows_table.from_columns(columns, TIME), vectors)


def _write_timelines(folder: Folder) -> None:
    for host in (0, 1):
        phases = {"checking": 1000.0, "weights": 1010.0, "compiling": 1020.0, "extracting": 1040.0, "done": 1100.0}
        points = [
            [1040.0, *[0] * len(COUNTERS)],
            [1070.0, 3, 1, 300, 400, 300, 5000, 0],
            [1100.0, 6, 2, 600, 800, 600, 9000, 3 * host],
        ]
        record = {"host": host, "attempt": "20250115T103000Z-abcdef", "device": "TPU v5 lite", "devices": 4}
        record |= {"counters": COUNTERS, "phases": phases, "points": points}
        folder.replace(layout.timeline_file(record["attempt"], host), json.dumps(record).encode())
