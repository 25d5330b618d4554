"""Equivalent forms of an ARC task: turned, mirrored and recoloured, each with its way back."""

import hashlib
import random
from dataclasses import dataclass
from typing import Any

from pod_job.config.tasks import ArcConfig, Augment
from pod_job.prompts.arc import Grid

COLOURS = tuple(range(10))


@dataclass(frozen=True)
class Augmentation:
    """Form of a task: mirrored left to right, then turned clockwise by quarters; color c becomes `colours[c]`."""

    mirrored: bool = False
    quarters: int = 0
    colours: tuple[int, ...] = COLOURS

    def apply(self, grid: Grid) -> Grid:
        """Returns the grid in this form."""
        grid = [[self.colours[cell] for cell in row] for row in grid]
        grid = [row[::-1] for row in grid] if self.mirrored else grid
        for _ in range(self.quarters):
            grid = turn(grid)
        return grid

    def invert(self, grid: Grid) -> Grid:
        """Undoes `apply`: invert(apply(grid)) == grid."""
        for _ in range(-self.quarters % 4):
            grid = turn(grid)
        grid = [row[::-1] for row in grid] if self.mirrored else grid
        return [[self.colours.index(cell) for cell in row] for row in grid]

    def apply_to_task(self, task: dict[str, Any]) -> dict[str, Any]:
        """Returns the task with every input and train output in this form."""
        if self == Augmentation():
            return task
        train = [{side: self.apply(pair[side]) for side in ("input", "output")} for pair in task["train"]]
        return {"train": train, "test": [{"input": self.apply(pair["input"])} for pair in task["test"]]}


def turn(grid: Grid) -> Grid:
    """Returns the grid after a quarter turn clockwise."""
    return [list(row) for row in zip(*grid[::-1], strict=True)]


def augmentation(config: ArcConfig, task_id: str, attempt: int) -> Augmentation:
    """Returns the form that prediction number `attempt` sees: the task itself for 0, else drawn from `arc.seed`.

    Any eight predictions in a row see eight different geometries. Color 0 is the background in most tasks and stays.
    """
    if attempt == 0 or config.augment is Augment.none:
        return Augmentation()
    digest = hashlib.sha256(f"{config.seed}/{task_id}/{attempt}".encode()).digest()
    geometry = attempt % 8 if config.augment is not Augment.colours else 0
    colours = list(COLOURS[1:])
    if config.augment is not Augment.geometry:
        random.Random(digest).shuffle(colours)
    return Augmentation(geometry >= 4, geometry % 4, (0, *colours))
