"""One trial: a file is damaged, its readers are asked, and what they say is an outcome."""

import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pod_job.checking.verify import verify
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.finishing.compact import compact
from pod_job.finishing.merge import gather
from pod_job.interop.pickle_export import export_pickles
from pod_job.interop.pickle_reader import read_pickle
from pod_job.models.arch import read_arch_file
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.storage.open import open_folder
from tools.fuzz.memory import data_bytes, limited_data
from tools.fuzz.mutate import mutate, mutate_behind_checksum
from tools.random_run import RunShape, make_run
from tools.tiny_model import write_tiny_model

SHAPE = RunShape(batches=2, rows=20, samples=4, width=16, taps=("layer_6", "layer_12"), distinct=True)
HANG_S = 20
MOST_MEMORY = 4 << 30
"""Bytes that a process may take above those that it has."""
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
"""Kinds of inputs, and where their files lie."""
CHECKSUMMED = ("commit record", "metadata.json", "compaction record", "metadata.json, compacted")
"""Kinds with a checksum of their own: half of them are changed behind it, and of the others not one may pass."""
OVERRIDES = ["experiment=demo", "tasks.limit=8", "extract.layers=[1,2]", "mesh.data=4", "storage.run_dir=runs/x"]

Content = tuple[dict[str, list], list[list]]
"""Everything of a run that a trainer gets to see, as plain values: columns of provenance, and vectors of each tap."""


class Trial(NamedTuple):
    """An input, the kind of its file, and what the readers said."""

    number: int
    kind: str
    outcome: str

    @property
    def failed(self) -> bool:
        return self.outcome.split()[0].isupper()


@dataclass(frozen=True)
class Bench:
    """A folder with every file that is damaged, and the content that a reader must find in it."""

    root: Path
    content: Content


def make_bench(root: Path) -> Bench:
    make_run(open_folder(root / "run"), SHAPE)
    shutil.copytree(root / "run", root / "compacted")
    compact(open_folder(root / "compacted"))
    export_pickles(root / "run", root / "pickles")
    write_tiny_model(root / "model", layers=2)
    return Bench(root, read_run(root / "run"))


def read_run(run: Path) -> Content:
    datasets = [ActivationDataset(run, tap) for tap in SHAPE.taps]
    columns = datasets[0].rows(slice(None))
    return {name: column.tolist() for name, column in columns.items()}, [dataset[:].tolist() for dataset in datasets]


def try_run(bench: Bench, damaged: Path) -> str:
    """Returns what the readers of the run say in which `damaged` lies."""
    run, errors = bench.root / damaged.relative_to(bench.root).parts[0], list[str]()
    sound = False
    try:
        report = verify(run)
        sound, errors = report.sound, list(report.problems)
    except JobError as error:
        errors.append(str(error))
    try:
        gather(open_folder(run))
    except JobError as error:
        errors.append(str(error))
    try:
        content = read_run(run)
    except JobError as error:
        return refusal([*errors, str(error)], damaged)
    if sound:
        return "harmless" if content == bench.content else "WRONG DATA"
    return refusal(errors, damaged)


def refusal(errors: list[str], damaged: Path) -> str:
    """Returns `refused` where the damaged file is named; a lie in one file may show only beside another one."""
    if not errors:
        return "NO REASON"
    return "refused" if any(damaged.name in error for error in errors) else "refused, another file named"


def try_reader(reader: Callable[[Path], object], damaged: Path) -> str:
    try:
        reader(damaged)
    except JobError as error:
        return refusal([str(error)], damaged)
    return "read"


def try_overrides(rng: random.Random) -> str:
    words = OVERRIDES.copy()
    at = rng.randrange(len(words))
    words[at] = mutate(words[at].encode(), rng).decode("utf-8", "replace")
    try:
        load(words)
    except JobError as error:
        return "refused" if "\n" not in str(error) else "MANY LINES"
    return "read"


def kind_of(number: int) -> str:
    return list(KINDS)[number % len(KINDS)]


def try_one(bench: Bench, number: int, seed: int) -> Trial:
    """Damages one file, asks its readers, and puts it back."""
    rng, kind = random.Random(f"{seed}/{number}"), kind_of(number)
    if kind == "overrides":
        return Trial(number, kind, try_overrides(rng))
    path = rng.choice(sorted(bench.root.glob(KINDS[kind])))
    before = path.read_bytes()
    lie = kind in CHECKSUMMED and rng.random() < 0.5
    damaged = mutate_behind_checksum(before, rng) if lie else mutate(before, rng)
    path.write_bytes(damaged)
    try:
        if kind == "pickle":
            return Trial(number, kind, try_reader(read_pickle, path))
        if kind == "model config":
            return Trial(number, kind, try_reader(read_arch_file, path))
        outcome = try_run(bench, path)
        noticed = lie or kind not in CHECKSUMMED or outcome == "refused" or damaged == before
        return Trial(number, kind, outcome if noticed else f"NOT NOTICED: {outcome}")
    finally:
        path.write_bytes(before)


def try_slice(numbers: range, seed: int) -> list[Trial]:
    """Tries inputs in a folder of this process's own."""

    def hang(*_: object) -> None:
        raise TimeoutError(f"no answer within {HANG_S} s")

    signal.signal(signal.SIGALRM, hang)
    trials = []
    # Past it an allocation fails as a MemoryError, which is a crash, and not this machine.
    with tempfile.TemporaryDirectory() as scratch, limited_data(data_bytes() + MOST_MEMORY):
        bench = make_bench(Path(scratch))
        for number in numbers:
            signal.alarm(HANG_S)
            try:
                trials.append(try_one(bench, number, seed))
            except Exception as error:
                trials.append(Trial(number, kind_of(number), f"CRASH {type(error).__name__}: {error}"[:300]))
            finally:
                signal.alarm(0)
    return trials
