# PYTHON_ARGCOMPLETE_OK
"""`pod-job VERB ...`, also as `python -m launch VERB ...`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from pod_job.entry import check_python

BUG = 70
"""Exit status of an error of this program itself, EX_SOFTWARE of sysexits.h: a supervisor starts `watch` again."""
READ_MODELS = ("plan", "doctor", "run", "watch")
"""Verbs that read a model's configuration and tokenizer."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb with its arguments, those of the command line by default; returns the exit status."""
    check_python()
    from launch.dispatch import dispatch  # what this imports needs the Python that was just checked

    if argv is not None:
        return dispatch(argv)
    try:
        words = sys.argv[1:]
        if words and words[0] in READ_MODELS and not {"-h", "--help"} & set(words):
            from launch.without_torch import import_transformers

            import_transformers()
        return dispatch(words)
    except Exception:
        traceback.print_exc()
        return BUG


if __name__ == "__main__":
    sys.exit(main())
