"""`python -m pod_job.export`, the same command as `pod-job export`, and `export_pickles` at its public address."""

import sys

from pod_job.commands.export import main
from pod_job.interop.pickle_export import export_pickles

__all__ = ["export_pickles", "main"]

if __name__ == "__main__":
    sys.exit(main())
