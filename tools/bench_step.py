"""`python -m tools.bench_step [OUT.json]`: the step as the TPU compiler sees it, for two models on a v5e-64, as JSON.

Needs libtpu and no TPU. Compile times are those of this machine; everything else is the compiler's.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pod_job import environment
from pod_job.config import load
from pod_job.models.arch import Arch, read_arch_file
from pod_job.models.taps import resolve
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
    (found,) = forecasts(config, arch, taps, pod_slice(config))
    return {"layers": arch.layers, "taps": [tap.name for tap in taps]} | found.report()


def deeper(arch: Arch, layers: int) -> Arch:
    return dataclasses.replace(arch, layers=layers, attention=arch.attention[:1] * layers)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench_step", description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, help="file for the JSON; by default stdout")
    options = parser.parse_args(argv)
    os.environ.update(environment.COMPILE_ONLY)
    import jax

    results = {name: measure(model, overrides) for name, (model, overrides) in CASES.items()}
    model, overrides = CASES["qwen2.5-0.5b replicated"]
    deep = [*overrides, f"extract.layers=[6,12,18,{DEEP - 1}]"]
    results[f"qwen2.5-0.5b with {DEEP} layers"] = measure(model, deep, layers=DEEP)
    measured = {"jax": jax.__version__, "date": datetime.now(UTC).date().isoformat(), "cpus": os.cpu_count()}
    text = json.dumps(measured | {"cases": results}, indent=2)
    if options.out is None:
        print(text)
    else:
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
