"""`python -m pod_job.shuffle`, the same command as `pod-job shuffle`, and `shuffle` at its public address."""

import sys

from pod_job.commands.shuffle import main
from pod_job.finishing.shuffle import shuffle

__all__ = ["main", "shuffle"]

if __name__ == "__main__":
    sys.exit(main())
