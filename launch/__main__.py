# PYTHON_ARGCOMPLETE_OK
"""`pod-job VERB ...`, also as `python -m launch VERB ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pod_job.entry import check_python


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb with its arguments; returns the exit status."""
    check_python()
    from launch.dispatch import dispatch  # what this imports needs the Python that was just checked

    return dispatch(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
