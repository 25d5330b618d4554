"""`python -m tools.bench`: extraction and reading, ours beside every alternative, into docs/benchmarks.md.

Each alternative runs in an environment of its own (tools.peers), in a process that has loaded the model; rounds go
through all of them in turn. Every answer is kept in runs/bench/results.json: an interrupted benchmark goes on where it
stopped, a finished one starts over.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pod_job.config.load import load
from pod_job.config.schema import TooLong
from pod_job.errors import JobError
from pod_job.prompts.tasks import read_tasks
from pod_job.prompts.tokens import load_tokenizer, tokenize
from tools.bench.page import page, versions
from tools.bench.rounds import WAYS, WORKLOADS, OutOfTime, measure
from tools.peers import make, quiet_environment

FOLDER = Path("runs/bench")
RESULTS = FOLDER / "results.json"
OUT = Path("docs/benchmarks.md")
MODEL = Path("runs/models/SmolLM2-135M-Instruct")
READING = "reading"
READING_S = 900.0  # at most
UNFINISHED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Exit status 3 where `--minutes` were not enough."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("--prompts", type=int, default=22, help="of the sample; 22 fill two steps of ours to 94%%")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after these; the same command goes on")
    parser.add_argument("--only", choices=["all", "last", READING], help="measure this part anew; keep the others")
    options = parser.parse_args(argv)
    until = time.monotonic() + 60 * options.minutes
    FOLDER.mkdir(parents=True, exist_ok=True)
    parts = [*WORKLOADS, READING]
    if options.only:
        parts = [part for part in parts if part.endswith(options.only)]
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results = begin(kept, {"prompts": options.prompts, "rounds": options.rounds}, parts)
    try:
        measure_parts(results, parts, until)
    except OutOfTime:
        print(f"unfinished: the same command goes on; kept in {RESULTS}", file=sys.stderr)
        return UNFINISHED
    results["versions"] = versions({name: str(make(name)) for name in WAYS.values() if name})
    results["finished"] = True
    keep(results)
    OUT.write_text(page(results))
    print(OUT)
    return 0


def begin(kept: dict[str, Any], settings: dict[str, int], parts: Sequence[str]) -> dict[str, Any]:
    """The results to go on with: unfinished ones of the same settings, or of finished ones what is not in `parts`."""
    if kept.get("settings") != settings:
        kept = {}
    if kept.pop("finished", False):
        kept = {name: found for name, found in kept.items() if name not in parts}
    return {**kept, "settings": settings}


def measure_parts(results: dict[str, Any], parts: Sequence[str], until: float) -> None:
    """Adds what is missing. Raises OutOfTime."""
    count, rounds = results["settings"]["prompts"], results["settings"]["rounds"]
    prompts = encoded(count)
    (FOLDER / "prompts.json").write_text(json.dumps(prompts))
    results["prompts"] = {"count": count, "tokens": sum(map(len, prompts))}
    for part in parts:
        if part == READING:
            if time.monotonic() > until:
                raise OutOfTime
            if READING not in results:
                results[READING] = reading(rounds)
        else:
            measure(part, results.setdefault(part, {}), rounds, FOLDER, MODEL, lambda: keep(results), until)
        keep(results)


def keep(results: dict[str, Any]) -> None:
    scratch = RESULTS.with_suffix(".new")
    scratch.write_text(json.dumps(results, indent=1))
    scratch.rename(RESULTS)


def encoded(count: int) -> list[list[int]]:
    """Token ids of the first sample prompts."""
    config = load([f"model.path={MODEL}", "tasks=arc_sample", f"tasks.limit={count}", "storage.run_dir=unused"])
    prompts = tokenize(load_tokenizer(MODEL), read_tasks(config.tasks).samples, 512, TooLong.refuse)
    return [prompt.token_ids.tolist() for prompt in prompts]


def reading(rounds: int) -> dict[str, Any]:
    """way -> its answers; all in one process, in turn, in the environment that has every reader."""
    argv = [str(make("trainers")), "-m", "tools.bench.reading", str((FOLDER / READING).absolute()), str(rounds)]
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, env=quiet_environment(), timeout=READING_S)
    except subprocess.TimeoutExpired:
        raise JobError(f"reading did not end in {READING_S:.0f} s") from None
    if done.returncode:
        raise JobError("reading failed; its last words are above")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
