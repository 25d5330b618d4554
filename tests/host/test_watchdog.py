"""A host leaves at once where nothing can be finished any more, and its reason reaches every other host."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from job_processes import free_port, overrides

from pod_job import environment
from pod_job.errors import JobError
from pod_job.host import watchdog
from pod_job.host.departure import Departure, announce, clear_departure, first_departure
from pod_job.host.rendezvous import Host, await_hosts
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.host.watchdog import Watchdog
from pod_job.run_folder import layout
from pod_job.run_folder.status import EndKind, Phase
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

HOST = Host(index=1, count=2, attempt="a", coordinator=None)


class Watched:
    """Host 1 of 2 with its watchdog, which notes the exit status instead of ending this process."""

    def __init__(self, path: Path) -> None:
        self.folder = open_folder(path)
        self.stop = StopRequest()
        self.reporter = Reporter(self.folder, HOST)
        self.left: list[int] = []
        self.watchdog = Watchdog(self.folder, HOST, self.stop, self.reporter, self.left.append)

    def wait(self, timeout_s: float = 5.0) -> dict[str, object]:
        """The status with which the host has left."""
        deadline = time.monotonic() + timeout_s
        while not self.left and time.monotonic() < deadline:
            time.sleep(0.01)
        return json.loads(self.folder.read(layout.status_file(1))) if self.left else {}


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(watchdog, "POLL_S", 0.02)
    monkeypatch.setattr(watchdog, "PEERS_EVERY_S", 0.05)
    monkeypatch.setattr(watchdog, "GRACE_S", 0.5)
    it = Watched(tmp_path)
    with it.watchdog:
        yield it
        it.watchdog.closed.set()


@pytest.mark.parametrize("phase", watchdog.NOTHING_IN_HAND)
def test_with_nothing_in_hand_a_wish_ends_the_host_at_once(watched: Watched, phase: Phase) -> None:
    watched.reporter.set(phase=phase)
    began = time.monotonic()
    watched.stop.request("SIGTERM")
    status = watched.wait()
    assert time.monotonic() - began < watchdog.GRACE_S
    assert (status["phase"], status["error"], watched.left) == ("stopped", "SIGTERM", [0])
    assert first_departure(watched.folder, "a") == Departure(1, EndKind.stopped, "SIGTERM")


def test_batches_in_hand_have_their_grace(watched: Watched) -> None:
    watched.reporter.set(phase=Phase.extracting)
    began = time.monotonic()
    watched.stop.request("notice of preemption")
    assert watched.wait()["phase"] == "stopped"
    assert time.monotonic() - began >= watchdog.GRACE_S


def test_a_host_that_ends_by_itself_is_left_alone(watched: Watched) -> None:
    watched.reporter.set(phase=Phase.done)
    watched.stop.request("SIGTERM")
    announce(watched.folder, "a", Departure(0, EndKind.bug, "KeyError: 'x'"))
    assert watched.wait(1.0) == {}


def test_a_failure_elsewhere_ends_the_host_and_names_the_other(watched: Watched) -> None:
    watched.reporter.set(phase=Phase.compiling)
    announce(watched.folder, "a", Departure(0, EndKind.bug, "KeyError: 'x'"))
    announce(watched.folder, "a", Departure(3, EndKind.bug, "later"))  # the first one counts
    status = watched.wait()
    assert (status["phase"], status["error"], watched.left) == ("failed", "host 0 failed: KeyError: 'x'", [2])


def test_an_earlier_start_of_the_same_name_does_not_count(watched: Watched) -> None:
    clear_departure(watched.folder, "a")
    announce(watched.folder, "other attempt", Departure(0, EndKind.bug, "KeyError: 'x'"))
    assert watched.wait(0.5) == {}
    announce(watched.folder, "a", Departure(0, EndKind.bug, "KeyError: 'x'"))
    clear_departure(watched.folder, "a")
    assert first_departure(watched.folder, "a") is None


def test_await_hosts_does_not_wait_for_a_host_that_was_asked_to_stop(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    other = Reporter(folder, HOST)
    other.set(phase=Phase.stopped, error="SIGTERM")
    other.write()
    with pytest.raises(JobError, match="host 1 was asked to stop before the start: SIGTERM"):
        await_hosts(folder, Host(index=0, count=2, attempt="a", coordinator=None), 60)


def test_a_signal_is_heard_while_the_main_thread_is_away() -> None:
    """No step of Python is made by the main thread, as in a compilation, while the wish comes."""
    program = """
        import hashlib, os, signal, sys, threading, time
        from pod_job.host.stop_request import StopRequest
        stop = StopRequest()
        stop.on_signal()
        def tell():
            while not stop:
                time.sleep(0.01)
            print(stop.reason, flush=True)
            os._exit(0)
        threading.Thread(target=tell).start()
        print("away", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000_000)
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "away\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    try:
        assert process.communicate(timeout=10)[0] == "SIGTERM\n"
    finally:
        process.kill()


def test_sigterm_is_given_back() -> None:
    before, wakeup = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    threads = threading.active_count()
    with StopRequest() as stop:
        stop.on_signal()
        stop.on_signal()
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(wakeup) == -1
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


# The job whose hosts never come out of their compilation; host FAILS raises there instead.
STUCK = """
    import hashlib, sys
    import pod_job.programs
    from pod_job import __main__ as entry
    from pod_job.host.rendezvous import this_host
    from pod_job.config.load import load
    def compile_step(*_):
        if this_host(load(sys.argv[2:]).pod).index == int(sys.argv[1]):
            raise RuntimeError("no such tile")
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000_000)
    pod_job.programs.compile_step = compile_step
    entry.run_to_exit(sys.argv[2:])
    """


def start_stuck(arguments: list[str], hosts: int, fails: int) -> list[subprocess.Popen[str]]:
    coordinator = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", textwrap.dedent(STUCK), str(fails), *arguments]
    more = [f"pod.hosts={hosts}", f"mesh.data={hosts}"]
    return [
        subprocess.Popen(
            [*command, *more],
            env=os.environ | environment.local_host(host, 1, coordinator, "stuck"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for host in range(hosts)
    ]


def in_phase(run_dir: Path, hosts: int, phase: str) -> bool:
    files = [run_dir / layout.status_file(host) for host in range(hosts)]
    return all(file.exists() and json.loads(file.read_text())["phase"] == phase for file in files)


@pytest.mark.slow
@pytest.mark.pod
def test_an_exception_on_one_host_ends_every_host_within_30_s(tmp_path: Path) -> None:
    """The others are inside a compilation, where nothing of jax's own would end them."""
    hosts = 4
    model = write_tiny_model(tmp_path / "model", layers=4)
    run_dir = tmp_path / "run"
    processes = start_stuck(overrides(model, run_dir), hosts, fails=2)
    try:
        processes[2].wait(timeout=120)
        failed = time.monotonic()
        said = [process.communicate(timeout=30)[0] for process in processes]
        took = time.monotonic() - failed
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [2, 2, 1, 2], "\n".join(said)
    statuses = [json.loads((run_dir / layout.status_file(host)).read_text()) for host in range(hosts)]
    assert [status["phase"] for status in statuses] == ["failed"] * hosts
    why = "RuntimeError: no such tile"
    assert [status["error"] for status in statuses] == [
        why if host == 2 else f"host 2 failed: {why}" for host in range(hosts)
    ]
    assert took < 30
    print(f"\n{hosts} hosts ended {took:.1f} s after one of them failed")


@pytest.mark.slow
@pytest.mark.pod
def test_sigterm_ends_a_host_that_compiles_and_the_others_with_it(tmp_path: Path) -> None:
    hosts = 2
    model = write_tiny_model(tmp_path / "model", layers=4)
    run_dir = tmp_path / "run"
    processes = start_stuck(overrides(model, run_dir), hosts, fails=-1)
    try:
        while not in_phase(run_dir, hosts, "compiling"):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=20)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * hosts, "\n".join(said)
    statuses = [json.loads((run_dir / layout.status_file(host)).read_text()) for host in range(hosts)]
    assert [(status["phase"], status["error"]) for status in statuses] == [("stopped", "SIGTERM")] * hosts
    assert not list(run_dir.glob("commits/*"))
