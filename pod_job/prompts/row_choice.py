"""The tokens of a prompt that have a row: by `extract.positions`, its roles, and without what is excluded. No jax."""

import hashlib
import json

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from pod_job.config.extract import Exclude, ExtractConfig, Positions
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.sources.splitmix import STEP, splitmix64


def chosen_rows(
    sample: Sample,
    positions: Int32[np.ndarray, " length"],
    candidates: Bool[np.ndarray, " length"],
    special: Bool[np.ndarray, " length"],
    extract: ExtractConfig,
) -> Int32[np.ndarray, " rows"] | None:
    """Returns the places in the prompt of the tokens that have a row, ascending; None: all.

    Args:
        positions: places of the tokens in their document, by which `every` and `sample` choose.
        candidates: False for tokens that cannot have a row.
        special: True for those that `extract.exclude=[special]` leaves out.
    """
    match extract.positions:
        case Positions.last | Positions.first:
            wanted = np.zeros(len(positions), bool)
            places = np.flatnonzero(candidates)
            wanted[places[-1:] if extract.positions is Positions.last else places[:1]] = True
        case Positions.every:
            assert extract.every is not None
            wanted = candidates & (positions % extract.every == 0)
        case Positions.sample:
            assert extract.sample is not None
            wanted = candidates & (draws(sample, positions, extract.sample_seed) < extract.sample)
        case _:
            wanted = candidates
    if Exclude.special in extract.exclude:
        wanted = wanted & ~special
    return None if wanted.all() else np.flatnonzero(wanted).astype(np.int32)


def draws(sample: Sample, positions: Int[np.ndarray, " length"], seed: int) -> Float[np.ndarray, " length"]:
    """Returns a number in [0, 1) for each position of a sample: the same in every run, however it is packed."""
    name = hashlib.blake2b(json.dumps([seed, sample.task_id, sample.sample_idx]).encode(), digest_size=8).digest()
    with np.errstate(over="ignore"):
        states = np.frombuffer(name, "<u8") + positions.astype(np.uint64) * STEP
    return (splitmix64(states) >> np.uint64(11)).astype(np.float64) * 2.0**-53
