"""Distributed inference with extraction: `python distributed_inference_with_activations.py --mesh_shape 8,8 ...`."""

import sys

from pod_job.document.distributed_inference_with_activations import (
    ActivationExtractionConfig,
    ActivationExtractor,
    main,
)

__all__ = ["ActivationExtractionConfig", "ActivationExtractor", "main"]

if __name__ == "__main__":
    sys.exit(main())
