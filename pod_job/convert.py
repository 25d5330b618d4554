"""`python -m pod_job.convert`, the same command as `pod-job convert`, and `convert` at its public address."""

import sys

from pod_job.checkpoints.convert import convert
from pod_job.commands.convert import main

__all__ = ["convert", "main"]

if __name__ == "__main__":
    sys.exit(main())
