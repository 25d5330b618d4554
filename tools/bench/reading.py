"""Shuffled batches per second, ours beside SAELens, Hugging Face datasets and a plain memory map.

`python -m tools.bench.reading FOLDER ROUNDS`. The same vectors for all, from the page cache; one epoch each, in turn.
"""

import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import ml_dtypes
import numpy as np
import torch
from sae_lens.training.activations_store import ActivationsStore

from pod_job.finishing.merge import merge
from pod_job.formats import rows_table
from pod_job.interop.sae_lens import export_sae_lens
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import claim
from pod_job.storage.open import open_folder

WIDTH, BATCH, CONTEXT = 576, 4096, 128
BATCHES, ROWS = 12, 8192
TOTAL = BATCHES * ROWS
HOOK = "blocks.12.hook_resid_post"


def write_run(folder: Path) -> None:
    """A finished run of random vectors with one tap."""
    run = open_folder(folder)
    model = {"name": "random", "family": "llama", "layers": 30, "hidden_dim": WIDTH, "weights_fingerprint": "w"}
    tasks = {"fingerprint": "f", "samples": BATCHES}
    settings = {"positions": "all", "dtype": "bfloat16", "seq_len": ROWS, "save_every_n_samples": 1}
    claim(run, {"model": model, "tokenizer": "t", "tasks": tasks, "taps": ["layer_12"], **settings})
    rng = np.random.default_rng(0)
    for number in range(1, BATCHES + 1):
        numbers = np.arange(ROWS)
        columns = {"task_id": ["task"] * ROWS, "sample_idx": numbers, "position": numbers, "token_id": numbers}
        vectors = rng.standard_normal((ROWS, WIDTH), dtype=np.float32).astype(ml_dtypes.bfloat16)
        commit_batch(
            run, Batch(number, 1, rows_table.from_columns(columns, "2026-01-01"), {"layer_12": vectors}), host=0
        )
    merge(run)


def ours(folder: Path) -> Iterator[torch.Tensor]:
    return ActivationDataset(folder / "run", 12).batches(BATCH, seed=0, as_="torch", drop_last=True)


def memory_map(folder: Path) -> Iterator[torch.Tensor]:
    """numpy.memmap of one file, a permutation, a gather for each batch."""
    vectors = np.memmap(folder / "flat.bin", np.int16, "r").reshape(TOTAL, WIDTH)
    order = np.random.default_rng(0).permutation(TOTAL)
    for start in range(0, TOTAL // BATCH * BATCH, BATCH):
        yield torch.from_numpy(vectors[order[start : start + BATCH]]).view(torch.bfloat16)


def hf_datasets(folder: Path) -> Iterator[torch.Tensor]:
    """Rows of float16, which it has in place of bfloat16, through a shuffled index."""
    dataset = datasets.load_from_disk(str(folder / "datasets")).shuffle(seed=0).with_format("torch")
    for batch in dataset.iter(BATCH, drop_last_batch=True):
        yield batch["vector"]


def sae_lens(folder: Path) -> Iterator[torch.Tensor]:
    """ActivationsStore on cached activations, with its mixing buffer of half the default size."""
    store = ActivationsStore(
        model=None,
        dataset=None,
        cached_activations_path=str(folder / "cached"),
        streaming=False,
        hook_name=HOOK,
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=WIDTH,
        n_batches_in_buffer=256,
        total_training_tokens=10**9,
        store_batch_size_prompts=32,
        train_batch_size_tokens=BATCH,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )
    # The last whole batches of an epoch need the next epoch's first: leave those out.
    return itertools.islice(store, TOTAL // BATCH // 2)


WAYS = {"ours": ours, "memory_map": memory_map, "hf_datasets": hf_datasets, "sae_lens": sae_lens}


def prepare(folder: Path) -> dict[str, int]:
    """All copies of the vectors; returns bytes on disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_run(folder / "run")
    vectors = ActivationDataset(folder / "run", 12)[:]
    vectors.view(np.int16).tofile(folder / "flat.bin")
    column = datasets.Sequence(datasets.Value("float16"), length=WIDTH)
    rows_ = {"vector": vectors.astype(np.float16)}
    datasets.Dataset.from_dict(rows_, features=datasets.Features({"vector": column})).save_to_disk(folder / "datasets")
    export_sae_lens(folder / "run", folder / "cached", 12, context_size=CONTEXT)
    places = {"ours": "run", "memory_map": "flat.bin", "hf_datasets": "datasets", "sae_lens": "cached"}
    return {name: size_of(folder / place) for name, place in places.items()}


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def timed(batches: Iterator[torch.Tensor]) -> dict[str, float]:
    wall, cpu = time.monotonic(), time.process_time()
    # A trainer reads what it gets.
    count = sum(1 for batch in batches if batch.float().sum() is not None)
    return {"batches": count, "wall_s": time.monotonic() - wall, "cpu_s": time.process_time() - cpu}


def main(folder: Path, rounds: int) -> dict[str, Any]:
    sizes = prepare(folder)
    answers: dict[str, list[Any]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            answers[name].append(timed(way(folder)) | {"bytes": sizes[name]})
    shutil.rmtree(folder)
    return {"batch": BATCH, "width": WIDTH, "rows": TOTAL, "answers": answers}


if __name__ == "__main__":
    datasets.disable_progress_bars()
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
