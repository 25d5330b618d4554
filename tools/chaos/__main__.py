"""Entry point of `python -m tools.chaos OUT_DIR --runs 300`."""

import sys

from pod_job.commands.command_line import exit_status
from tools.chaos.campaign import main

if __name__ == "__main__":
    sys.exit(exit_status(main))
