"""A local pod leaves no process behind, whatever its hosts do, and says which host failed first."""

import io
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from rich.console import Console

from launch import local, local_job
from launch.cause import Cause
from launch.host_commands import HostCommand
from launch.local import LocalPod, Stopped, coordinator_address, follow, stopped_by_signals
from launch.local_job import HostFailed, watch_hosts
from pod_job.commands.command_line import FAILED
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.run_folder.status import EndKind
from pod_job.storage.open import open_folder

ROOT = Path(__file__).parent.parent.parent
ATTEMPT = "20250101T000000Z-abcdef"


def python(program: str, *args: str) -> HostCommand:
    return HostCommand([sys.executable, "-c", textwrap.dedent(program), *args], {"PYTHONPATH": str(ROOT)})


def hang() -> HostCommand:
    return python("import time; time.sleep(600)")


def hang_deaf() -> HostCommand:
    return python(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )


def speak(host: int, phase: str, error: str | None = None, code: int = 0) -> HostCommand:
    """A host that writes one status and exits."""
    program = """
        import sys
        from pod_job.run_folder.status import HostStatus, Phase, write_status
        from pod_job.storage.open import open_folder
        run_dir, host, phase, error, code = sys.argv[1:]
        write_status(
            open_folder(run_dir), HostStatus(host=int(host), attempt="%s", phase=Phase(phase), error=error or None)
        )
        sys.exit(int(code))
        """
    return python(program % ATTEMPT, "RUN_DIR", str(host), phase, error or "", str(code))


def watched(commands: list[HostCommand], tmp_path: Path) -> str:
    """Runs the commands as a pod whose run folder is tmp_path/run; returns what the screen showed."""
    run_dir = str(tmp_path / "run")
    placed = [HostCommand([run_dir if arg == "RUN_DIR" else arg for arg in one.argv], one.env) for one in commands]
    screen = Console(file=io.StringIO(), width=200)
    watch_hosts(placed, open_folder(run_dir), 4, ATTEMPT, tmp_path / "logs", screen)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ends_when_all_hosts_are_done(tmp_path: Path) -> None:
    shown = watched([speak(0, "done"), speak(1, "done")], tmp_path)
    assert "hosts arrived 2/2" in shown
    assert "merge 1/1" in shown


def test_output_of_each_host_goes_to_its_own_log(tmp_path: Path) -> None:
    program = "import sys; print(sys.argv[1]); print('to stderr', file=sys.stderr)"
    with LocalPod([python(program, "one"), python(program, "two")], tmp_path) as pod:
        assert follow(pod, lambda: None) == {0: 0, 1: 0}
    assert sorted((tmp_path / "host_01.log").read_text().splitlines()) == ["to stderr", "two"]


def test_a_traceback_is_the_cause_and_ends_the_others(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(HostFailed, match=r"^host 1: ZeroDivisionError: division by zero$") as caught:
        watched([hang(), python("1 / 0"), hang()], tmp_path)
    assert time.monotonic() - began < local.SETTLE_S + local.GRACE_S
    assert not caught.value.cause.user_error
    assert "ZeroDivisionError" in caught.value.log.read_text()


def test_a_job_error_is_named_before_a_host_that_died_of_it(tmp_path: Path) -> None:
    reported = (
        f"import pathlib, time\nwhile not any(pathlib.Path({str(tmp_path)!r}).rglob('host_02.json')): time.sleep(0.05)"
    )
    reason = "Gloo all-reduce failed: Connection closed by peer [127.0.0.1]"
    dies_of_it = python(f"{reported}\nraise RuntimeError({reason!r})")
    user_error = speak(2, "failed", "extract.layers: layer 30 of a 30-layer model", code=2)
    with pytest.raises(HostFailed, match=r"^host 2: extract\.layers: layer 30 of a 30-layer model$") as caught:
        watched([dies_of_it, hang(), user_error], tmp_path)
    assert caught.value.cause.user_error


def test_a_killed_host_is_named_rather_than_those_that_abort(tmp_path: Path) -> None:
    aborts = python("import os, time; time.sleep(0.5); os.abort()")
    killed = python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(HostFailed, match=r"^host 2: ended by SIGKILL before it arrived"):
        watched([aborts, aborts, killed], tmp_path)


def test_a_silent_death_before_arrival_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostFailed, match=r"^host 0: ended with exit code 3 before it arrived and no message$"):
        watched([python("raise SystemExit(3)"), hang()], tmp_path)


def test_a_status_of_an_earlier_attempt_is_not_shown(tmp_path: Path) -> None:
    earlier = speak(0, "done")
    earlier = HostCommand([arg.replace(ATTEMPT, "earlier") for arg in earlier.argv], earlier.env)
    assert "hosts arrived" not in watched([earlier], tmp_path)


def test_a_host_deaf_to_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE_S", 0.3)
    with LocalPod([hang_deaf()], tmp_path) as pod:
        wait_until(lambda: "deaf" in pod.logs[0].read_text())
    assert pod.exits() == {0: -signal.SIGKILL}


def test_what_a_host_started_ends_with_it(tmp_path: Path) -> None:
    parent = python(
        """
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(child.pid, flush=True)
        time.sleep(600)
        """
    )
    with LocalPod([parent], tmp_path) as pod:
        wait_until(lambda: pod.logs[0].read_text().strip() != "")
        child = int(pod.logs[0].read_text())
        assert is_running(child)
    wait_until(lambda: not is_running(child) or Path(f"/proc/{child}/stat").read_text().split()[2] == "Z")


def test_a_command_that_cannot_start_ends_those_that_did(tmp_path: Path) -> None:
    pod = LocalPod([hang(), HostCommand(["/no/such/program"])], tmp_path)
    with pytest.raises(FileNotFoundError), pod:
        pass
    assert pod.exits() == {0: -signal.SIGTERM}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_hosts(signum: signal.Signals, tmp_path: Path) -> None:
    pod = LocalPod([hang(), hang()], tmp_path)
    with pytest.raises(Stopped, match=signum.name), stopped_by_signals(), pod:
        follow(pod, lambda: os.kill(os.getpid(), signum))
    assert set(pod.exits().values()) == {-signal.SIGTERM}


def test_signals_mean_what_they_did_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopped_by_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_taken_port_is_refused_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(JobError, match=rf"^pod\.port={port} cannot be used .*pod\.port=0"):
            coordinator_address(port)
    assert coordinator_address(port) == f"127.0.0.1:{port}"


def test_a_free_port_is_found() -> None:
    address, port = coordinator_address(0).split(":")
    assert address == "127.0.0.1"
    assert int(port) > 0


def test_hosts_do_not_share_the_terminal(tmp_path: Path) -> None:
    """A Ctrl-C in the terminal goes to the foreground process group, in which no host is."""
    with LocalPod([python("import os; print(os.getpgrp(), os.getsid(0), os.getpid())")], tmp_path) as pod:
        follow(pod, lambda: None)
    group, session, pid = (int(number) for number in pod.logs[0].read_text().split())
    assert group == session == pid != os.getpgrp()


def test_the_command_line_reports_a_signal(tmp_path: Path) -> None:
    """SIGTERM to a real launcher process: its exit status says so and its hosts are gone."""
    program = """
        import sys
        from pathlib import Path
        from launch import __main__ as command
        from launch.host_commands import HostCommand
        from launch.local import LocalPod, follow, stopped_by_signals
        from launch.verbs import run
        def hold(config, overrides, failures, as_json):
            host = HostCommand(["sh", "-c", "echo $$; exec sleep 600"])
            with stopped_by_signals(), LocalPod([host], Path(sys.argv[1])) as pod:
                return len(follow(pod, lambda: None))
        run.run_here = hold
        sys.exit(command.main(["run", "experiment=demo"]))
        """
    launcher = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "host_00.log"
    wait_until(lambda: log.exists() and log.read_text().strip() != "")
    launcher.terminate()
    _, said = launcher.communicate(timeout=20)
    assert launcher.returncode == 128 + signal.SIGTERM
    at_once, at_the_end = said.splitlines()
    assert at_once == "SIGTERM: ending the hosts, within 5 s; what is written stays"
    assert at_the_end.startswith("stopped by SIGTERM")
    assert not is_running(int(log.read_text()))


@pytest.mark.parametrize(("kind", "failures", "starts"), [(None, 0, 1), (None, 2, 3), (EndKind.bug, 2, 1)])
def test_lost_hosts_are_started_again_as_often_as_the_budget_allows(
    kind: EndKind | None, failures: int, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    log = tmp_path / "host_00.log"
    log.write_text("last line")

    def fails(*_: object) -> None:
        made.append(1)
        assert len(made) <= starts, "started once more than the budget allows"
        raise local_job.HostFailed(Cause(0, "ended by SIGKILL", kind), log)

    monkeypatch.setattr(local_job, "run_pod", fails)
    assert local_job.run_here(load(["experiment=demo"]), ["experiment=demo"], failures, as_json=False) == FAILED
    assert len(made) == starts
