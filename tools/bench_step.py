"""`python -m tools.bench_step [OUT.json]`: the step as the TPU compiler sees it, for two models on a v5e-64, as JSON.

Needs libtpu and no TPU. Compile times are those of this machine; everything else is the compiler's. With `--compile N`
the step of 24 layers and that of 80 are compiled N times in turn, and only the times told.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from pod_job import environment
from pod_job.config.load import load
from pod_job.models.arch import Arch, read_arch_file
from pod_job.models.taps import resolve
from pod_job.preflight.planned_job import PlannedJob
from pod_job.preflight.report import pod_slice

CONFIGS = Path("tests/data/configs")
DEEP = 80  # layers, of which compile time must not depend
POD = ["pod=v5e_64", "mesh=8x8", "extract=all_tokens", "extract.seq_len=1024", "storage.run_dir=unused", "tasks=arc"]
CASES = {
    "qwen2.5-0.5b replicated": ("Qwen2.5-0.5B", ["extract.layers=[6,12,18,23]", "extract.rows_per_device=8"]),
    "qwen2.5-7b fsdp": ("Qwen2.5-7B", ["extract.layers=[27]", "extract.rows_per_device=4", "sharding=fsdp"]),
}


def measure(model: str, overrides: Sequence[str], layers: int | None = None) -> dict[str, Any]:
    """The forecast of one case; `layers` makes the same model deeper."""
    from pod_job.preflight.pod_compiler import forecasts

    config = load([*POD, f"model.path={CONFIGS / model}", *overrides])
    arch = read_arch_file(CONFIGS / model / "config.json")
    if layers is not None:
        arch = deeper(arch, layers)
    taps = resolve(config.extract.layers, config.extract.taps, arch.layers)
    (forecast,) = forecasts(PlannedJob(config, arch, taps, pod_slice(config)))
    return {"layers": arch.layers, "taps": [tap.name for tap in taps]} | msgspec.to_builtins(forecast)


def deeper(arch: Arch, layers: int) -> Arch:
    return dataclasses.replace(arch, layers=layers, attention=arch.attention[:1] * layers)


def compile_times(repeats: int) -> dict[str, Any]:
    """Seconds to compile the same model with its own layers and made DEEP, in turn; medians, and their ratio."""
    model, overrides = CASES["qwen2.5-0.5b replicated"]
    deep = [*overrides, f"extract.layers=[6,12,18,{DEEP - 1}]"]
    depths: dict[str, list[tuple[float, float]]] = {"24": [], str(DEEP): []}
    measure(model, overrides)  # what only the first compilation does
    for _ in range(repeats):
        for layers, found in depths.items():
            before = time.process_time()
            report = measure(model, overrides) if layers == "24" else measure(model, deep, layers=DEEP)
            found.append((report["compile_s"], time.process_time() - before))
    wall, cpu = (
        {layers: statistics.median(each[kind] for each in found) for layers, found in depths.items()} for kind in (0, 1)
    )
    ratios = {"wall": wall[str(DEEP)] / wall["24"], "cpu": cpu[str(DEEP)] / cpu["24"]}
    return {"compile_s": wall, "cpu_s": cpu, "ratio": ratios, "repeats": repeats}


def forecasts_of_cases() -> dict[str, Any]:
    results = {name: measure(model, overrides) for name, (model, overrides) in CASES.items()}
    model, overrides = CASES["qwen2.5-0.5b replicated"]
    deep = [*overrides, f"extract.layers=[6,12,18,{DEEP - 1}]"]
    return results | {f"qwen2.5-0.5b with {DEEP} layers": measure(model, deep, layers=DEEP)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench_step", description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, help="file for the JSON; by default stdout")
    parser.add_argument("--compile", type=int, metavar="N", help="only the times of compiling, N times in turn")
    options = parser.parse_args(argv)
    os.environ.update(environment.COMPILE_ONLY)
    import jax

    found = {"compile": compile_times(options.compile)} if options.compile else {"cases": forecasts_of_cases()}
    measured = {"jax": jax.__version__, "date": datetime.now(UTC).date().isoformat(), "cpus": os.cpu_count()}
    text = json.dumps(measured | {"load": os.getloadavg()[0]} | found, indent=2)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
