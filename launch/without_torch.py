"""Transformers without torch in the launcher's process, which reads configurations and tokenizers alone.

Transformers imports torch wherever it is installed, which takes half the time of a command that finds nothing to do.
What torch is for, the reference of the parity gate, is computed in a process of its own.
"""

import importlib.util
import os
from importlib.machinery import ModuleSpec


def import_transformers() -> None:
    """Imports transformers in the belief that torch is not installed: it asks once, and keeps the answer."""
    find_spec = importlib.util.find_spec

    def without_torch(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "torch" else find_spec(name, package)

    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    importlib.util.find_spec = without_torch
    try:
        import transformers  # noqa: F401
    finally:
        importlib.util.find_spec = find_spec
