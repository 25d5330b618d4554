"""ActivationDataset and what it is made of, at its public address."""

from pod_job.reading.dataset import ActivationDataset, layer_not_found

__all__ = ["ActivationDataset", "layer_not_found"]
