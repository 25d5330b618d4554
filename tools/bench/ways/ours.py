"""Ours, as a host of the job runs it: packed rows, tables, checksums, statistics and commit records beside the vectors.

A user writes one command; here the functions behind it, loaded and compiled before the clock runs.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pod_job.config.load import load as load_config
from pod_job.extraction.feeding import feeding, step_rows
from pod_job.extraction.packing import Queued, pack_steps
from pod_job.extraction.pipeline import PackedFeeder, extract
from pod_job.extraction.step import Step, compile_step
from pod_job.extraction.writers import Writers
from pod_job.formats.safetensors import map_tensors
from pod_job.host.rendezvous import Host
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.models.mesh import make_mesh
from pod_job.planning.inputs import read_inputs
from pod_job.programs import load_model
from pod_job.prompts.prompt import Prompt
from pod_job.prompts.sources.sample import Sample
from pod_job.storage.open import open_folder
from tools.bench.workloads.extraction import SEQ_LEN, Options

LINES = 1
PROMPTS_PER_ROW = 64


def overrides(options: Options, tasks: Path) -> list[str]:
    """Returns the job's overrides; its run folder stays empty, as each round opens one of its own."""
    return [
        *(f"model.path='{options.model}'", f"model.dtype={options.dtype}"),
        *("tasks.format=jsonl", "tasks.field=input_ids", f"tasks.path='{tasks}'"),
        *(f"extract.positions={options.positions}", f"extract.layers={list(options.layers)}"),
        *(f"extract.dtype={options.stored}", f"extract.seq_len={SEQ_LEN}", f"extract.rows_per_device={options.rows}"),
        f"extract.save_every_n_samples={options.save_prompts}",
        *(f"storage.writers={options.writers}", f"storage.run_dir='{tasks.parent}/run'"),
    ]


def prepare(options: Options, tasks: Path, out: Path | None) -> Callable[[], None]:
    """Returns a function that extracts all batches into `out`, or only computes them where it is None."""
    config = load_config(overrides(options, tasks))
    inputs, mesh = read_inputs(config), make_mesh(config.mesh)
    model, params = load_model(inputs, mesh)
    part = replace(feeding(step_rows(config, mesh), 0), writes=out is not None)
    step = Step(compile_step(model, params, part.rows, config.extract), params, part, config.extract.positions)
    batches = range(1, inputs.total_batches + 1)

    def run() -> None:
        folder = open_folder(out or tasks.with_name("status"))
        with Reporter(folder, Host(0, 1, "bench", None)) as reporter:
            feeder = PackedFeeder(batches, inputs, part, reporter, StopRequest())
            if out is not None:
                with Writers(config.storage.writers, folder, 0, reporter.committed) as writers:
                    extract(step, feeder, writers, reporter)
                return
            before: Any = None  # two steps at a time on the device, as in a job
            while feeder.has(0):
                now = step(feeder.take(), more=False)
                jax.block_until_ready(before)
                before = now
            jax.block_until_ready(before)

    return run


def stored(out: Path, layer: int) -> Iterator[np.ndarray]:
    """Yields the vectors of each batch of a layer."""
    for file in sorted((out / "activations").glob(f"layer_{layer}_batch_*.safetensors")):
        yield map_tensors(file)["activations"]


def filled(prompts: list[list[int]], options: Options) -> float:
    """Returns the share of the steps' positions that are tokens."""
    arrays = [np.array(prompt, np.int32) for prompt in prompts]
    queued = (Queued(1, i, Prompt(Sample(str(i), 0, ids), ids, False)) for i, ids in enumerate(arrays))
    steps = len(list(pack_steps(queued, options.rows, SEQ_LEN, PROMPTS_PER_ROW)))
    return sum(map(len, prompts)) / (steps * options.rows * SEQ_LEN)
