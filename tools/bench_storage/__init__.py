"""What storage costs: writing and reading vectors beside plain files and other formats, shares, peak memory.

`python -m tools.bench_storage [write read bucket metadata merge memory]` prints JSON, and a table on stderr.
"""

import os

# As the hosts of a job have it: BLAS threads that wait for each other count as CPU time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
