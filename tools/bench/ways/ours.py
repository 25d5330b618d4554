"""Ours, as a host of the job runs it: packed rows, bfloat16 vectors, tables, checksums, commit records.

A user writes one command; here the functions behind it, loaded and compiled before the clock runs.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pod_job.config.load import load as load_config
from pod_job.formats.safetensors import map_tensors
from pod_job.planning.inputs import read_inputs
from tools.bench_extract import ROWS, SEQ_LEN, ours

LINES = 1


def load(model_dir: str) -> str:
    return model_dir


def prepare(
    model: str, prompts: list[list[int]], layers: list[int], positions: str, scratch: Path
) -> Callable[[], None]:
    """A function that extracts the prompts into a new folder below `scratch`."""
    tasks = scratch.with_suffix(".jsonl")
    tasks.write_text("".join(json.dumps({"input_ids": prompt}) + "\n" for prompt in prompts))
    config = load_config(
        [
            f"model.path='{model}'",
            "model.dtype=float32",
            "tasks.format=jsonl",
            "tasks.field=input_ids",
            f"tasks.path='{tasks}'",
            f"extract.positions={positions}",
            f"extract.layers={layers}",
            f"extract.seq_len={SEQ_LEN}",
            f"extract.rows_per_device={ROWS}",
            "extract.save_every_n_samples=8",
            f"storage.run_dir='{scratch.with_suffix('.run')}'",
        ]
    )
    return ours(config, read_inputs(config), scratch, write=True)


def stored(out: Path, layer: int) -> np.ndarray:
    files = sorted((out / "activations").glob(f"layer_{layer}_batch_*.safetensors"))
    return np.concatenate([map_tensors(file)["activations"] for file in files]).astype(np.float32)
