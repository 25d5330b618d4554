"""A byte that changed, in a file of unchanged size, is noticed on every path that reads that kind of file."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from sample_runs import TAPS, batch, finished_run, identity

from pod_job.checking.verify import verify
from pod_job.commands.diff import main as diff
from pod_job.commands.report import main as report
from pod_job.errors import JobError
from pod_job.finishing.compact import compact
from pod_job.finishing.merge import merge
from pod_job.finishing.shuffle import shuffle
from pod_job.formats.quantized import EightBit, groups
from pod_job.interop.pickle_export import export_pickles
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import claim
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

SAMPLES = [40, 30]


def quantized_run(folder: Folder) -> None:
    claim(folder, identity(16, TAPS, "int8"))
    for number, samples in enumerate(SAMPLES, 1):
        made = batch(number, samples)
        taps = {tap: eight_bits(vectors) for tap, vectors in made.taps.items()}
        commit_batch(folder, Batch(number, made.n_samples, made.rows, taps), host=0)
    merge(folder)


def eight_bits(vectors: Any) -> EightBit:
    values = (np.asarray(vectors, np.float32) * 9).astype(np.int8)
    return EightBit(values, np.ones((len(values), groups(values.shape[1])), ml_dtypes.bfloat16))


def compacted_run(folder: Folder) -> None:
    finished_run(folder, SAMPLES)
    compact(folder)


RUNS: dict[str, Callable[[Folder], Any]] = {
    "plain": lambda folder: finished_run(folder, SAMPLES),
    "compacted": compacted_run,
    "quantized": quantized_run,
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns a sound run of each kind."""
    root = tmp_path_factory.mktemp("originals")
    for kind, make in RUNS.items():
        make(open_folder(root / kind))
    return {kind: root / kind for kind in RUNS}


def batches(run: Path, *_: Path) -> None:
    for tap in TAPS:
        list(ActivationDataset(run, tap).batches(16))


def numbered(run: Path, *_: Path) -> None:
    for tap in TAPS:
        data = ActivationDataset(run, tap)
        data[np.arange(len(data))[::-1]]
        data.raw(slice(None))


def provenance(run: Path, *_: Path) -> None:
    ActivationDataset(run, TAPS[0]).rows(slice(None))


def verified(run: Path, *_: Path) -> None:
    if problems := verify(run).problems:
        raise JobError("; ".join(problems))


def command(main: Callable[[list[str]], int], *arguments: Path | str) -> None:
    if main([str(argument) for argument in arguments]) == 2:
        raise JobError("status 2")


VECTORS, ROWS = "vectors", "rows"
PATHS: dict[str, tuple[tuple[str, ...], Callable[[Path, Path], Any]]] = {
    "batches": ((VECTORS,), batches),
    "rows by number": ((VECTORS,), numbered),
    "provenance": ((ROWS,), provenance),
    "excluded rows": ((ROWS,), lambda run, *_: ActivationDataset(run, TAPS[0], exclude="special")),
    "verify": ((VECTORS, ROWS), verified),
    "export": ((VECTORS, ROWS), lambda run, out: export_pickles(run, out)),
    "shuffle": ((VECTORS, ROWS), lambda run, out: shuffle(run, out, part_bytes=2000)),
    "compact": ((VECTORS, ROWS), lambda run, *_: compact(open_folder(run))),
    "report": ((VECTORS, ROWS), lambda run, *_: command(report, run)),
}
"""Kinds of files that each path reads, and the path: a function of the run and an empty folder."""


def files(run: Path, kind: str) -> list[Path]:
    """Returns the files of vectors, or those of rows tables, by themselves or joined."""
    named = [path for path in (run / layout.ACTIVATIONS).iterdir() if path.name != "metadata.json"]
    return sorted(path for path in named if path.name.startswith("rows") == (kind == ROWS))


def flips(path: Path) -> Iterator[int]:
    """Yields a byte in the middle and the last byte."""
    size = path.stat().st_size
    yield from (size - 1, size - size // 20)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", RUNS)
def test_it_is_noticed(
    originals: dict[str, Path], tmp_path: Path, kind: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if (kind, path) == ("compacted", "compact"):
        pytest.skip("nothing is left to join")
    of, read = PATHS[path]
    read(shutil.copytree(originals[kind], tmp_path / "sound"), tmp_path / "out")
    for content in of:
        for number in (0, -1):
            run = shutil.copytree(originals[kind], tmp_path / f"{content}_{number}")
            file = files(run, content)[number]
            whole = file.read_bytes()
            at = list(flips(file))[number]
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(JobError) as refused:
                read(run, tmp_path / f"out_{content}_{number}")
            said = str(refused.value) + capsys.readouterr().err
            assert file.name in said or file.stem.split("_batch")[0] in said, said


RECORDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "commit record": (layout.commit_file(1), ("plain", "compacted", "quantized")),
    "metadata.json": (layout.METADATA, ("plain", "compacted", "quantized")),
    "compaction record": (layout.COMPACTION, ("compacted",)),
}


@pytest.mark.parametrize("record", RECORDS)
def test_it_is_noticed_in_records(originals: dict[str, Path], tmp_path: Path, record: str) -> None:
    name, kinds = RECORDS[record]
    for kind in kinds:
        run = tmp_path / kind
        shutil.copytree(originals[kind], run)
        whole = (run / name).read_bytes()
        for at in (len(whole) // 3, len(whole) // 2, len(whole) - 5):
            (run / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(JobError, match=name):
                verified(run)
            if record == "metadata.json":
                for read in (lambda run: command(report, run), lambda run: command(diff, run, originals["plain"])):
                    with pytest.raises(JobError, match="status 2"):
                        read(run)
                for read in (batches, lambda run: export_pickles(run, tmp_path / "out"), provenance):
                    with pytest.raises(JobError, match=r"metadata\.json: damaged"):
                        read(run)
            else:
                with pytest.raises(JobError, match=name):
                    merge(open_folder(run))
        (run / name).write_bytes(whole)
        verified(run)
