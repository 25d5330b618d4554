"""ARC task files, read and checked.

The format is the ARC-AGI one: a task is `{"train": [{"input": grid, "output": grid}, ...], "test": [...]}`, a grid a
list of equally long lists of colours 0..9. A file holds one task, a dictionary of them, or a task a line (JSON lines);
a folder, one file per task.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pod_job.errors import JobError
from pod_job.formats.json_text import read_json_file
from pod_job.prompts.arc_lines import TaskLines, is_task_lines
from pod_job.prompts.sources.sample import BrokenTask

Grid = list[list[int]]
MOST_BYTES = 1 << 30
"""Size of a file that holds tasks in one object; of JSON lines there may be any number."""


def read_arc(path: Path, source: str, of_many: bool = False) -> Mapping[str, Any]:
    """Returns the tasks of a file by id, in its order, unchecked.

    Args:
        path: of the file, or of its copy on this machine.
        source: the place that the file is named by in errors.
        of_many: there are other files: one that is not JSON comes as the BrokenTask that says so.
    Raises:
        JobError: no such file, or it is not a JSON object.
    """
    if is_task_lines(path):
        return TaskLines(path, source)
    try:
        content = read_json(path, source)
    except JobError as error:
        if of_many:
            return {path.stem: BrokenTask(str(error))}
        raise
    if not isinstance(content, dict) and not of_many:
        rule = f"must be a JSON object of tasks, not {type(content).__name__}"
        raise JobError(f"tasks.path={source}: {rule}; records of a list can be read as JSON lines, one to a line")
    one = not isinstance(content, dict) or ("train" in content and "test" in content)
    return {path.stem: content} if one else content


def read_json(file: Path, source: str) -> Any:
    """Returns the content of a JSON file; JobError where it is missing or no JSON."""
    try:
        return read_json_file(file, MOST_BYTES)
    except FileNotFoundError:
        raise JobError(f"tasks.path={source} does not exist; give a tasks file or a folder") from None
    except (ValueError, OSError) as error:
        raise JobError(f"tasks.path={source} is not readable JSON ({error})") from error


def check_task(where: str, task: Any) -> None:
    """Raises BrokenTask that names the pair and what is wrong with it."""
    if isinstance(task, BrokenTask):
        raise task
    if not isinstance(task, dict) or not all(isinstance(task.get(part), list) for part in ("train", "test")):
        raise BrokenTask(f'{where} must be an object with the lists "train" and "test"')
    if not task["test"]:
        raise BrokenTask(f"{where} has no test input; there is nothing to prompt for")
    for part, needed in (("train", ("input", "output")), ("test", ("input",))):
        for i, pair in enumerate(task[part]):
            for side in needed:
                grid = pair.get(side) if isinstance(pair, dict) else None
                check_grid(f"{where}, {part}[{i}].{side}", grid)


def check_grid(where: str, grid: Any) -> None:
    """Raises BrokenTask unless `grid` is rectangular, not empty, and made of colors 0..9."""
    if not isinstance(grid, list) or not grid or not all(isinstance(row, list) and row for row in grid):
        raise BrokenTask(f"{where} is not a grid: a list of non-empty lists of colours 0..9 is needed")
    if len({len(row) for row in grid}) > 1:
        raise BrokenTask(f"{where} is not rectangular: its rows have {', '.join(str(len(row)) for row in grid)} cells")
    if bad := [cell for row in grid for cell in row if type(cell) is not int or not 0 <= cell <= 9]:
        raise BrokenTask(f"{where} has the cell {bad[0]!r}; colours are whole numbers 0..9")


def solution(task: dict[str, Any], test: int) -> Grid | None:
    """Returns the output of a test pair; None where the file does not have it (or keeps a placeholder there)."""
    output = task["test"][test].get("output")
    try:
        check_grid("", output)
    except BrokenTask:
        return None
    return output
