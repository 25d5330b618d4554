"""Prompts looked at before a run: what a host would refuse is refused, on a sample and on a host's share alike."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from pod_job import environment
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.formats.records import encode
from pod_job.planning import prompt_survey
from pod_job.planning.inputs import Inputs, read_inputs
from pod_job.planning.prompt_survey import PromptSurvey, survey_run, survey_share
from pod_job.prompts.prompt import Tokenized
from pod_job.prompts.samples import ALL_UP_TO, sample_indices
from pod_job.prompts.sources.sample import Sample
from pod_job.run_folder.identity import RunRecord, claim
from pod_job.run_folder.layout import RUN
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

ASK = [{"role": "user", "content": "hello"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", layers=1)


def inputs(model: Path, prompts: list[Any], *overrides: str) -> Inputs:
    tasks = model.parent / "tasks.jsonl"
    tasks.write_text(
        "".join(json.dumps({"text": prompt, "task_id": f"t{i}"}) + "\n" for i, prompt in enumerate(prompts))
    )
    settings = {"model.path": model, "tasks.path": tasks, "storage.run_dir": model.parent / "run"}
    settings |= {"tasks.format": "jsonl", "extract.layers": "[0]", "extract.seq_len": 40}
    settings |= {"extract.save_every_n_samples": 2}
    return read_inputs(load([*(f"{key}={value}" for key, value in settings.items()), *overrides]))


def survey(run: Inputs) -> PromptSurvey:
    seen = survey_run(run)
    assert seen is not None
    return seen


def set_template(model: Path, template: str) -> None:
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))


@pytest.mark.parametrize("bad", [0, 3])
def test_a_prompt_that_cannot_be_used_is_refused_or_counted(model: Path, bad: int) -> None:
    prompts = ["short"] * 4
    prompts[bad] = "x" * 41
    refusing = inputs(model, prompts)
    for look in (lambda: survey_run(refusing), lambda: [survey_share(refusing, host, 2) for host in (0, 1)]):
        with pytest.raises(JobError, match=rf"task t{bad}, sample 0 has 41 tokens, more than extract.seq_len=40"):
            look()
    skipping = inputs(model, prompts, "tasks.on_broken=skip")
    counts = {"prompts": 3, "tokens": 15, "longest": 5, "samples": 4, "squares": 75.0}
    assert survey_run(skipping) == PromptSurvey(skipped={"too_long": 1}, **counts)
    assert [survey_share(skipping, host, 2) for host in (0, 1)] == [[5 if bad == 0 else 10], [10 if bad == 0 else 5]]


def test_the_refusal_of_a_long_sample_counts_the_others(model: Path) -> None:
    prompts = ["short", "x" * 41, "short", "x" * 77]
    with pytest.raises(JobError, match=r"task t1, .*; 2 of 4 samples are longer, the longest has 77 tokens$"):
        survey_run(inputs(model, prompts))


def test_a_run_of_which_every_row_is_excluded_is_refused(model: Path) -> None:
    set_template(model, "{{ messages[0].content }}<|im_end|>")
    last = ("extract.positions=last", "extract.exclude=[special]")
    empty = inputs(model, [ASK] * 4, *last)
    for look in (lambda: survey_run(empty), *(lambda host=host: survey_share(empty, host, 2) for host in (0, 1))):
        with pytest.raises(JobError, match=r"extract\.exclude=\[special\]: the last token of all 4 prompts is special"):
            look()
    mixed = inputs(model, [ASK, ASK, ASK, "text"], *last)
    assert survey(mixed).without_rows == 3
    assert survey_share(mixed, 0, 2) == [2 * len("hello<")]  # the other host's share has rows
    assert survey(inputs(model, [ASK], "extract.positions=all", last[1])).without_rows == 0
    set_template(model, "<|im_end|>")
    with pytest.raises(JobError, match=r"every token of all 1 prompts is special; use extract\.exclude=\[\]"):
        survey_run(inputs(model, [ASK], "extract.positions=all", last[1]))


def test_a_run_of_which_no_prompt_can_be_used_is_refused(model: Path) -> None:
    with pytest.raises(JobError, match=r"none of the prompts can be used \(2 too_long\)"):
        survey_run(inputs(model, ["x" * 41] * 2, "tasks.on_broken=skip"))


class CountingInputs(Inputs):
    """Inputs that count the samples that are tokenized."""

    counted = 0

    def tokenize(self, samples: Sequence[Sample]) -> Tokenized:
        CountingInputs.counted += len(samples)
        return super().tokenize(samples)


@pytest.mark.parametrize(("per_batch", "batches"), [(10, 40), (1, 400), (400, 1)])
def test_of_a_large_share_some_prompts_are_looked_at(
    model: Path, monkeypatch: pytest.MonkeyPatch, per_batch: int, batches: int
) -> None:
    """However many prompts there are: each is tokenized when its batch is computed, and not twice."""
    monkeypatch.setattr(prompt_survey, "ALL_UP_TO", 20)
    monkeypatch.setattr(CountingInputs, "counted", 0)
    run = inputs(model, ["a few words"] * 400, f"extract.save_every_n_samples={per_batch}")
    tokens = survey_share(CountingInputs(**vars(run)), 0, 1)
    assert set(tokens) == {per_batch * len("a few words")}
    assert 20 <= CountingInputs.counted <= 20 + 2 * len(tokens)
    assert len(tokens) == min(batches, max(prompt_survey.BATCHES, 20 // per_batch))


@pytest.mark.parametrize("count", [1, ALL_UP_TO, ALL_UP_TO + 1, 10 * ALL_UP_TO])
def test_a_sample_has_the_first_and_the_last_prompts_and_no_more_than_asked_for(count: int) -> None:
    chosen = list(sample_indices(count, seed=0))
    assert chosen == list(sample_indices(count, seed=0))
    assert len(set(chosen)) == len(chosen) == min(count, ALL_UP_TO)
    assert {0, count - 1} <= set(chosen) <= set(range(count))


def test_the_date_of_a_template_is_that_of_the_first_start(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_template(model, "{{ strftime_now('%d %b %Y') }}")
    monkeypatch.setenv(environment.ATTEMPT, "20240506T235959Z-abcdef")

    def text(run: Inputs) -> str:
        return run.tokenizer.decode(run.prompts(1).prompts[0].token_ids)

    first = inputs(model, [ASK])
    assert (text(first), first.identity.template_date) == ("06 May 2024", date(2024, 5, 6))
    claim(first.folder, first.identity)
    monkeypatch.setenv(environment.ATTEMPT, "20240507T000000Z-abcdef")
    later = inputs(model, [ASK], "tasks.max_tokens=11")
    assert (text(later), later.identity) == ("06 May 2024", first.identity)
    os.unlink(model.parent / "run" / RUN)
    assert text(inputs(model, [ASK])) == "07 May 2024"
    monkeypatch.delenv(environment.ATTEMPT)
    assert text(inputs(model, [ASK])) == datetime.now(UTC).strftime("%d %b %Y")


def test_a_run_of_an_earlier_version_goes_on_with_the_day_it_was_made(model: Path) -> None:
    set_template(model, "{{ strftime_now('%d %b %Y') }}")
    run = inputs(model, [ASK])
    record = RunRecord(2, run.identity, None, "2024-05-06T10:30:00+00:00", "0.1.0")
    old = json.loads(encode(record))
    for later_field in ("template_date", "token_probe"):
        del old["identity"][later_field]
    open_folder(str(model.parent / "run")).create(RUN, [json.dumps(old).encode()])
    later = inputs(model, [ASK])
    assert later.tokenizer.decode(later.prompts(1).prompts[0].token_ids) == "06 May 2024"


def test_the_date_is_not_part_of_a_run_whose_template_does_not_write_it(model: Path) -> None:
    assert inputs(model, [ASK]).identity.template_date is None
    set_template(model, "{{ strftime_now('%d %b %Y') }}")
    assert inputs(model, ["text"]).identity.template_date is None


def test_end_tokens_without_an_embedding_are_refused(model: Path) -> None:
    (model / "generation_config.json").write_text('{"eos_token_id": [256, 320]}')
    inputs(model, ["text"])
    with pytest.raises(JobError, match="eos_token_id=320 is none of the 320 rows of the model's embedding"):
        inputs(model, ["text"], "mode=generate", "generate.max_new_tokens=2")


def test_the_reasons_of_tasks_left_out_are_in_the_identity(model: Path) -> None:
    run = inputs(model, ["", "text", 5], "tasks.on_broken=skip")
    assert run.identity.tasks.skipped_by_reason == {"blank": 1, "broken": 1}
    claim(run.folder, run.identity)
    assert inputs(model, ["", "text", 5], "tasks.on_broken=skip").identity == run.identity
