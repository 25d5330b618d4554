"""The step as the TPU compiler sees it, on a v5e-64, and the time this machine takes to compile it."""

import dataclasses
from pathlib import Path

import msgspec

from pod_job.config.load import load
from pod_job.models.arch import read_arch_file
from pod_job.models.taps import resolve
from pod_job.preflight.planned_job import PlannedJob
from pod_job.preflight.pod_compiler import forecasts
from pod_job.preflight.report import pod_slice
from tools.bench.work import Metrics, Work

CONFIGS = Path("tests/data/configs")
POD = ["pod=v5e_64", "mesh=8x8", "extract=all_tokens", "extract.seq_len=1024", "storage.run_dir=unused", "tasks=arc"]

VARIANTS = {
    "replicated": ["extract.layers=[6,12,18,23]", "extract.rows_per_device=8"],
    "80 layers": ["extract.layers=[6,12,18,79]", "extract.rows_per_device=8"],
    "fsdp": ["extract.layers=[27]", "extract.rows_per_device=4", "sharding=fsdp"],
}


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing to choose."""


def make_inputs(options: Options, inputs: Path) -> None:
    """Makes nothing: a model's config.json is all that is read."""


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    """Compiles once, with what only a process's first compilation does."""
    return Work(lambda: compile_and_forecast(*variant.split(", ")), warm_up=True)


def compile_and_forecast(model: str, kind: str) -> Metrics:
    """Returns the numbers of the compiler's forecast, those of the model made deeper for `80 layers`."""
    config = load([*POD, f"model.path={CONFIGS / model}", *VARIANTS[kind]])
    arch = read_arch_file(CONFIGS / model / "config.json")
    if kind.endswith("layers"):
        layers = int(kind.split()[0])
        arch = dataclasses.replace(arch, layers=layers, attention=arch.attention[:1] * layers)
    taps = resolve(config.extract.layers, config.extract.taps, arch)
    (forecast,) = forecasts(PlannedJob(config, arch, taps, pod_slice(config)))
    flat = msgspec.to_builtins(forecast)
    nested = {f"{name}_{key}": value for name in ("seconds", "hbm") for key, value in flat[name].items()}
    return Metrics({name: value for name, value in (flat | nested).items() if type(value) in (int, float)})
