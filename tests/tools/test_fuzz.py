"""A short `make fuzz`: readers of a damaged file refuse it by name or read the original data."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.fuzz import readers
from tools.fuzz.reader_targets import TARGETS, Target
from tools.fuzz.scratch import own_scratch
from tools.fuzz.trials import KINDS, try_slice

pytestmark = pytest.mark.slow

INPUTS = 240


def test_damaged_files_are_refused_by_name_or_read_as_they_were() -> None:
    trials = try_slice(range(INPUTS), seed=2)
    assert [trial for trial in trials if trial.failed] == []
    refused = {trial.kind for trial in trials if trial.outcome.startswith("refused")}
    assert refused == set(KINDS)


@pytest.mark.parametrize("name", TARGETS)
def test_each_reader_by_itself_takes_no_memory_for_what_is_not_there(name: str) -> None:
    tried = readers.try_slice(name, range(60), seed=3)
    assert tried.failures == {}
    assert tried.outcomes["refused"] >= 12
    assert tried.most_bytes < 256 << 20


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda root, path: 1 // 0, "CRASH"),
        (lambda root, path: bytearray(1 << 40), "CRASH"),
        (lambda root, path: path.read_bytes(), "WRONG"),
    ],
)
def test_what_must_not_happen_is_a_failure(read: Any, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(10**6))

    def sound_first(root: Path, path: Path) -> Any:
        return b"" if not next(calls) else read(root, path)

    target = Target("x", "*", lambda root: (root / "a").write_bytes(random.Random(0).randbytes(99)), sound_first, True)
    monkeypatch.setitem(TARGETS, "x", target)
    assert set(readers.try_slice("x", range(3), 0).outcomes) == {outcome}


def test_a_process_that_dies_leaves_no_files_behind() -> None:
    die = "import os, tempfile; print(tempfile.mkdtemp()); os.sys.stdout.flush(); os.abort()"
    with own_scratch():
        left = Path(subprocess.run([sys.executable, "-c", die], capture_output=True, text=True).stdout.strip())
        assert left.is_dir()
    assert not left.exists()
