"""Simple sequential extraction: `python simple_extraction_inference.py --model_path ... --tasks_file ...`."""

import sys

from pod_job.document.simple_extraction_inference import main

if __name__ == "__main__":
    sys.exit(main())
