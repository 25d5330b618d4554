"""`python -m pod_job.verify`, the same command as `pod-job verify`, and `verify` at its public address."""

import sys

from pod_job.checking.verify import verify
from pod_job.commands.verify import main

__all__ = ["main", "verify"]

if __name__ == "__main__":
    sys.exit(main())
