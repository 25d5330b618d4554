"""Prints facts in two aligned columns, the form in which the launcher shows results to a person."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

MOST_ALLOWED = ", the most that tasks.limit allows,"
"""Behind a number of samples that tasks.limit cut, or that it happens to equal."""


def show_facts(facts: Sequence[tuple[str, str]], console: Console, width: int = 0) -> None:
    """Prints one line per (name, value), values from column `width` on or, with 0, from the first that fits all names.

    Lines are never wrapped, so that paths and commands can be copied.
    """
    width = width or max(len(name) for name, _ in facts) + 2
    for name, value in facts:
        console.print(f"[bold]{name:<{width}}[/]{escape(value)}", highlight=False, soft_wrap=True)
