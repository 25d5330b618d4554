"""Computes the reference that comes with a run, where the run is started. Needs torch, no jax."""

import time

import numpy as np

from pod_job.checking.gate_prompts import gate_prompts
from pod_job.checking.hf_reference import hf_taps
from pod_job.checking.shipped import MOST_BYTES, Shipped, read_shipped, shipped_bytes, write_shipped
from pod_job.planning.inputs import Inputs
from pod_job.units import GB


def ship_reference(inputs: Inputs) -> str:
    """Stores the reference in the run folder unless one that fits is there; returns what was done, for people."""
    sequences = distinct([prompt.token_ids for prompt in gate_prompts(inputs)])
    if isinstance(read_shipped(inputs, sequences), Shipped):
        return "vectors of Hugging Face's model are in the run folder already"
    tokens = sum(map(len, sequences))
    if (size := shipped_bytes(inputs, tokens)) > MOST_BYTES:
        return f"no vectors of Hugging Face's model are sent along: {size / GB:.1f} GB are too many; take fewer taps"
    started = time.monotonic()
    names = {tap.name for tap in inputs.taps}
    taken = Shipped(*hf_taps(inputs.model_dir, sequences, names, inputs.config.model.dtype.value))
    write_shipped(inputs, sequences, taken)
    return f"{tokens} positions by Hugging Face's model in {time.monotonic() - started:.1f} s, stored in the run folder"


def distinct(sequences: list[np.ndarray]) -> list[np.ndarray]:
    """Returns every sequence once, in order."""
    return list({sequence.tobytes(): sequence for sequence in sequences}.values())
