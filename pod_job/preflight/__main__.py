"""`python -m pod_job.preflight`, the same command as `pod-job preflight`."""

import sys

from pod_job.commands.preflight import main

if __name__ == "__main__":
    sys.exit(main())
