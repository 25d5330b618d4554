"""A host's log and status while several threads of the host write them."""

import threading
from pathlib import Path

import pytest

from pod_job.host import reporter
from pod_job.host.rendezvous import Host
from pod_job.host.reporter import Reporter
from pod_job.run_folder.layout import log_file
from pod_job.run_folder.status import Phase, read_status
from pod_job.storage.folder import Part
from pod_job.storage.local import LocalFolder

HOST = Host(index=0, count=1, attempt="a", coordinator=None)


class FirstWriterWins(LocalFolder):
    """A folder as Cloud Storage is: of two writers that replace an object at once, the later one loses.

    The next writer of the object `stalled` waits before it looks at the object's version until another writer has
    looked too, if one comes; that one writes last.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.versions: dict[str, int] = {}
        self.stalled: str | None = None
        self.waiting, self.other_looked, self.written = threading.Event(), threading.Event(), threading.Event()

    def replace(self, name: str, data: Part) -> bool:
        first = name == self.stalled and not self.waiting.is_set()
        other = name == self.stalled and not first and not self.written.is_set()
        if first:
            self.waiting.set()
            self.other_looked.wait(0.5)
        version = self.versions.get(name, 0)
        if other:
            self.other_looked.set()
            self.written.wait(5)
        stored = self.versions.get(name, 0) == version and super().replace(name, data)
        self.versions[name] = version + 1
        if first:
            self.written.set()
        return stored

    def last_line(self) -> str:
        return self.read(log_file(0)).decode().splitlines()[-1]


def test_who_sees_the_last_phase_sees_the_last_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever sees that phase may delete the machine."""
    caplog.set_level("INFO", "pod_job")
    seen = []

    class Watched(LocalFolder):
        def replace(self, name: str, data: Part) -> bool:
            stored = super().replace(name, data)
            status = read_status(self, 0)
            if status is not None and status.phase is Phase.done:
                seen.append(self.read(log_file(0)).decode())
            return stored

    with Reporter(Watched(str(tmp_path)), HOST) as it:
        it.phase(Phase.done)
    assert seen
    assert all(log.endswith("INFO done\n") for log in seen)


def test_the_last_line_is_stored_where_two_threads_write_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pod_job")
    monkeypatch.setattr(reporter, "REFRESH_S", 0.01)
    folder = FirstWriterWins(tmp_path)
    with Reporter(folder, HOST) as it:
        folder.stalled = log_file(0)
        reporter.log.warning("one more line")  # for which the refreshing thread writes the log
        assert folder.waiting.wait(5)
        it.phase(Phase.done)
    assert folder.last_line().endswith("INFO done")
