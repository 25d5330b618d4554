"""Spoils every kind of file that is read here, thousands of times, and sees what the readers say.

`python -m tools.fuzz --inputs 10000` mutates files of a small finished run, pickle exports, model configs and command
lines. Each mutation must end with a JobError that names the file, or with the truth: what `verify` calls sound is read
and compared. A crash, a hang and wrong data are failures. The result is JSON; exit status 0 when there are none.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import random
import resource
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pod_job.checking.verify import verify
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.finishing import merge
from pod_job.finishing.compact import compact
from pod_job.formats import rows_table
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.interop.pickle_export import export_pickles
from pod_job.interop.pickle_reader import read_pickle
from pod_job.models.arch import read_arch_file
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import claim
from pod_job.storage.open import open_folder
from tools.fuzz.spoil import lying, spoil
from tools.tiny_model import write_tiny_model

TAPS = ("layer_6", "layer_12")
BATCHES, SAMPLES, ROWS, WIDTH = 2, 4, 20, 16
HANG_S = 20
MOST_MEMORY = 4 << 30
"""Bytes that a process may take."""
SLICE = 50
"""Inputs that one process tries before another goes on."""
KINDS = {
    "tap file": f"run/{layout.ACTIVATIONS}layer*",
    "rows table": f"run/{layout.ACTIVATIONS}rows*",
    "commit record": f"run/{layout.COMMITS}*",
    "metadata.json": f"run/{layout.METADATA}",
    "run.json": f"run/{layout.RUN}",
    "joined file": f"compacted/{layout.ACTIVATIONS}*.safetensors",
    "compaction record": f"compacted/{layout.COMPACTION}",
    "metadata.json, compacted": f"compacted/{layout.METADATA}",
    "pickle": "pickles/*.pkl",
    "model config": "model/config.json",
    "overrides": "",
}
"""What is spoilt, and where it lies."""
SEALED = ("commit record", "metadata.json", "compaction record", "metadata.json, compacted")
"""Kinds with a checksum of their own: half of them are spoilt behind it, and of the others not one may pass."""
OVERRIDES = ["experiment=demo", "tasks.limit=8", "extract.layers=[1,2]", "mesh.data=4", "storage.run_dir=runs/x"]


@dataclass(frozen=True)
class Bench:
    """A folder with everything that is spoilt, and what a reader must find in it."""

    root: Path
    truth: Any


def make_bench(root: Path) -> Bench:
    folder, rng = open_folder(root / "run"), np.random.default_rng(0)
    model = {"name": "fuzz", "hidden_dim": WIDTH}
    identity = {"model": model, "tasks": {"samples": BATCHES * SAMPLES}, "taps": list(TAPS), "dtype": "bfloat16"}
    claim(folder, identity | {"save_every_n_samples": SAMPLES})
    for number in range(1, BATCHES + 1):
        columns = {
            "task_id": [f"task_{row // 5}" for row in range(ROWS)],
            "sample_idx": np.arange(ROWS) // 5,
            "position": np.arange(ROWS) % 5,
            "token_id": rng.integers(0, 50_000, ROWS),
        }
        taps = {tap: rng.standard_normal((ROWS, WIDTH)).astype(DTYPE_OF["bfloat16"]) for tap in TAPS}
        commit_batch(
            folder, Batch(number, SAMPLES, rows_table.from_columns(columns, "2026-01-15T10:30:00"), taps), host=0
        )
    merge.merge(folder)
    shutil.copytree(root / "run", root / "compacted")
    compact(open_folder(root / "compacted"))
    export_pickles(root / "run", root / "pickles")
    write_tiny_model(root / "model", layers=2)
    return Bench(root, read_run(root / "run"))


def read_run(run: Path) -> Any:
    """Everything of a run that a trainer gets to see, as plain values."""
    datasets = [ActivationDataset(run, tap) for tap in TAPS]
    found = datasets[0].rows(slice(None))
    return {name: column.tolist() for name, column in found.items()}, [dataset[:].tolist() for dataset in datasets]


def try_run(bench: Bench, spoilt: Path) -> str:
    """What the readers of a run say; `spoilt` lies in it."""
    run, errors = bench.root / spoilt.relative_to(bench.root).parts[0], list[str]()
    sound = False
    try:
        report = verify(run)
        sound, errors = report.sound, list(report.problems)
    except JobError as error:
        errors.append(str(error))
    try:
        merge.gather(open_folder(run))
    except JobError as error:
        errors.append(str(error))
    try:
        found = read_run(run)
    except JobError as error:
        return named([*errors, str(error)], spoilt)
    if sound:
        return "harmless" if found == bench.truth else "WRONG DATA"
    return named(errors, spoilt)


def named(errors: list[str], spoilt: Path) -> str:
    """`refused` where the file that was spoilt is named; a lie in one file may show only beside another one."""
    if not errors:
        return "NO REASON"
    return "refused" if any(spoilt.name in error for error in errors) else "refused, another file named"


def try_reader(reader: Callable[[Path], Any], spoilt: Path) -> str:
    try:
        reader(spoilt)
    except JobError as error:
        return named([str(error)], spoilt)
    return "read"


def try_overrides(rng: random.Random) -> str:
    words = OVERRIDES.copy()
    at = rng.randrange(len(words))
    words[at] = spoil(words[at].encode(), rng).decode("utf-8", "replace")
    try:
        load(words)
    except JobError as error:
        return "refused" if "\n" not in str(error) else "MANY LINES"
    return "read"


def kind_of(number: int) -> str:
    return list(KINDS)[number % len(KINDS)]


def try_one(bench: Bench, number: int, seed: int) -> tuple[str, str]:
    """The kind of file that is spoilt, and the outcome."""
    rng = random.Random(f"{seed}/{number}")
    kind = kind_of(number)
    if kind == "overrides":
        return kind, try_overrides(rng)
    path = rng.choice(sorted(bench.root.glob(KINDS[kind])))
    before = path.read_bytes()
    lie = kind in SEALED and rng.random() < 0.5
    spoilt = lying(before, rng) if lie else spoil(before, rng)
    path.write_bytes(spoilt)
    try:
        if kind == "pickle":
            return kind, try_reader(read_pickle, path)
        if kind == "model config":
            return kind, try_reader(read_arch_file, path)
        outcome = try_run(bench, path)
        noticed = lie or kind not in SEALED or outcome == "refused" or spoilt == before
        return kind, outcome if noticed else f"NOT NOTICED: {outcome}"
    finally:
        path.write_bytes(before)


def try_slice(numbers: range, seed: int) -> list[tuple[int, str, str]]:
    """Number, kind and outcome of each input, in a folder of this process's own."""

    def hang(*_: object) -> None:
        raise TimeoutError(f"no answer within {HANG_S} s")

    signal.signal(signal.SIGALRM, hang)
    # Past it an allocation fails as a MemoryError, which is a crash, and not this machine.
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = make_bench(Path(scratch))
        for number in numbers:
            signal.alarm(HANG_S)
            try:
                kind, outcome = try_one(bench, number, seed)
            except Exception as error:
                kind, outcome = kind_of(number), f"CRASH {type(error).__name__}: {error}"[:300]
            finally:
                signal.alarm(0)
            found.append((number, kind, outcome))
    return found


def fuzz(inputs: int, seed: int, workers: int = 2) -> dict[str, Any]:
    """Counts of outcomes per kind of file, and every failure with the number that makes it again."""
    outcomes: Counter[str] = Counter()
    failures = []
    slices = [range(start, min(start + SLICE, inputs)) for start in range(0, inputs, SLICE)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.fuzz.trials"])
    for numbers, found in in_processes(slices, seed, workers, context):
        if found is None:
            failures.append({"input": numbers.start, "outcome": f"the process died in one of {len(numbers)} inputs"})
            continue
        for number, kind, outcome in found:
            if outcome.split()[0].isupper():
                failures.append({"input": number, "outcome": outcome})
            outcomes[f"{kind}: {'FAILED' if outcome.split()[0].isupper() else outcome}"] += 1
    return {"inputs": inputs, "seed": seed, "outcomes": dict(sorted(outcomes.items())), "failures": failures}


def in_processes(slices: list[range], seed: int, workers: int, context: Any) -> Any:
    """Each slice with what `try_slice` found, or None where its process died.

    A process that dies takes the whole pool with it: what was left is tried again, each slice in a pool of its own.
    """
    left = []
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        tried = {pool.submit(try_slice, numbers, seed): numbers for numbers in slices}
        for future in concurrent.futures.as_completed(tried):
            if died(future):
                left.append(tried[future])
            else:
                yield tried[future], future.result()
    for numbers in left:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            future = pool.submit(try_slice, numbers, seed)
            yield numbers, None if died(future) else future.result()


def died(future: concurrent.futures.Future[Any]) -> bool:
    return isinstance(future.exception(), concurrent.futures.process.BrokenProcessPool)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description="Spoil files; see what readers say.")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, default=None, metavar="INPUT", help="one input, in this process")
    options = parser.parse_args(argv)
    if options.only is not None:
        with tempfile.TemporaryDirectory() as scratch:
            print(*try_one(make_bench(Path(scratch)), options.only, options.seed))
        return 0
    result = fuzz(options.inputs, options.seed)
    print(json.dumps(result, indent=1))
    return 1 if result["failures"] else 0
