"""The job's extraction in the process of a test, on its CPU devices: what `job.run` does, without hosts and phases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from pod_job.config.load import load
from pod_job.extraction.feeding import feeding, step_rows
from pod_job.extraction.pipeline import PackedFeeder, extract
from pod_job.extraction.step import Step
from pod_job.extraction.writers import Writers
from pod_job.finishing.merge import merge
from pod_job.host.rendezvous import Host
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.job import pending_batches
from pod_job.models.mesh import make_mesh
from pod_job.planning.inputs import claim_run, read_inputs
from pod_job.programs import compile_program, load_model


def run_here(model: Path, run_dir: Path, tasks: Path, changes: Mapping[str, Any]) -> None:
    """Extracts the samples of a JSON-lines file, and merges what is there."""
    values = {"model.path": model, "model.dtype": "float32", "storage.run_dir": run_dir, "tasks.path": tasks}
    values |= {"tasks.format": "jsonl", "extract.positions": "all", "extract.dtype": "float32", "parity.samples": 0}
    values |= {"extract.layers": "[1]", "extract.save_every_n_samples": 2} | dict(changes)
    values["pod.devices_per_host"] = int(values.get("mesh.data", 1)) * int(values.get("mesh.model", 1))
    config = load([f"{key}={value}" for key, value in values.items()])
    inputs, mesh = read_inputs(config), make_mesh(config.mesh, jax.devices()[: config.pod.devices])
    claim_run(inputs)
    weights, params = load_model(inputs, mesh)
    part = feeding(step_rows(config, mesh), 0)
    program = compile_program(inputs, weights, params, part)
    assert isinstance(program, Step)
    with (
        Reporter(inputs.folder, Host(0, 1, "test", None)) as reporter,
        Writers(2, inputs.folder, 0, reporter.committed) as writers,
    ):
        feeder = PackedFeeder(pending_batches(inputs), inputs, part, reporter, StopRequest())
        extract(program, feeder, writers, reporter)
    merge(inputs.folder)
