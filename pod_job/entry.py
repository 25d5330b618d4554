"""Start of every command: a Python that cannot run it is refused in one line. Runs on any Python 3; imports little."""

import sys
from importlib import import_module
from importlib.util import find_spec

OLDEST = (3, 11)
NEEDED = ("hydra", "jax", "msgspec", "numpy", "rich")
"""Packages whose absence means that this Python is not the environment's."""
FIX = "use `make install` and `source .venv/bin/activate`"


def check_python() -> None:
    """Ends the process with status 2 and one line where this Python is too old or lacks the packages."""
    if sys.version_info < OLDEST:
        version = ".".join(map(str, sys.version_info[:3]))
        sys.exit(refusal(f"needs Python {OLDEST[0]}.{OLDEST[1]} or newer, this is {version}"))
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        sys.exit(refusal(f"needs the package {missing[0]}, which {sys.executable} does not have"))


def refusal(reason: str) -> int:
    """Prints the reason with its fix; the exit status."""
    print(f"error: pod-job {reason}; {FIX}", file=sys.stderr)
    return 2


def run_module(module: str) -> None:
    """Runs the command that `module` defines as `COMMAND`, and ends the process with its status."""
    check_python()
    sys.exit(import_module(module).COMMAND.main())
