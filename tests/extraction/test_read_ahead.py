"""Reading ahead: the batches as they are one by one, errors in their place, a bounded number, and a prompt end."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.extraction import read_ahead as module
from pod_job.extraction.feeder import Prefetch
from pod_job.extraction.read_ahead import batches_ahead, read_ahead
from pod_job.host.stop_request import StopRequest
from pod_job.planning.inputs import Inputs, read_inputs
from pod_job.prompts.sources.sample import Sample
from tools.tiny_model import write_tiny_model

PROMPTS = [f"prompt {i} " + "x" * (i % 7) for i in range(61)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("read_ahead") / "model", layers=1)


@pytest.fixture(autouse=True)
def _many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that finish in any order, on a machine of any size."""
    monkeypatch.setattr(module, "tokenizer_threads", lambda: 4)
    monkeypatch.setattr(module, "CHUNK", 2)


def inputs(model: Path, prompts: list[Any], per_batch: int, *overrides: str) -> Inputs:
    tasks = model.parent / f"{len(list(model.parent.iterdir()))}.jsonl"
    tasks.write_text("".join(json.dumps({"text": text}) + "\n" for text in prompts))
    settings = {"model.path": model, "tasks.path": tasks, "tasks.format": "jsonl", "extract.layers": "[0]"}
    settings |= {"extract.seq_len": 40, "extract.save_every_n_samples": per_batch}
    settings |= {"storage.run_dir": model.parent / "run"}
    return read_inputs(load([*(f"{key}={value}" for key, value in settings.items()), *overrides]))


@dataclass(frozen=True)
class Observed(Inputs):
    """Inputs that note which batches were read, and hang in batch `hangs_at`."""

    read: list[int] = field(default_factory=list)
    hangs_at: int = 0

    def samples(self, batch: int) -> list[Sample]:
        self.read.append(batch)
        if batch == self.hangs_at:
            threading.Event().wait()
        return super().samples(batch)


def tokens(batches: Iterator[Any]) -> list[tuple[int, list[list[int]], list[str]]]:
    return [
        (number, [prompt.token_ids.tolist() for prompt in got.prompts], [str(broken) for broken in got.skipped])
        for number, got in batches
    ]


@pytest.mark.parametrize("per_batch", [1, 5, 100])
def test_batches_are_those_that_are_read_one_by_one(model: Path, per_batch: int) -> None:
    prompts = [text if i % 9 else "y" * 50 for i, text in enumerate(PROMPTS)]
    run = inputs(model, prompts, per_batch, "tasks.on_broken=skip")
    every = range(1, run.total_batches + 1)
    one_by_one = tokens((batch, run.prompts(batch)) for batch in every)
    assert sum(len(skipped) for _, _, skipped in one_by_one) == 7
    for _ in range(3):
        assert tokens(read_ahead(run, every, StopRequest())) == one_by_one


@pytest.mark.parametrize("fault", ["reading", "tokenizing"])
def test_an_error_comes_in_the_place_of_its_batch(model: Path, fault: str) -> None:
    prompts = [*PROMPTS]
    prompts[33] = "x" * 50 if fault == "tokenizing" else prompts[33]
    run = inputs(model, prompts, 5)
    if fault == "reading":
        lines = Path(run.config.tasks.path).read_text().splitlines(keepends=True)
        lines[33] = "[" + lines[33][1:]  # the size stays, so that it is the line that is found
        Path(run.config.tasks.path).write_text("".join(lines))
    batches, got = read_ahead(run, range(1, run.total_batches + 1), StopRequest()), []
    with pytest.raises(JobError) as refused:
        got.extend(number for number, _ in batches)
    assert got == list(range(1, 7 if fault == "tokenizing" else len(got) + 1))
    assert len(str(refused.value).splitlines()) == 1


def test_batches_ahead_are_bounded(model: Path) -> None:
    run = Observed(**vars(inputs(model, PROMPTS, 3)))
    batches = read_ahead(run, range(1, run.total_batches + 1), StopRequest())
    for taken in range(1, 4):
        next(batches)
        time.sleep(0.05)
        assert len(run.read) <= taken + batches_ahead(3, 4) < run.total_batches
    assert batches_ahead(512, 16) == 2
    assert batches_ahead(1, 16) <= 2 * 16 * module.CHUNK


def test_a_read_that_hangs_does_not_hold_up_a_stop(model: Path) -> None:
    run, stop = Observed(**vars(inputs(model, PROMPTS, 5)), hangs_at=3), StopRequest()
    batches = read_ahead(run, range(1, run.total_batches + 1), stop)
    assert [number for number, _ in islice(batches, 2)] == [1, 2]
    threading.Timer(0.1, stop.request, ["test"]).start()
    started = time.monotonic()
    assert list(batches) == []
    assert time.monotonic() - started < 5


def test_time_that_was_waited_for_an_item_is_told() -> None:
    go = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        go.wait(10)
        yield 2
        raise JobError("one line")

    steps = Prefetch(items(), 4)
    assert next(steps) == 1
    threading.Timer(0.2, go.set).start()
    before = steps.waited_s
    assert next(steps) == 2
    assert steps.waited_s - before > 0.1
    with pytest.raises(JobError, match="one line"):
        next(steps)
    assert list(steps) == []  # and does not wait for more
