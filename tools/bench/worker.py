"""One way of extraction in a process of its own: `python -m tools.bench.worker WAY MODEL PROMPTS.json SCRATCH`.

Loads the model, then for each line of JSON on stdin (`layers`, `positions`, `reference`) runs it and answers with a
line: wall and CPU seconds, tokens, bytes on disk, peak memory so far, and how far its vectors are from those of the
reference; `failed` with the reason where the way cannot do it.
"""

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

import numpy as np


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
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        key = json.dumps([job["layers"], job["positions"]])
        try:
            if key not in prepared:
                prepared[key] = prepare(way, model, prompts, job, folder)
            answer = timed(prepared[key], folder)
            answer |= {"tokens": tokens(way, prompts, job["positions"]), "apart": apart(way, prompts, job, folder)}
        except NotImplementedError as error:
            answer = {"failed": str(error)}
        shutil.rmtree(folder)
        print(json.dumps(answer), file=answers, flush=True)


def prepare(
    way: ModuleType, model: Any, prompts: list[list[int]], job: dict[str, Any], scratch: Path
) -> Callable[[], None]:
    """What is timed; all that compiles has been compiled."""
    if hasattr(way, "prepare"):
        return way.prepare(model, prompts, job["layers"], job["positions"], scratch)
    return lambda: way.extract(model, prompts, job["layers"], job["positions"], Path(tempfile.mkdtemp(dir=scratch)))


def timed(run: Callable[[], None], scratch: Path) -> dict[str, Any]:
    wall, cpu = time.monotonic(), cpu_seconds()
    run()
    wall, cpu = time.monotonic() - wall, cpu_seconds() - cpu
    size = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"wall_s": wall, "cpu_s": cpu, "bytes": size, "peak_bytes": peak}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def tokens(way: ModuleType, prompts: list[list[int]], positions: str) -> int:
    """Of the prompts that were given, those whose vectors were stored, or that had to be read for the last one."""
    if positions == "all" and hasattr(way, "vectors"):
        return way.vectors(prompts)
    if positions == "all" and hasattr(way, "places"):
        return len(way.places(prompts))
    return sum(map(len, prompts))


def apart(way: ModuleType, prompts: list[list[int]], job: dict[str, Any], scratch: Path) -> float:
    """The largest relative L2 distance of a stored vector from the reference's, which the first way leaves there."""
    (out,) = scratch.iterdir()
    found = np.stack([way.stored(out, layer) for layer in job["layers"]])
    reference = Path(job["reference"])
    if not reference.exists():
        np.save(reference, found)
        return 0.0
    wanted = np.load(reference)
    if job["positions"] == "all" and hasattr(way, "places"):
        wanted = wanted[:, way.places(prompts)]
    if found.shape != wanted.shape:
        raise SystemExit(f"error: vectors of shape {found.shape} were stored in place of {wanted.shape}")
    return float(np.max(np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)))


if __name__ == "__main__":
    main(*sys.argv[1:])
