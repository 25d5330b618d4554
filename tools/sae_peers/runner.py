"""Compares text to trained SAE with SAELens' `LanguageModelSAETrainingRunner`: `python -m tools.sae_peers.runner`.

A model's layer, documents of a file, one TopK SAE, on this machine's CPUs in turn. In each round each side runs twice,
on few and on more tokens; the figure is the tokens between them over the CPU seconds between them, summed over the
rounds: starts, compilation and loading are in neither. Prints JSON. Needs the environment `trainers` of tools.peers.
With --dtype bfloat16 both multiply in it, SAELens by its `autocast` and `autocast_lm`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pod_job.commands.command_line import exit_status
from pod_job.errors import JobError
from tools import peers
from tools.sae_peers.shuffles import ONE_PROCESS

PEER = Path(__file__).with_name("run_training.py")


class Trial(msgspec.Struct, frozen=True):
    """Sizes of a training; also what SAELens' side reads, as JSON."""

    model: str
    documents: str
    layer: int = 12
    latents: int = 4096
    k: int = 32
    context: int = 256
    prompts: int = 16
    batch_rows: int = 1024
    bfloat16: bool = False


def cpu_seconds(argv: Sequence[str], environment: dict[str, str]) -> float:
    """Runs a command; returns the CPU seconds that it and its children took. JobError where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        last_lines = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise JobError(f"{' '.join(argv[:4])} ... failed: {' | '.join(last_lines)}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours(trial: Trial, tokens: int, out: Path) -> float:
    """Returns the CPU seconds of a training here; the buffer is as large as SAELens' in batches."""
    sae = f"{{tap:{trial.layer},architecture:topk,latents:{trial.latents},k:{trial.k}}}"
    dtype = "bfloat16" if trial.bfloat16 else "float32"
    settings = {
        "model.path": trial.model,
        "model.dtype": dtype,
        "tasks.path": trial.documents,
        "extract.positions": "all",
        "extract.seq_len": trial.context,
        "extract.rows_per_device": trial.prompts,
        "extract.too_long": "split",
        "storage.run_dir": out,
        "train.tokens": tokens,
        "train.batch_rows": trial.batch_rows,
        "train.buffer_rows": 4 * trial.batch_rows,
        "train.statistics_rows": 4 * trial.batch_rows,
        "train.warmup_steps": 0,
        "train.dtype": dtype,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    argv = [sys.executable, "-m", "pod_job", *ONE_PROCESS, "mode=train", f"train.saes=[{sae}]", *overrides]
    return cpu_seconds(argv, {**os.environ, "JAX_PLATFORMS": "cpu"})


def sae_lens(trial: Trial, tokens: int) -> float:
    """Returns the CPU seconds of a training in SAELens."""
    argv = [str(peers.make("trainers")), "-P", str(PEER), msgspec.json.encode(trial).decode(), str(tokens)]
    return cpu_seconds(argv, peers.quiet_environment())


def cpu_seconds_of(side: str, trial: Trial, tokens: int) -> float:
    """Returns the CPU seconds of a training on one side."""
    if side == "SAELens":
        return sae_lens(trial, tokens)
    with tempfile.TemporaryDirectory() as folder:
        return ours(trial, tokens, Path(folder) / "run")


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.sae_peers.runner", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/models/SmolLM2-135M-Instruct"))
    parser.add_argument("--documents", type=Path, default=Path("runs/demo-text.jsonl"))
    parser.add_argument("--tokens", type=int, nargs=2, default=(16384, 49152), metavar=("FEW", "MORE"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    given = parser.parse_args(argv)
    model, documents = (str(path.absolute()) for path in (given.model, given.documents))
    trial = Trial(model, documents, latents=given.latents, bfloat16=given.dtype == "bfloat16")
    more_tokens = given.tokens[1] - given.tokens[0]
    seconds = {"ours": 0.0, "SAELens": 0.0}
    for number in range(1, given.rounds + 1):
        for side in seconds:
            few_s, more_s = (cpu_seconds_of(side, trial, tokens) for tokens in given.tokens)
            seconds[side] += more_s - few_s
            rate = more_tokens / (more_s - few_s)
            shown = {"round": number, "side": side, "cpu_s": [few_s, more_s], "tokens_per_cpu_s": rate}
            print(json.dumps(shown), flush=True)
    print(json.dumps({"ours / SAELens": seconds["SAELens"] / seconds["ours"]}))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(run))
