"""`python -m pod_job.inspect`, the same command as `pod-job inspect`."""

import sys

from pod_job.commands.inspect import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
