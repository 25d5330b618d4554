"""Predictions of a run: outputs/predictions.jsonl, and for ARC a submission and how much of it is right."""

import json
import mmap
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pod_job.config.tasks import TaskFormat, TasksConfig
from pod_job.prompts.arc import Grid, solution
from pod_job.prompts.arc_answers import parse_grid
from pod_job.prompts.augment import augmentation
from pod_job.prompts.sources.arc_source import read_arc_files
from pod_job.prompts.sources.listing import list_source
from pod_job.run_folder.completions import Completion, read_completions
from pod_job.run_folder.layout import OUTPUTS
from pod_job.storage.folder import Folder

PREDICTIONS = OUTPUTS + "predictions.jsonl"
SUBMISSION = OUTPUTS + "submission.json"
SUMMARY = OUTPUTS + "summary.json"
NO_GRID: Grid = [[0]]
"""Stands in a submission where no answer was a grid; the format has no empty one."""


class Prediction(msgspec.Struct, kw_only=True):
    """A line of predictions.jsonl; `ended` is why the completion ends: end_token, stop or length."""

    task_id: str
    sample_idx: int
    text: str
    new_tokens: int
    ended: str


class Form(msgspec.Struct):
    """Form of the task in the prompt, as in `Augmentation`."""

    mirrored: bool
    quarters: int
    colours: tuple[int, ...]


class ArcPrediction(Prediction, kw_only=True):
    """An answer to an ARC task, its grid brought back to the task's own form.

    Attributes:
        test: number of the test input, from 0.
        prediction: number of the prediction for it, from 0.
        grid: None where the answer is no grid; `problem` is the reason.
        correct: None where the solution is not known.
    """

    test: int
    prediction: int
    form: Form
    grid: Grid | None
    problem: str | None
    correct: bool | None


class Summary(msgspec.Struct, kw_only=True):
    """Content of summary.json: counts."""

    predictions: int


class ArcSummary(Summary, kw_only=True):
    """Counts; a test input is solved when one of its two attempts is right, a task when all its inputs are."""

    malformed: int
    test_inputs_with_solution: int
    test_inputs_solved: int
    test_inputs_solved_by_the_first_attempt: int
    tasks_with_solution: int
    tasks_solved: int
    accuracy: float | None


def write_predictions(folder: Folder, batches: int, config: TasksConfig) -> Summary:
    """Writes predictions.jsonl, a line per sample in their order, and summary.json, which is returned.

    For ARC also submission.json: per test input the two grids most often predicted (the earlier one at a tie), in the
    format of the ARC Prize. Lines go through a temporary file: one batch's completions are in memory at a time.
    """
    scores = None
    if config.format is TaskFormat.arc:
        scores = ArcScores(config, read_arc_files(list_source(config), config))
    count = 0
    with tempfile.TemporaryFile() as lines:
        for batch in range(1, batches + 1):
            for completion in read_completions(folder, batch):
                record = Prediction(**described(completion)) if scores is None else scores.add(completion)
                lines.write(msgspec.json.encode(record) + b"\n")
                count += 1
        lines.flush()
        if count:
            with mmap.mmap(lines.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as whole:
                folder.replace(PREDICTIONS, whole)
    if scores is not None:
        folder.replace(SUBMISSION, json.dumps(scores.submission()).encode())
    summary = Summary(predictions=count) if scores is None else scores.summary()
    folder.replace(SUMMARY, msgspec.json.format(msgspec.json.encode(summary), indent=1))
    return summary


def described(completion: Completion) -> dict[str, Any]:
    """Returns the fields of `Prediction`."""
    return {
        "task_id": completion.task_id,
        "sample_idx": completion.sample_idx,
        "text": completion.text,
        "new_tokens": len(completion.token_ids),
        "ended": completion.ended,
    }


@dataclass
class ArcScores:
    """Answers read as grids so far. Samples come task by task, so all grids are held of the last task only.

    `attempts[task_id]` has the two attempts at each test input of a task that is done.
    """

    config: TasksConfig
    tasks: Mapping[str, Any]
    attempts: dict[str, list[list[Grid]]] = field(default_factory=dict)
    task_id: str | None = None
    grids: list[list[Grid]] = field(default_factory=list)
    predictions: int = 0
    malformed: int = 0

    def add(self, completion: Completion) -> ArcPrediction:
        """Counts one answer and returns its line of predictions.jsonl."""
        test, attempt = divmod(completion.sample_idx, self.config.arc.predictions)
        form = augmentation(self.config.arc, completion.task_id, attempt)
        grid, problem = parse_grid(completion.text)
        grid = None if grid is None else form.invert(grid)
        self.predictions += 1
        self.malformed += grid is None
        if completion.task_id != self.task_id:
            self._close_task()
            self.task_id = completion.task_id
        while len(self.grids) <= test:  # more than one more where prompts were left out
            self.grids.append([])
        self.grids[test] += [] if grid is None else [grid]
        right = solution(self.tasks[completion.task_id], test)
        return ArcPrediction(
            **described(completion),
            test=test,
            prediction=attempt,
            form=Form(form.mirrored, form.quarters, form.colours),
            grid=grid,
            problem=problem or None,
            correct=None if right is None else grid == right,
        )

    def submission(self) -> dict[str, list[dict[str, Grid]]]:
        """Returns {task id: the two attempts at each test input}."""
        self._close_task()
        return {
            task_id: [{f"attempt_{n}": grid for n, grid in enumerate(attempts, 1)} for attempts in tests]
            for task_id, tests in self.attempts.items()
        }

    def summary(self) -> ArcSummary:
        self._close_task()
        known = solved = first = tasks_known = tasks_solved = 0
        for task_id, tests in self.attempts.items():
            results = []
            for test, attempts in enumerate(tests):
                if (right := solution(self.tasks[task_id], test)) is not None:
                    results.append(right in attempts)
                    first += right == attempts[0]
            known, solved = known + len(results), solved + sum(results)
            tasks_known, tasks_solved = tasks_known + bool(results), tasks_solved + bool(results and all(results))
        return ArcSummary(
            predictions=self.predictions,
            malformed=self.malformed,
            test_inputs_with_solution=known,
            test_inputs_solved=solved,
            test_inputs_solved_by_the_first_attempt=first,
            tasks_with_solution=tasks_known,
            tasks_solved=tasks_solved,
            accuracy=solved / known if known else None,
        )

    def _close_task(self) -> None:
        if self.task_id is not None:
            self.attempts[self.task_id] = [two_best(grids) for grids in self.grids]
        self.task_id, self.grids = None, []


def two_best(grids: list[Grid]) -> list[Grid]:
    """Returns the two grids predicted most often, the earlier one at a tie; the first again where all are equal."""
    votes = Counter(json.dumps(grid) for grid in grids)
    best: list[Grid] = [json.loads(text) for text, _ in votes.most_common(2)] or [NO_GRID]
    return best if len(best) == 2 else best * 2
