"""Four examples of activation extraction: `python example_activation_extraction.py`."""

import sys

from pod_job.document.example_activation_extraction import main

if __name__ == "__main__":
    sys.exit(main())
