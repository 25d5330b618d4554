"""`python -m pod_job.diff`, the same command as `pod-job diff`."""

import sys

from pod_job.commands.diff import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
