"""Whatever lies in place of a file of a stranger's SAE, in any layout, it is refused in one line."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pod_job.errors import JobError
from pod_job.training.layouts.read import read_saes
from tools.fuzz.sae_targets import write_gemma, write_native, write_set, write_torch

LAYOUTS: dict[str, Callable[[Path], object]] = {"SAELens": write_native, "Gemma Scope": write_gemma}
LAYOUTS |= {"circuit-tracer": write_set}
if importlib.util.find_spec("torch"):
    LAYOUTS["dictionary_learning"] = write_torch
KINDS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a terabyte of holes": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    "no bytes": lambda path: path.touch(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_no_file_of_an_sae_is_refused_in_one_line(layout: str, kind: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.unlink()
        KINDS[kind](path)
        with pytest.raises(JobError) as refused:
            read_saes(path.parent)
        assert "\n" not in str(refused.value)
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(content)
        assert read_saes(path.parent)
