"""`python -m pod_job.import_pickles`, also `pod-job import-pickles`; `import_pickles` at its public address."""

import sys

from pod_job.commands.import_pickles import main
from pod_job.interop.pickle_import import import_pickles

__all__ = ["import_pickles", "main"]

if __name__ == "__main__":
    sys.exit(main())
