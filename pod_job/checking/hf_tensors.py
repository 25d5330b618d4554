"""A checkpoint's tensors by their Hugging Face names, in float32, whichever form it has. No jax."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from pod_job.checkpoints.checkpoint import Checkpoint
from pod_job.checkpoints.huggingface import TensorFiles, checkpoint_names, map_ahead
from pod_job.checkpoints.orbax import Converted, fill_from_converted
from pod_job.models.weight_table import Weight


@dataclass(frozen=True)
class HfTensors:
    """The tensors of a model whose weights are `table`."""

    checkpoint: Checkpoint
    table: Mapping[str, Weight]

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor in float32, as the model of transformers has it."""
        if isinstance(self.checkpoint, TensorFiles):
            shape = self.checkpoint.tensors[name].shape
            rows = math.prod(shape[:-1])
            return self.checkpoint.read_rows(name, 0, rows).astype(np.float32).reshape(shape)
        return self._read_converted(self.checkpoint, name)

    def embedding(self, token_ids: Int[np.ndarray, "T"]) -> Float[np.ndarray, "T D"]:
        """Returns the embedding's rows of these tokens; no other row is read."""
        distinct, places = np.unique(token_ids, return_inverse=True)
        read = self._row_reader()
        return np.stack(list(map_ahead(read, distinct.tolist()))).astype(np.float32)[places]

    def _row_reader(self) -> Callable[[int], np.ndarray]:
        checkpoint, weight = self.checkpoint, self.table["embed"]
        if isinstance(checkpoint, TensorFiles):
            return lambda token: checkpoint.read_rows(weight.checkpoint_name, token, token + 1)[0]
        fill = fill_from_converted(checkpoint, "embed")

        def read(token: int) -> np.ndarray:
            row = np.empty((1, weight.shape[1]), np.float32)
            fill(weight, {((token, token + 1), (0, weight.shape[1])): row})
            return row[0]

        return read

    def _read_converted(self, checkpoint: Converted, name: str) -> np.ndarray:
        whole = None
        for key, weight in self.table.items():
            names = checkpoint_names(weight)
            if name not in names:
                continue
            spans = tuple((0, size) for size in weight.shape)
            place = np.unravel_index(names.index(name), weight.stack) if weight.stack else ()
            spans = (*((int(at), int(at) + 1) for at in place), *spans[len(place) :])
            array = np.empty([stop - start for start, stop in spans], np.float32)
            fill_from_converted(checkpoint, key)(weight, {spans: array})
            shape, part = weight.part_shape, weight.part
            array = array.reshape(shape[::-1]).T if weight.linear else array.reshape(shape)
            if part is None:
                return array
            whole = np.empty(weight.checkpoint_shape, np.float32) if whole is None else whole
            whole[part.index if part.rows else (..., part.index)] = array
        if whole is None:
            raise KeyError(name)
        return whole
