"""One way of extraction in a process of its own: `python -m tools.bench.worker WAY MODEL PROMPTS.json SCRATCH`.

Loads the model, then for each line of JSON on stdin (`layers`, `positions`) runs it and answers with a line:
wall and CPU seconds, vectors per tap, bytes on disk, peak memory so far; null where the way cannot do it.
"""

import contextlib
import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def main(name: str, model_dir: str, prompts_file: str, scratch: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    way = importlib.import_module(f"tools.bench.ways.{name}")
    prompts = json.loads(Path(prompts_file).read_text())
    model = way.load(model_dir)
    prepared: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        job = json.loads(line)
        folder = Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        key = json.dumps([job["layers"], job["positions"]])
        answer = None
        with contextlib.suppress(NotImplementedError):
            if key not in prepared:
                prepared[key] = prepare(way, model, prompts, job, folder)
            answer = timed(prepared[key], folder) | {"vectors": vectors(way, prompts, job["positions"])}
        shutil.rmtree(folder)
        print(json.dumps(answer), file=answers, flush=True)


def prepare(
    way: ModuleType, model: Any, prompts: list[list[int]], job: dict[str, Any], scratch: Path
) -> Callable[[], None]:
    """What is timed; all that compiles has been compiled."""
    if hasattr(way, "prepare"):
        return way.prepare(model, prompts, job["layers"], job["positions"], scratch)
    return lambda: way.extract(model, prompts, job["layers"], job["positions"], Path(tempfile.mkdtemp(dir=scratch)))


def timed(run: Callable[[], None], scratch: Path) -> dict[str, float]:
    wall, cpu = time.monotonic(), cpu_seconds()
    run()
    wall, cpu = time.monotonic() - wall, cpu_seconds() - cpu
    size = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"wall_s": wall, "cpu_s": cpu, "bytes": size, "peak_bytes": peak}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def vectors(way: ModuleType, prompts: list[list[int]], positions: str) -> int:
    """Per tap, of the prompts that were given."""
    if hasattr(way, "vectors"):
        return way.vectors(prompts, positions)
    return sum(map(len, prompts)) if positions == "all" else len(prompts)


if __name__ == "__main__":
    main(*sys.argv[1:])
