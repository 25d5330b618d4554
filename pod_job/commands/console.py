"""The console on which commands show tables."""

import sys

from rich.console import Console

from pod_job.terminal import SafeConsole

PIPED_WIDTH = 160


def stdout_console() -> Console:
    """Returns a console with colors and the terminal's width on a terminal; with neither in a pipe or a file."""
    return SafeConsole(width=None if sys.stdout.isatty() else PIPED_WIDTH)
