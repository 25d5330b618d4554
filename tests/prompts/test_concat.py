"""Documents joined into rows: token for token those of TransformerLens and SAELens, each token with its document."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from begin_token import BEGIN, END, add_begin_token
from golden_models import GOLDENS
from local_run import run_here

from pod_job.checking.consent import Consent
from pod_job.checking.recompute import recompute
from pod_job.checking.verify import verify
from pod_job.config.extract import Exclude, ExtractConfig, Positions, TooLong
from pod_job.config.load import load
from pod_job.config.tasks import Separator
from pod_job.errors import JobError
from pod_job.prompts.concat import joined
from pod_job.prompts.prompt import PromptRules, Tokenized
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.prompts.tokens import usable_prompts
from pod_job.reading.dataset import ActivationDataset
from tools.tiny_model import write_tiny_model

GOLDEN = json.loads((GOLDENS / "concat.json").read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), layers=2)
    add_begin_token(folder)
    return folder


def rows_of(tokenizer: Any, seq_len: int, separator: Separator, documents: list, **extract: Any) -> Tokenized:
    config = ExtractConfig(**{"positions": Positions.all, "seq_len": seq_len} | extract)
    rules = PromptRules(seq_len, TooLong.refuse, extract=config, concat=separator)
    samples = [Sample(f"t{i}", 0, document) for i, document in enumerate(documents)]
    # As a batch that two threads tokenize.
    return joined([usable_prompts(tokenizer, part, rules) for part in (samples[:4], samples[4:])])


@pytest.mark.parametrize("name", GOLDEN["rows"])
def test_rows_are_those_of_the_other_libraries(model: Path, name: str) -> None:
    separator, seq_len = name.split()
    tokenizer, documents = load_tokenizer(model), GOLDEN["documents"]
    made = rows_of(tokenizer, int(seq_len), Separator(separator), documents)
    assert [row.token_ids.tolist() for row in made.prompts] == GOLDEN["rows"][name]
    assert made.samples == len(documents)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in documents]
    seen = []
    for number, row in enumerate(made.prompts):
        origin = row.origin
        assert origin is not None
        assert origin.window == number
        assert origin.sample_of is not None
        for place, token in enumerate(row.token_ids.tolist()):
            document = int(origin.samples[origin.sample_of[place]].task_id[1:])
            position = int(origin.positions[place])
            assert bool(row.special_marks[place]) == (position < 0 or position == len(ids[document]))
            if row.special_marks[place]:
                assert token in (BEGIN, END)
            else:
                assert ids[document][position] == token
                seen.append((document, position))
    everything = [(document, position) for document in range(len(ids)) for position in range(len(ids[document]))]
    assert seen == everything[: len(seen)]
    assert made.dropped_tokens >= len(everything) - len(seen)


def test_rows_that_are_chosen_are_chosen_by_their_document(model: Path) -> None:
    documents = GOLDEN["documents"]
    tokenizer = load_tokenizer(model)
    few = rows_of(
        tokenizer, 13, Separator.bos, documents, positions=Positions.every, every=3, exclude=[Exclude.special]
    )
    for row in few.prompts:
        assert row.origin is not None
        wanted = (row.origin.positions % 3 == 0) & ~row.special_marks
        assert row.places.tolist() == np.flatnonzero(wanted).tolist()
    without = rows_of(tokenizer, 13, Separator.eos, documents, exclude=[Exclude.special])
    assert not any(row.special_marks[row.places].any() for row in without.prompts)


def test_a_run_of_joined_documents_attends_across_them(model: Path, tmp_path: Path, torch_there: None) -> None:
    from pod_job.checking.hf_reference import load_reference, run_reference

    tasks = tmp_path / "tasks.jsonl"
    lines = [json.dumps({"task_id": f"t{i}", "text": text}) + "\n" for i, text in enumerate(GOLDEN["documents"])]
    tasks.write_text("".join(lines))
    changes = {"tasks.concat": "true", "extract.seq_len": 16, "extract.save_every_n_samples": len(lines)}
    run_here(model, tmp_path / "run", tasks, changes | {"mesh.data": 2, "mesh.model": 2, "sharding": "fsdp"})
    data = ActivationDataset(tmp_path / "run", 1)
    rows, reference = data.rows(slice(None)), load_reference(model)
    expected = np.concatenate(
        [run_reference(reference, np.array([ids]), ["layer_1"])["layer_1"][0] for ids in GOLDEN["rows"]["eos 16"]]
    )
    assert rows["token_id"].reshape(-1, 16).tolist() == GOLDEN["rows"]["eos 16"]
    assert rows["window"].reshape(-1, 16)[:, 0].tolist() == list(range(len(expected) // 16))
    errors = np.linalg.norm(data[:] - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() < 1e-5
    assert data.metadata.total_samples == len(lines)
    counts = data.metadata.prompts
    assert counts is not None
    assert 0 < counts.dropped_tokens < 16
    assert verify(tmp_path / "run").sound
    assert recompute(tmp_path / "run", 20, consent=Consent(follow_recorded=True))["layer_1"].largest < 1e-5
    with pytest.raises(JobError, match="concat is eos there, bos here"):
        run_here(model, tmp_path / "run", tasks, changes | {"tasks.separator": "bos"})


def test_a_separator_that_the_tokenizer_lacks_is_refused(tmp_path: Path) -> None:
    tokenizer: Any = load_tokenizer(write_tiny_model(tmp_path))
    assert tokenizer.bos_token_id is None
    with pytest.raises(JobError, match=r"tasks\.separator=bos: the model's tokenizer has no bos_token; use another"):
        rows_of(tokenizer, 8, Separator.bos, GOLDEN["documents"])
    assert rows_of(tokenizer, 8, Separator.none, GOLDEN["documents"]).prompts[0].token_ids[0] != BEGIN


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["mode=generate", "extract.positions=last"], "tasks.concat=true needs mode=prefill"),
        (["extract.positions=last"], "extract.positions=last is one vector per prompt"),
        (["extract.positions=mean"], "extract.positions=mean is one vector per prompt"),
        (
            ["extract.positions=all", "extract.too_long=tail"],
            "extract.too_long=tail does not go with tasks.concat=true",
        ),
        (
            ["extract.positions=all", "extract.too_long=split", "extract.overlap=2"],
            "extract.overlap=2 does not go with tasks.concat=true",
        ),
    ],
)
def test_what_does_not_go_with_joined_documents_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(JobError) as refused:
        load(["experiment=demo", "storage.run_dir=x", "tasks.concat=true", *overrides])
    assert str(refused.value).startswith(says)


def test_a_separator_without_joining_is_refused() -> None:
    with pytest.raises(JobError, match=r"tasks\.separator=bos is between joined documents; set tasks\.concat=true"):
        load(["experiment=demo", "storage.run_dir=x", "tasks.separator=bos"])
