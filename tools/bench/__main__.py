"""`python -m tools.bench`: extraction and reading, ours beside every alternative, into docs/benchmarks.md.

Each alternative runs in an environment of its own (tools.peers), in a process that has loaded the model; rounds go
through all of them in turn. Results are kept in runs/bench/results.json, so that parts can be measured anew.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pod_job.config import TooLong, load
from pod_job.errors import JobError
from pod_job.prompts.tasks import read_tasks
from pod_job.prompts.tokens import load_tokenizer, tokenize
from tools.bench.page import page, versions
from tools.peers import make, quiet_environment

FOLDER = Path("runs/bench")
OUT = Path("docs/benchmarks.md")
MODEL = Path("runs/models/SmolLM2-135M-Instruct")
# Of the module in tools.bench.ways: the environment it runs in; None is this one.
WAYS = {
    "ours": None,
    "hugging_face": "hugging-face",
    "transformer_lens": "transformer-lens",
    "nnsight": "nnsight",
    "sae_lens": "sae-lens",
    "document": "hugging-face",
}
TAPS = {"one tap": [12], "four taps": [6, 12, 18, 24]}
WORKLOADS = [(taps, positions) for positions in ("all", "last") for taps in TAPS]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["all", "last", "reading"], help="measure this part; keep the others")
    options = parser.parse_args(argv)
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    if options.only != "reading":
        for taps, positions in WORKLOADS:
            if options.only in (None, positions):
                results.pop(f"{taps}, {positions}", None)
        results |= extraction(options.prompts, options.rounds, options.only)
    if options.only in (None, "reading"):
        results["reading"] = reading(options.rounds)
    results["versions"] = versions({name: str(make(name)) for name in WAYS.values() if name})
    file.write_text(json.dumps(results, indent=1))
    OUT.write_text(page(results))
    print(OUT)
    return 0


def extraction(count: int, rounds: int, only: str | None) -> dict[str, Any]:
    """workload -> way -> its answers, a list of one per round."""
    prompts = encoded(count)
    file = (FOLDER / "prompts.json").absolute()
    file.write_text(json.dumps(prompts))
    found: dict[str, Any] = {"prompts": {"count": count, "tokens": sum(map(len, prompts))}}
    with ExitStack() as open_workers:
        workers = {name: open_workers.enter_context(worker(name, file)) for name in WAYS}
        for taps, positions in WORKLOADS:
            if only in (None, positions):
                answers: dict[str, list[Any]] = {name: [] for name in WAYS}
                for _ in range(rounds):
                    for name, process in workers.items():
                        answers[name].append(ask(name, process, {"layers": TAPS[taps], "positions": positions}))
                found[f"{taps}, {positions}"] = answers
    return found


def worker(name: str, prompts: Path) -> subprocess.Popen[str]:
    peer = WAYS[name]
    python = sys.executable if peer is None else str(make(peer))
    argv = [python, "-m", "tools.bench.worker", name, str(MODEL), str(prompts), str((FOLDER / name).absolute())]
    # Idle threads sleep rather than spin: their waiting is not work.
    environment = quiet_environment() | {"OMP_WAIT_POLICY": "PASSIVE"}
    log = (FOLDER / f"{name}.log").open("w")
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)


def ask(name: str, process: subprocess.Popen[str], job: dict[str, Any]) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        line = ""
    else:
        line = process.stdout.readline()
    if not line:
        raise JobError(f"{name}: ended; see {FOLDER / name}.log")
    print(f"{name} {job}: {line}", end="", file=sys.stderr, flush=True)
    return json.loads(line)


def encoded(count: int) -> list[list[int]]:
    """Token ids of the first sample prompts."""
    config = load([f"model.path={MODEL}", "tasks=arc_sample", f"tasks.limit={count}", "storage.run_dir=unused"])
    prompts = tokenize(load_tokenizer(MODEL), read_tasks(config.tasks).samples, 512, TooLong.refuse)
    return [prompt.token_ids.tolist() for prompt in prompts]


def reading(rounds: int) -> dict[str, Any]:
    """way -> its answers; all in one process, in turn, in the environment that has every reader."""
    argv = [str(make("trainers")), "-m", "tools.bench.reading", str((FOLDER / "reading").absolute()), str(rounds)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, env=quiet_environment())
    if done.returncode:
        raise JobError("reading failed; its last words are above")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
