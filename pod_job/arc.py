"""ARC task files: read, checked, and rendered as prompts.

The format is the ARC-AGI one: a task is `{"train": [{"input": grid, "output": grid}, ...], "test": [...]}`, a grid a
list of equally long lists of colours 0..9. A file holds one task or a dictionary of them; a folder, one file per task.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pod_job.errors import JobError

Grid = list[list[int]]


def read_arc(path: Path) -> dict[str, dict[str, Any]]:
    """Tasks by id, in the order of the file (of the file names, for a folder), each checked."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    tasks: dict[str, dict[str, Any]] = {}
    for file in files:
        content = read_json(file)
        if not isinstance(content, dict):
            raise JobError(f"tasks.path={file}: must be a JSON object of tasks, not {type(content).__name__}")
        tasks |= {file.stem: content} if "train" in content and "test" in content else content
    if not tasks:
        raise JobError(f"tasks.path={path}: there is no task in it")
    for task_id, task in tasks.items():
        check_task(f"tasks.path={path}: task {task_id}", task)
    return tasks


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        raise JobError(f"tasks.path={file} does not exist; give a tasks file or a folder") from None
    except (ValueError, OSError) as error:
        raise JobError(f"tasks.path={file} is not readable JSON ({error})") from error


def check_task(where: str, task: Any) -> None:
    """Raises JobError naming the pair and what is wrong with it."""
    if not isinstance(task, dict) or not all(isinstance(task.get(part), list) for part in ("train", "test")):
        raise JobError(f'{where} must be an object with the lists "train" and "test"')
    if not task["test"]:
        raise JobError(f"{where} has no test input; there is nothing to prompt for")
    for part, needed in (("train", ("input", "output")), ("test", ("input",))):
        for i, pair in enumerate(task[part]):
            for side in needed:
                grid = pair.get(side) if isinstance(pair, dict) else None
                check_grid(f"{where}, {part}[{i}].{side}", grid)


def check_grid(where: str, grid: Any) -> None:
    if not isinstance(grid, list) or not grid or not all(isinstance(row, list) and row for row in grid):
        raise JobError(f"{where} is not a grid: a list of non-empty lists of colours 0..9 is needed")
    if len({len(row) for row in grid}) > 1:
        raise JobError(f"{where} is not rectangular: its rows have {', '.join(str(len(row)) for row in grid)} cells")
    if bad := [cell for row in grid for cell in row if type(cell) is not int or not 0 <= cell <= 9]:
        raise JobError(f"{where} has the cell {bad[0]!r}; colours are whole numbers 0..9")


def prompts(task: dict[str, Any]) -> Iterator[str]:
    """One prompt per test input: the train pairs, then the input whose output is asked for."""
    shown = "".join(f"Input:\n{digits(pair['input'])}\nOutput:\n{digits(pair['output'])}\n\n" for pair in task["train"])
    for pair in task["test"]:
        yield f"{shown}Input:\n{digits(pair['input'])}\nOutput:\n"


def digits(grid: Grid) -> str:
    return "\n".join(" ".join(map(str, row)) for row in grid)
