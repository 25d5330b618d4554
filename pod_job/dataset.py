"""Reading a run, at its public address: `ActivationDataset`, and `endless` scaled batches for a trainer."""

from pod_job.reading.dataset import ActivationDataset, layer_not_found
from pod_job.reading.scaling import Scaling, endless, scaling

__all__ = ["ActivationDataset", "Scaling", "endless", "layer_not_found", "scaling"]
