"""`python -m pod_job.export_sae_lens`, also `pod-job export-sae-lens`; `export_sae_lens` at its public address."""

import sys

from pod_job.commands.export_sae_lens import main
from pod_job.interop.sae_lens import export_sae_lens

__all__ = ["export_sae_lens", "main"]

if __name__ == "__main__":
    sys.exit(main())
