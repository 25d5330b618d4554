"""One job in a process of its own, on N or on 10 N prompts of random letters, with a tiny random model."""

import json
import os
import random
import sys
import time
from pathlib import Path

import msgspec

from tools.bench.work import Metrics, Work
from tools.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent.parent.parent
MOST_LETTERS = 120


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """N, and the job's mode: prefill stores all positions, generate makes a few new tokens for each prompt."""

    prompts: int = 20_000
    mode: str = "prefill"


class Rows(msgspec.Struct):
    """The one field of metadata.json that is read here."""

    rows: int


def make_inputs(options: Options, inputs: Path) -> None:
    write_tiny_model(inputs / "model")


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    prompts = int(variant.split()[0]) * options.prompts
    run = (scratch, options.mode, inputs / "model")
    return Work(lambda: run_job(*run), before=lambda: write_prompts(scratch, prompts))


def write_prompts(scratch: Path, prompts: int) -> None:
    draw = random.Random(0)
    with (scratch / "prompts.jsonl").open("w") as file:
        for _ in range(prompts):
            text = "".join(chr(draw.randrange(97, 123)) for _ in range(draw.randrange(8, MOST_LETTERS)))
            file.write(json.dumps({"text": text}) + "\n")


def run_job(scratch: Path, mode: str, model: Path) -> Metrics:
    """Runs the job; the metrics are those of its process, and the amount is the rows that it stored."""
    overrides = [
        *(f"model.path={model}", "model.dtype=float32", f"mode={mode}", "parity.samples=0"),
        *(f"tasks.path={scratch}/prompts.jsonl", "tasks.format=jsonl", f"storage.run_dir={scratch}/run"),
        *("extract=all_tokens", "extract.layers=[0,2]", "extract.seq_len=128", "extract.save_every_n_samples=64"),
        *("extract.rows_per_device=8", "generate.max_new_tokens=8"),
    ]
    argv, env = [sys.executable, "-m", "pod_job", *overrides], {**os.environ, "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    _, status, used = os.wait4(os.posix_spawn(sys.executable, argv, env), 0)
    if status:
        raise SystemExit(f"error: the job ended with status {os.waitstatus_to_exitcode(status)}")
    metadata = msgspec.json.decode((scratch / "run/activations/metadata.json").read_bytes(), type=Rows)
    wall_s, cpu_s = time.monotonic() - started, used.ru_utime + used.ru_stime
    return Metrics(amount=metadata.rows, wall_s=wall_s, cpu_s=cpu_s, peak_bytes=used.ru_maxrss * 1024)
