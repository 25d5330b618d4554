"""`python -m pod_job.report`, the same command as `pod-job report`."""

import sys

from pod_job.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
