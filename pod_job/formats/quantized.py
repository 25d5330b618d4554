"""Vectors quantized to eight bits a value, with a scale for every 64 columns of a row.

One scale per row would be too coarse where a few dimensions are thousands of times the others, as in residual streams:
measured on SmolLM2, the other columns of a row are off by up to 77%, and by 20% with groups of 64 (int8; float8: 3% in
either case). Scales in bfloat16 add 3% to the size.

R rows, D columns, G groups. A row in a file or in a reader's memory is D bytes of values and 2 G of scales; in the
transfer from device to host a float32 follows: the rounding error relative to the row's norm.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float, Shaped, UInt8

GROUP = 64
"""Columns that share a scale; the last group of a row may be smaller."""
SCALE = np.dtype(ml_dtypes.bfloat16)
LARGEST = {"int8": 126.5, "float8_e4m3fn": 447.0}
"""Quantized value of a group's largest one: as near the end of the range as the rounding of the scale allows."""


@dataclass(frozen=True)
class EightBit:
    """Quantized rows: the value of row r in column d is `values[r, d] * scales[r, d // GROUP]`.

    `errors`, where known, are the relative L2 errors of rows by rounding.
    """

    values: Shaped[np.ndarray, "R D"]
    scales: Shaped[np.ndarray, "R G"]
    errors: Float[np.ndarray, "R"] | None = None

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Any) -> "EightBit":
        """Returns the rows that a slice, an array of numbers or a mask selects."""
        return EightBit(self.values[rows], self.scales[rows], None if self.errors is None else self.errors[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns the vectors in float32, or converted from float32 to `dtype`."""
        vectors, scales = self.values.astype(np.float32), self.scales.astype(np.float32)
        with np.errstate(invalid="ignore"):  # 0 times the infinite scale of a group with an infinity
            if vectors.shape[1] % GROUP == 0:
                vectors.reshape(*scales.shape, GROUP)[...] *= scales[:, :, None]
            else:
                vectors *= np.repeat(scales, GROUP, axis=1)[:, : vectors.shape[1]]
        return vectors if dtype is None else vectors.astype(dtype, copy=False)


Vectors = np.ndarray | EightBit


def is_eight_bit(dtype: np.dtype) -> bool:
    return dtype.name in LARGEST


def groups(width: int) -> int:
    """Returns the number of groups in a row."""
    return -(-width // GROUP)


def scale_bytes(width: int, dtype: np.dtype) -> int:
    """Returns the bytes of a row's scales; 0 for wider dtypes."""
    return groups(width) * SCALE.itemsize if is_eight_bit(dtype) else 0


def row_bytes(width: int, dtype: np.dtype) -> int:
    """Returns the bytes of a stored row."""
    return width * dtype.itemsize + scale_bytes(width, dtype)


def transfer_layout(width: int, dtype: np.dtype) -> tuple[int, np.dtype]:
    """Returns length and dtype of a row in the transfer from a device to its host."""
    return (row_bytes(width, dtype) + 4, np.dtype(np.uint8)) if is_eight_bit(dtype) else (width, dtype)


def from_rows(raw: Shaped[np.ndarray, "R _"], width: int, dtype: np.dtype) -> Vectors:
    """Returns the vectors in rows of bytes, of a file or of a transfer, as views of the same memory."""
    if not is_eight_bit(dtype):
        return raw.view(dtype)
    stored = row_bytes(width, dtype)
    errors = raw[:, stored:].view(np.float32)[:, 0] if raw.shape[1] > stored else None
    return EightBit(raw[:, :width].view(dtype), raw[:, width:stored].view(SCALE), errors)


def to_rows(vectors: Vectors) -> UInt8[np.ndarray, "R bytes"]:
    """Returns the vectors as rows of bytes, as in a file."""
    if isinstance(vectors, EightBit):
        return np.concatenate([to_rows(vectors.values), to_rows(vectors.scales)], axis=1)
    return np.ascontiguousarray(vectors).view(np.uint8).reshape(len(vectors), -1)
