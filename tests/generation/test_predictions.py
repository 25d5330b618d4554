"""Predictions: answers brought back to the task's own form, two attempts by vote, malformed ones counted, accuracy."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_runs import folders

from pod_job.config.tasks import ArcConfig, TaskFormat, TasksConfig
from pod_job.generation.predictions import NO_GRID, PREDICTIONS, ArcSummary, Summary, two_best, write_predictions
from pod_job.prompts.arc_prompts import digits
from pod_job.prompts.augment import augmentation
from pod_job.run_folder.completions import Completion, store_completions
from pod_job.storage.open import open_folder

PAIR = {"input": [[1, 2]], "output": [[2, 1]]}
TASKS: dict[str, Any] = {
    "a": {"train": [PAIR], "test": [{"input": [[3, 4]], "output": [[4, 3]]}]},
    "b": {"train": [PAIR], "test": [{"input": [[5, 6]], "output": [[6, 5]]}, {"input": [[7]]}]},
}
ATTEMPTS = 3


@pytest.fixture
def config(tmp_path: Path) -> TasksConfig:
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(TASKS))
    return TasksConfig(path=str(path), format=TaskFormat.arc, arc=ArcConfig(predictions=ATTEMPTS))


def answer(config: TasksConfig, task_id: str, test: int, attempt: int, grid: list[list[int]] | None) -> Completion:
    """Returns the completion of a model that answers `grid` in the form of its prompt."""
    text = "no idea" if grid is None else digits(augmentation(config.arc, task_id, attempt).apply(grid)) + "\n"
    return Completion(task_id, test * ATTEMPTS + attempt, 5, [1, 2], text, "stop")


def test_prompts_that_were_left_out_have_no_prediction(tmp_path: Path, config: TasksConfig) -> None:
    folder = open_folder(str(tmp_path))
    store_completions(folder, 2, [answer(config, "b", 1, 2, [[7]])])  # no batch 1, no other prompt of b
    assert write_predictions(folder, 2, config).predictions == 1
    submission = json.loads((tmp_path / "outputs" / "submission.json").read_text())
    assert submission == {"b": [{"attempt_1": NO_GRID, "attempt_2": NO_GRID}, {"attempt_1": [[7]], "attempt_2": [[7]]}]}
    assert write_predictions(open_folder(tmp_path / "none"), 2, TasksConfig(path="x", format=TaskFormat.text)) == (
        Summary(predictions=0)
    )


def test_arc_answers_become_a_submission_and_a_score(tmp_path: Path, config: TasksConfig) -> None:
    folder, right_a, right_b, wrong = open_folder(str(tmp_path)), [[4, 3]], [[6, 5]], [[9, 9]]
    answers = {("a", 0): [wrong, right_a, right_a], ("b", 0): [None, wrong, right_b], ("b", 1): [None, None, None]}
    made = [
        answer(config, task_id, test, attempt, grid)
        for (task_id, test), grids in answers.items()
        for attempt, grid in enumerate(grids)
    ]
    store_completions(folder, 1, made[:5])
    store_completions(folder, 2, made[5:])
    summary = write_predictions(folder, 2, config)
    assert isinstance(summary, ArcSummary)
    submission = json.loads((tmp_path / "outputs/submission.json").read_text())
    assert submission == {
        "a": [{"attempt_1": right_a, "attempt_2": wrong}],
        "b": [{"attempt_1": wrong, "attempt_2": right_b}, {"attempt_1": NO_GRID, "attempt_2": NO_GRID}],
    }
    assert (summary.predictions, summary.malformed, summary.accuracy) == (9, 4, 1.0)
    assert (summary.test_inputs_with_solution, summary.test_inputs_solved_by_the_first_attempt) == (2, 1)
    assert (summary.tasks_with_solution, summary.tasks_solved) == (2, 2)
    lines = [json.loads(line) for line in (tmp_path / "outputs/predictions.jsonl").read_text().splitlines()]
    assert [line["correct"] for line in lines] == [False, True, True, False, False, True, None, None, None]
    assert lines[3]["problem"] == "no row of digits"


def test_other_sources_keep_texts(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    store_completions(folder, 1, [Completion("line_1", 0, 3, [1, 2], "yes", "end_token")])
    assert write_predictions(folder, 1, TasksConfig(format=TaskFormat.jsonl, path="x")) == Summary(predictions=1)
    line = json.loads((tmp_path / "outputs/predictions.jsonl").read_text())
    assert (line["task_id"], line["text"], line["ended"]) == ("line_1", "yes", "end_token")


@pytest.mark.parametrize("kind", ["local", "bucket"])
def test_predictions_are_in_the_order_of_samples_and_not_held_in_memory(
    tmp_path: Path, require: Callable[[bool, str], None], kind: str
) -> None:
    batches, per_batch = 30, 100
    with folders(kind, tmp_path, require) as new_folder:
        folder = new_folder()
        for batch in range(1, batches + 1):
            made = [
                Completion(f"{batch}/{i}", 0, 3, [1], f"{batch} {i} " + "x" * 1000, "stop") for i in range(per_batch)
            ]
            store_completions(folder, batch, made)
        config = TasksConfig(format=TaskFormat.text, path="x")
        tracemalloc.start()
        assert write_predictions(folder, batches, config) == Summary(predictions=batches * per_batch)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        written = folder.read(PREDICTIONS)
        lines = [json.loads(line)["task_id"] for line in written.splitlines()]
        assert lines == [f"{batch}/{i}" for batch in range(1, batches + 1) for i in range(per_batch)]
        assert peak < len(written) / 3
        write_predictions(folder, batches, config)
        assert folder.read(PREDICTIONS) == written


def test_attempts_are_the_grids_most_often_predicted() -> None:
    a, b, c = [[1]], [[2]], [[3]]
    assert two_best([a, b, b, c]) == [b, a]
    assert two_best([a]) == [a, a]
    assert two_best([]) == [NO_GRID, NO_GRID]
