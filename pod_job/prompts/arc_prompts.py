"""ARC tasks as prompts: the train pairs, then the test input whose output is asked for."""

from collections.abc import Callable
from typing import Any

from pod_job.config.tasks import ArcPrompt
from pod_job.prompts.arc import Grid
from pod_job.prompts.sources.sample import Prompt

INSTRUCTION = (
    "One rule turns each input grid into its output grid. Find it in the examples, then answer with the output grid "
    "of the last input and nothing else: one row per line, cells separated by spaces."
)


def render(task: dict[str, Any], test: int, style: ArcPrompt) -> Prompt:
    """Returns the prompt for test input number `test` of a checked task."""
    write = numbered if style is ArcPrompt.numbered else plain
    text = completion_prompt(task, test, write)
    return [{"role": "user", "content": f"{INSTRUCTION}\n\n{text}"}] if style is ArcPrompt.chat else text


def completion_prompt(task: dict[str, Any], test: int, write: Callable[[str, Grid], str]) -> str:
    """Returns text that a model without instruction tuning continues with the answer."""
    shown = "".join(f"{write('Input', pair['input'])}{write('Output', pair['output'])}\n" for pair in task["train"])
    return f"{shown}{write('Input', task['test'][test]['input'])}Output:\n"


def plain(name: str, grid: Grid) -> str:
    """Returns `Output:` and the digits."""
    return f"{name}:\n{digits(grid)}\n"


def numbered(name: str, grid: Grid) -> str:
    """Returns `Output, 2 rows x 3 columns:` and the digits, each row after its number from 1."""
    lines = "".join(f"{i}: {line}\n" for i, line in enumerate(digits(grid).split("\n"), start=1))
    return f"{name}, {len(grid)} rows x {len(grid[0])} columns:\n{lines}"


def digits(grid: Grid) -> str:
    """Returns a line of digits, separated by spaces, for each row."""
    return "\n".join(" ".join(map(str, row)) for row in grid)
