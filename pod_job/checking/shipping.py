"""Computes the reference that comes with a run, where the run is started. Needs torch, no jax."""

import time

import numpy as np

from pod_job.checking.gate_prompts import gate_prompts
from pod_job.checking.hf_reference import hf_taps
from pod_job.checking.shipped import Shipped, read_shipped, why_too_large, write_shipped
from pod_job.planning.inputs import Inputs


def ship_reference(inputs: Inputs) -> str:
    """Stores the reference in the run folder unless one that fits is there; returns what was done, for people."""
    sequences = distinct([prompt.token_ids for prompt in gate_prompts(inputs)])
    if isinstance(read_shipped(inputs, sequences), Shipped):
        return "vectors of Hugging Face's model are in the run folder already"
    if reason := why_too_large(inputs, sequences):
        return f"no vectors of Hugging Face's model are sent along: {reason}"
    started = time.monotonic()
    names, dtype = set(inputs.compared_widths), inputs.config.model.dtype.value
    taken = Shipped(*hf_taps(inputs.model_dir, sequences, names, dtype))
    write_shipped(inputs, sequences, taken)
    tokens = sum(map(len, sequences))
    return f"{tokens} positions by Hugging Face's model in {time.monotonic() - started:.1f} s, stored in the run folder"


def distinct(sequences: list[np.ndarray]) -> list[np.ndarray]:
    """Returns every sequence once, in order."""
    return list({sequence.tobytes(): sequence for sequence in sequences}.values())
