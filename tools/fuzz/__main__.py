"""The command line: `python -m tools.fuzz --inputs 10000`."""

import sys

from tools.fuzz.trials import main

if __name__ == "__main__":
    sys.exit(main())
