"""The one place of the launcher that starts processes: a command and its environment in, a running process out."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def capture(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs `argv` to its end, with this process's environment; stdout and stderr are kept apart, as text."""
    return subprocess.run(list(argv), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


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
