"""Starts every process of the launcher: a command in, its result or a running process out."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pod_job.errors import JobError

CALL_TIMEOUT_S = 900.0
SSH_PACKAGE = {"ssh": "openssh-client", "scp": "openssh-client"}


class NotInstalled(JobError):
    """A program is not on this machine."""


@dataclass(frozen=True)
class Finished:
    """Result of a command: exit code and text."""

    code: int
    out: str
    err: str


def call(argv: Sequence[str], stdin: bytes = b"", timeout_s: float = CALL_TIMEOUT_S) -> Finished:
    """Runs a command to its end; after `timeout_s` it is killed, with all it started, and code is -9.

    Raises:
        NotInstalled: the program is not on this machine.
    """
    pipe = subprocess.PIPE
    try:
        # In a session of its own: gcloud's ssh processes outlive it unless they are ended with it.
        process = subprocess.Popen(list(argv), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except FileNotFoundError as error:
        package = SSH_PACKAGE.get(argv[0], "the Google Cloud SDK, cloud.google.com/sdk")
        raise NotInstalled(f"{argv[0]} is not installed; install {package}") from error
    late = ""
    try:
        out, err = process.communicate(stdin, timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        late = f"\nno answer within {timeout_s:g} s"
        out, err = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Finished(process.returncode, out.decode(errors="replace"), err.decode(errors="replace") + late)


def start(argv: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Starts `argv` with `env` added to this process's environment, stdout and stderr appended to `log`.

    The process leads its own session: a Ctrl-C in the terminal reaches the launcher alone, which then ends its hosts
    in order, and whatever a host itself started ends with it.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            list(argv),
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
