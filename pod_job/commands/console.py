"""The console on which commands show tables."""

import sys

from rich.console import Console

PIPED_WIDTH = 160


def stdout_console() -> Console:
    """Returns a console with colors and the terminal's width on a terminal; with neither in a pipe or a file."""
    return Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)
