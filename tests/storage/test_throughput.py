"""A measured rate is that of objects which were written and read, and nothing of them stays."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pod_job.commands import measure_bucket
from pod_job.formats.records import decode
from pod_job.run_folder.bucket_rate import HostRate
from pod_job.run_folder.layout import measurement_place
from pod_job.storage.checksums import Part, Stored
from pod_job.storage.local import LocalFolder
from pod_job.storage.throughput import Bounds, measure

SLOW_S = 0.05


class SlowFolder(LocalFolder):
    """A folder that takes SLOW_S for each object, reading twice as long; counts what is under way at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.lock = threading.Lock()
        self.busy = self.most_busy = 0
        self.contents: list[bytes] = []

    def create(self, name: str, parts: Sequence[Part]) -> Stored:
        self.contents.append(b"".join(map(bytes, parts)))
        with self.lock:
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
        time.sleep(SLOW_S)
        with self.lock:
            self.busy -= 1
        return super().create(name, parts)

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        time.sleep(2 * SLOW_S)
        return super().read(name, start, size)


def test_rates_are_those_of_the_folder(tmp_path: Path) -> None:
    folder = SlowFolder(tmp_path)
    rates = measure(folder, "place/", 2, Bounds(objects=6, seconds=60.0, object_bytes=1000))
    assert rates.bytes == 6000
    assert folder.most_busy == 2
    assert 0 < rates.write_bytes_s <= 6000 / (3 * SLOW_S)
    assert 0 < rates.read_bytes_s <= 6000 / (6 * SLOW_S)
    assert len(set(folder.contents)) == 6
    assert {len(content) for content in folder.contents} == {1000}


def test_no_object_is_begun_after_the_time_but_one_for_each_thread(tmp_path: Path) -> None:
    rates = measure(SlowFolder(tmp_path), "place/", 3, Bounds(objects=1000, seconds=0.0, object_bytes=1000))
    assert rates.bytes == 3000


def test_nothing_stays_also_of_an_interrupted_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = LocalFolder(str(tmp_path))
    folder.create("run.json", [b"{}"])
    folder.create("measurement/host_00/object_0000", [b"of a measurement that was killed"])
    folder.create("measurement/host_01/object_0000", [b"of another host that is measuring"])
    bounds = Bounds(objects=2, seconds=1.0, object_bytes=1000)
    measure(folder, measurement_place(0), 2, bounds)
    left = ["measurement/host_01/object_0000", "run.json"]
    assert folder.names("") == left

    def fail(self: LocalFolder, name: str) -> bytes:
        raise OSError("no network")

    monkeypatch.setattr(LocalFolder, "read", fail)
    with pytest.raises(OSError, match="no network"):
        measure(folder, measurement_place(0), 2, bounds)
    assert folder.names("") == left


def test_the_command_prints_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure_bucket.main([str(tmp_path), "--host", "3", "--objects", "1"]) == 0
    assert decode(capsys.readouterr().out, HostRate, "stdout").bytes == 64 << 20
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
