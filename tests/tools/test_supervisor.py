"""Processes that a killed process had started end with it: groups, marked processes, sshds, the bucket server."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.bucket import bucket_available
from tools.fakepod import fakepod_available

ROOT = Path(__file__).parent.parent.parent
GROUP = """
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    supervisor.supervise(child.pid)
    print(child.pid, flush=True)
    """
RELEASED = """
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    supervisor.supervise(child.pid)
    supervisor.release(child.pid)
    print(child.pid, flush=True)
    """
MARKED = """
    setting = f"SUPERVISOR_TEST={os.getpid()}"
    supervisor.supervise_marked(setting)
    # A session of its own, as of a job on a host: no group leads there.
    child = subprocess.Popen(["setsid", "sleep", "600"], env=os.environ | dict([setting.split("=")]))
    print(child.pid, flush=True)
    """
SSHD = """
    key = root / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    hosts = Hosts(root / "node", ["127.211.1.1"], free_port(), key.with_suffix(".pub"), {"PATH": os.environ["PATH"]})
    hosts.start()
    print(hosts.sshds[0].pid, flush=True)
    """
BUCKET = """
    registered = []
    supervisor.supervise = lambda pid, register=supervisor.supervise: (registered.append(pid), register(pid))
    server = bucket_server(root / "buckets", "supervised")
    server.__enter__()
    print(registered[0], flush=True)
    """
HEAD = """
    import os, subprocess, sys, time
    from pathlib import Path
    from tools import supervisor
    from tools.bucket import bucket_server
    from tools.fakepod.hosts import Hosts
    from tools.fakepod.world import free_port
    root = Path(sys.argv[1])
    """


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """Runs a program that starts a process and prints its number; the program is killed then."""
    left: list[int] = []

    def start(program: str) -> int:
        text = textwrap.dedent(HEAD) + textwrap.dedent(program) + "time.sleep(600)\n"
        command = [sys.executable, "-c", text, str(tmp_path)]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        left.append(child)
        os.kill(child, 0)
        parent.kill()
        parent.wait()
        parent.stdout.close()
        return child

    yield start
    for child in left:
        if runs(child):
            os.kill(child, signal.SIGKILL)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid: int, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not runs(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("program", [GROUP, MARKED], ids=["group", "marked"])
def test_supervised_processes_end(orphan: Callable[[str], int], program: str) -> None:
    assert ends(orphan(program))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_released_process_stays(orphan: Callable[[str], int]) -> None:
    assert not ends(orphan(RELEASED), timeout_s=1.0)


def test_hosts_end_with_the_simulated_cloud(orphan: Callable[[str], int], require: Callable[[bool, str], None]) -> None:
    require(fakepod_available() is None, str(fakepod_available()))
    assert ends(orphan(SSHD))


def test_the_bucket_ends_with_its_starter(orphan: Callable[[str], int], require: Callable[[bool, str], None]) -> None:
    require(bucket_available() is None, str(bucket_available()))
    assert ends(orphan(BUCKET))
