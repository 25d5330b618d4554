"""`python -m pod_job.merge`, the same command as `pod-job merge`, and `merge` at its public address."""

import sys

from pod_job.commands.merge import main
from pod_job.finishing.merge import merge

__all__ = ["main", "merge"]

if __name__ == "__main__":
    sys.exit(main())
