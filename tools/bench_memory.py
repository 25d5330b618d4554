"""Whether a job's host memory grows with its prompts: the same job on N and on 10 N of them, peak of each. JSON out.

A tiny random model, all positions to files, one process; `--mode generate` with a few new tokens for each prompt.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent
TIMES = 10
MOST_TOKENS = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--mode", choices=["prefill", "generate"], default="prefill")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(compare(options.prompts, options.mode, Path(scratch)), indent=1))


def compare(prompts: int, mode: str, scratch: Path) -> dict[str, Any]:
    """Peaks of both, and how much the larger job's is above the other's."""
    model = write_tiny_model(scratch / "model")
    few, many = (run(model, count, mode, scratch / str(count)) for count in (prompts, TIMES * prompts))
    return {"mode": mode, "few": few, "many": many, "growth": many["peak_mb"] / few["peak_mb"] - 1}


def run(model: Path, prompts: int, mode: str, scratch: Path) -> dict[str, Any]:
    """One job in a process of its own."""
    scratch.mkdir()
    draw = random.Random(0)
    with (scratch / "prompts.jsonl").open("w") as file:
        for _ in range(prompts):
            text = "".join(chr(draw.randrange(97, 123)) for _ in range(draw.randrange(8, MOST_TOKENS)))
            file.write(json.dumps({"text": text}) + "\n")
    overrides = [
        *(f"model.path={model}", "model.dtype=float32", f"mode={mode}", "parity.samples=0"),
        *(f"tasks.path={scratch}/prompts.jsonl", "tasks.format=jsonl", f"storage.run_dir={scratch}/run"),
        *("extract=all_tokens", "extract.layers=[0,2]", "extract.seq_len=128", "extract.save_every_n_samples=64"),
        *("extract.rows_per_device=8", "generate.max_new_tokens=8"),
    ]
    argv = [sys.executable, "-m", "pod_job", *overrides]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    with (scratch / "log").open("wb") as log:
        actions = [(os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)]
        child = os.posix_spawn(sys.executable, argv, env, file_actions=actions)
        _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit((scratch / "log").read_text())
    metadata = json.loads((scratch / "run/activations/metadata.json").read_text())
    return {
        "prompts": prompts,
        "rows": metadata["rows"],
        "peak_mb": used.ru_maxrss * 1024 / 1e6,
        "seconds": time.monotonic() - started,
        "cpu_s": used.ru_utime + used.ru_stime,
    }


if __name__ == "__main__":
    main()
