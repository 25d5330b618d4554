"""Runs that version 0.1.0 wrote (tests/data/old_runs) are read, verified, merged, compacted, shuffled and exported."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from pod_job.checking.verify import verify
from pod_job.finishing.compact import compact
from pod_job.finishing.merge import merge
from pod_job.finishing.shuffle import shuffle
from pod_job.formats.rows_table import COLUMNS
from pod_job.interop.pickle_export import export_pickles
from pod_job.interop.pickle_import import import_pickles
from pod_job.interop.pickle_reader import read_pickle
from pod_job.reading.dataset import ActivationDataset
from pod_job.report.overview import read_overview
from pod_job.run_folder.completions import read_completions
from pod_job.run_folder.pods import read_pods
from pod_job.run_folder.status import Phase, read_status
from pod_job.run_folder.timeline import read_timelines
from pod_job.storage.open import open_folder

OLD_RUNS = Path(__file__).parent.parent / "data/old_runs"
ATTEMPT = "20261126T090000Z-0a1b2c"
VECTORS = {
    "bfloat16": "15ebcc637c43dde0",
    "int8": "12bffa6037c85be4",
    "compacted": "12bffa6037c85be4",
    "shuffled": "30ff7cb63d1908f1",
    "imported": "15ebcc637c43dde0",
}
"""Per finished run the SHA-256 of layer 1's vectors in float32, as 0.1.0 read them."""


def digest(run: Path) -> str:
    return hashlib.sha256(np.asarray(ActivationDataset(run, 1)[:], np.float32).tobytes()).hexdigest()[:16]


def rows_of(run: Path) -> list[tuple]:
    """Every row's provenance and its vector of layer 1, sorted."""
    dataset = ActivationDataset(run, 1)
    provenance = dataset.rows(slice(None))
    keys = zip(*(provenance[name].tolist() for name in COLUMNS), strict=True)
    return sorted((*key, vector.tobytes()) for key, vector in zip(keys, dataset[:], strict=True))


@pytest.fixture
def copy(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the run that the test is parametrized with."""
    return Path(shutil.copytree(OLD_RUNS / request.node.callspec.params["name"], tmp_path / "run"))


@pytest.mark.parametrize("name", VECTORS)
def test_its_vectors_are_what_they_were(name: str) -> None:
    assert digest(OLD_RUNS / name) == VECTORS[name]


@pytest.mark.parametrize("name", VECTORS)
def test_it_is_sound(name: str) -> None:
    report = verify(OLD_RUNS / name)
    assert (report.sound, report.problems) == (True, [])


@pytest.mark.parametrize("name", [*VECTORS, "nonfinite"])
def test_its_merge_writes_the_same_metadata(name: str, copy: Path) -> None:
    merge(open_folder(copy))
    before, after = (json.loads((run / "activations/metadata.json").read_text()) for run in (OLD_RUNS / name, copy))
    for metadata in (before, after):
        del metadata["merged"], metadata["pod_job_version"], metadata["crc32c"]
    assert list(before) == list(after)
    assert json.dumps(before) == json.dumps(after)


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
def test_it_can_be_compacted(name: str, copy: Path) -> None:
    compact(open_folder(copy))
    assert digest(copy) == VECTORS[name]
    assert verify(copy).sound


@pytest.mark.parametrize("name", VECTORS)
def test_it_can_be_shuffled(name: str, tmp_path: Path) -> None:
    shuffle(OLD_RUNS / name, tmp_path)
    assert rows_of(tmp_path) == rows_of(OLD_RUNS / name)
    assert verify(tmp_path).sound


@pytest.mark.parametrize("name", VECTORS)
def test_it_can_be_exported_and_imported(name: str, tmp_path: Path) -> None:
    export_pickles(OLD_RUNS / name, tmp_path / "pickles", layers=[1])
    items = [item for file in sorted((tmp_path / "pickles").glob("*.pkl")) for item in read_pickle(file).activations]
    vectors = np.stack([item.activation for item in items])
    assert hashlib.sha256(vectors.tobytes()).hexdigest()[:16] == VECTORS[name]
    if name != "shuffled":  # in which rows of one sample lie apart
        import_pickles(tmp_path / "pickles", tmp_path / "imported")
        assert digest(tmp_path / "imported") == VECTORS[name]


def test_what_its_hosts_and_pods_recorded() -> None:
    folder = open_folder(OLD_RUNS / "bfloat16")
    status = read_status(folder, 0, ATTEMPT)
    assert status is not None
    assert (status.phase, status.batches, status.rows, status.error) == (Phase.done, 3, 41, None)
    assert len(list(read_timelines(folder))) == 1
    ends = [(pod.zone, pod.created, pod.ended) for pod in read_pods(folder)]
    assert ends == [("us-west4-a", 1795683600.25, 1795687200.5), ("us-east1-c", 1795687300.0, None)]


def test_what_it_was_completed_with() -> None:
    completions = read_completions(open_folder(OLD_RUNS / "int8"), 1)
    assert [(c.task_id, c.prompt_tokens, c.token_ids, c.text, c.ended) for c in completions] == [
        ("t0", 5, [231, 271, 152, 85], "\ufffd\ufffdv", "length"),
        ("t1", 7, [257, 174, 125, 186], "\ufffd\ufffd\ufffd", "length"),
    ]


def test_what_its_checks_found() -> None:
    overview = read_overview(OLD_RUNS / "bfloat16")
    assert overview.verdict == (True, "verified 2026-11-26")
    assert [parity.passed for parity in overview.metadata.parity] == [True]
    # Where a vector is not finite its error is infinite, for which JSON has no word and json.dumps has.
    [parity] = read_overview(OLD_RUNS / "nonfinite").metadata.parity
    assert (parity.passed, math.isinf(parity.errors["layer_0"].largest)) == (False, True)
