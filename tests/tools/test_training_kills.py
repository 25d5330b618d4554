"""Trials that kill training compare every tensor of every SAE with those of an undisturbed run, bit by bit."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tools.training_kills import differing

FILE = "saes/{}/sae_weights.safetensors"


def write(out: Path, changed: str | None = None, by: float = 0.0) -> Path:
    for sae in ("a", "b"):
        file = out / FILE.format(sae)
        file.parent.mkdir(parents=True)
        values = {name: np.ones((2, 3), np.float32) for name in ("W_enc", "W_dec")}
        if changed == sae:
            values["W_dec"][1, 2] += by
        save_file(values, file)
    return out


def test_a_tensor_that_differs_in_one_bit_is_named(tmp_path: Path) -> None:
    undisturbed = write(tmp_path / "undisturbed")
    assert differing(undisturbed, write(tmp_path / "same")) == []
    assert differing(undisturbed, write(tmp_path / "other", "b", 2.0**-23)) == ["b/W_dec"]


def test_an_sae_that_was_not_written_is_no_equal_one(tmp_path: Path) -> None:
    undisturbed, other = write(tmp_path / "undisturbed"), write(tmp_path / "other")
    (other / FILE.format("b")).unlink()
    with pytest.raises(FileNotFoundError):
        differing(undisturbed, other)
