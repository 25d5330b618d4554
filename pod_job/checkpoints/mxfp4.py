"""MXFP4: blocks of 32 numbers of four bits with one scale, a power of two. They are read as bfloat16, which is exact.

Format: OCP Microscaling Formats 1.0 (E2M1 numbers, E8M0 scales). In a checkpoint, `NAME_blocks` [..., G, 16] and
`NAME_scales` [..., G] are a tensor NAME [..., 32 G]; a byte has the number of the lower place in its lower half.
"""

from collections.abc import Iterable, Iterator

import ml_dtypes
import numpy as np
from jaxtyping import UInt8

from pod_job.formats.safetensors import TensorSpec

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK_BYTES, BLOCK_NUMBERS = 16, 32
SCALE_BIAS = 127
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
NUMBERS = np.array([*MAGNITUDES, *(-x for x in MAGNITUDES)], np.float32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def pairs(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Yields the name of each tensor that two others make up, and theirs: blocks and scales."""
    known = set(names)
    for blocks in sorted(known):
        name = blocks.removesuffix(BLOCKS)
        if name != blocks and f"{name}{SCALES}" in known:
            yield name, blocks, f"{name}{SCALES}"


def spec_of(blocks: TensorSpec, scales: TensorSpec) -> TensorSpec | None:
    """Returns the tensor that blocks and scales make up, at the blocks' place; None where they are no MXFP4."""
    whole = blocks.dtype == scales.dtype == np.uint8 and blocks.shape == (*scales.shape, BLOCK_BYTES)
    if not whole or len(blocks.shape) < 3:
        return None
    shape = (*blocks.shape[:-2], blocks.shape[-2] * BLOCK_NUMBERS)
    return TensorSpec(BFLOAT16, shape, blocks.start, blocks.stop)


def dequantize(blocks: UInt8[np.ndarray, "R bytes"], scales: UInt8[np.ndarray, "R G"]) -> np.ndarray:
    """Returns rows of numbers in bfloat16, [R, 32 G]."""
    numbers = np.stack([NUMBERS[blocks & 15], NUMBERS[blocks >> 4]], axis=-1)
    grouped = numbers.reshape(len(scales), -1, BLOCK_NUMBERS)
    scaled = np.ldexp(grouped, scales.astype(np.int32)[..., None] - SCALE_BIAS)
    return scaled.astype(BFLOAT16).reshape(len(scales), -1)
