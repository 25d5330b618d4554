"""Models with arrays that Hugging Face has computed, made by `python -m tools.goldens`."""

from pathlib import Path

GOLDENS = Path(__file__).parent / "goldens"
