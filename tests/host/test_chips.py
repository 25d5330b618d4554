"""Whoever holds the chips is ended if it is ours, named if it is not, and the lock file goes last."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pod_job import environment
from pod_job.errors import JobError
from pod_job.host import chips
from pod_job.host.chips import free_chips, processes_using

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="TPU VMs are Linux")
RUN = "gs://bucket/run"
HOLD = "import sys, time; held = open(sys.argv[1]); print('holds', flush=True); time.sleep(600)"
HOLD_DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + HOLD
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def chip(tmp_path: Path) -> Path:
    device = tmp_path / "vfio" / "0"
    device.parent.mkdir()
    device.touch()
    return device


@pytest.fixture
def hold(chip: Path) -> Iterator[Start]:
    """Starts a process that holds the chip."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str = HOLD, *words: str, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, str(chip), *words]
        process = subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def free(chip: Path, lock: Path, wait_s: float) -> None:
    free_chips(RUN, [f"{chip.parent}/[0-9]*"], lock, wait_s)


def test_an_earlier_job_of_ours_is_ended_and_then_the_lock_goes(chip: Path, hold: Start, tmp_path: Path) -> None:
    lock = tmp_path / "libtpu_lockfile"
    lock.touch()
    earlier = hold(**{environment.ATTEMPT: "earlier", environment.RUN: RUN})
    (user,) = processes_using([str(chip)])
    assert (user.pid, user.run, user.device) == (earlier.pid, RUN, str(chip))
    free(chip, lock, 20.0)
    assert earlier.wait(5) == -signal.SIGTERM
    assert not lock.exists()


def test_one_of_ours_that_is_deaf_is_killed(
    chip: Path, hold: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chips, "TERM_S", 0.5)
    earlier = hold(HOLD_DEAF, **{environment.ATTEMPT: "earlier", environment.RUN: f"{RUN}/"})
    free(chip, tmp_path / "none", 20.0)
    assert earlier.wait(5) == -signal.SIGKILL


def test_somebody_else_is_named_with_pid_and_command_and_left_alone(chip: Path, hold: Start, tmp_path: Path) -> None:
    lock = tmp_path / "libtpu_lockfile"
    lock.touch()
    other = hold()
    with pytest.raises(JobError, match=rf"^{chip} is held by process {other.pid} \(.*python.*-c .*\); end it: kill "):
        free(chip, lock, 0.5)
    assert other.poll() is None
    assert lock.exists()


@pytest.mark.parametrize(
    ("settings", "words", "job"),
    [
        ({environment.ATTEMPT: "a", environment.RUN: "gs://bucket/run2"}, [], ", a job of the run gs://bucket/run2"),
        ({environment.ATTEMPT: "a"}, ["storage.run_dir=gs://bucket/ru"], ", a job of the run gs://bucket/ru"),
        ({environment.ATTEMPT: "a"}, [], ""),  # nobody knows of which run
        ({}, [RUN, f"run_dir={RUN}"], ""),
    ],
)
def test_a_job_of_another_run_is_named_and_left_alone(
    settings: dict[str, str], words: list[str], job: str, chip: Path, hold: Start, tmp_path: Path
) -> None:
    other = hold(HOLD, *words, **settings)
    with pytest.raises(JobError, match=rf"held by process {other.pid} \(.*\){job}; end it: kill {other.pid}, then"):
        free(chip, tmp_path / "none", 0.3)
    assert other.poll() is None


def test_a_job_that_was_started_by_hand_is_known_by_its_arguments(chip: Path, hold: Start, tmp_path: Path) -> None:
    earlier = hold(HOLD, "-m", "pod_job", "tasks.limit=8", f"storage.run_dir={RUN}")
    free(chip, tmp_path / "none", 20.0)
    assert earlier.wait(5) == -signal.SIGTERM


def test_somebody_else_is_waited_for(chip: Path, hold: Start, tmp_path: Path) -> None:
    other = hold("import sys, time; held = open(sys.argv[1]); print('holds', flush=True); time.sleep(1)")
    began = time.monotonic()
    free(chip, tmp_path / "none", 20.0)
    assert other.wait(5) == 0
    assert time.monotonic() - began < 15


def test_this_process_and_free_chips_are_no_obstacle(chip: Path, tmp_path: Path) -> None:
    with chip.open():
        free(chip, tmp_path / "none", 0.0)
    free_chips(RUN, ["/no/such/device*"], tmp_path / "none", 0.0)
