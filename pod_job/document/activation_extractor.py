"""Collector of activations in a loop of one's own, as the extraction document has it: `ActivationExtractor`."""

from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from pod_job.errors import JobError, at_least
from pod_job.interop.pickle_metadata import PickleMetadata
from pod_job.interop.pickle_writer import PickleWriter, new_item
from pod_job.storage.open import open_folder


@dataclass(kw_only=True)
class ActivationExtractionConfig:
    """Layers that an `ActivationExtractor` collects, and the place of its files: a folder, or gs://bucket/prefix."""

    layers_to_extract: list[int] = field(default_factory=lambda: [6, 12, 18, 23])
    activations_dir: str = "./activations"
    save_every_n_samples: int = 512
    model_name: str = "not recorded"

    def __post_init__(self) -> None:
        at_least("save_every_n_samples", self.save_every_n_samples, 1)


class ActivationExtractor:
    """Collects activations and writes them as pickle files, `save_every_n_samples` of a layer in each.

        with ActivationExtractor(ActivationExtractionConfig(layers_to_extract=[6, 12])) as activation_extractor:
            ...
            activation_extractor.extract_layer_activation(6, activations["layer_6"][:, -1, :], task_id, sample_idx)

    The block's end, or `finish`, writes the last files and metadata.json.
    """

    def __init__(self, config: ActivationExtractionConfig) -> None:
        self.config = config
        self.writer = PickleWriter(open_folder(config.activations_dir, "activations_dir"), config.save_every_n_samples)
        self.width = 0

    def __enter__(self) -> "ActivationExtractor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.finish()

    def extract_layer_activation(
        self, layer_idx: int, activation: np.typing.ArrayLike, task_id: str, sample_idx: int
    ) -> None:
        """Adds the vectors [D] or [B, D] of a layer; of one that is not in `layers_to_extract`, nothing.

        Raises:
            JobError: an array of another rank or width than those before.
        """
        if layer_idx not in self.config.layers_to_extract:
            return
        vectors = np.atleast_2d(np.asarray(activation, np.float32))
        self.width = self.width or vectors.shape[-1]
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise JobError(
                f"activation of layer {layer_idx} has shape {list(np.shape(activation))}; give [hidden_dim] or "
                f"[batch, hidden_dim], such as activations['layer_{layer_idx}'][:, -1, :]"
            )
        self.writer.add(f"layer_{layer_idx}", [new_item(task_id, sample_idx, vector) for vector in vectors])

    def finish(self) -> PickleMetadata:
        """Writes the last files and metadata.json, whose content is returned."""
        return self.writer.finish(self.config.model_name, list(self.config.layers_to_extract), self.width)
