"""Generation as a job: vectors of a clean pass, the same on any pod, repeated after a kill; and where it is refused."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from job_processes import finish, start
from safetensors.numpy import save_file

from pod_job.checking.consent import Consent
from pod_job.checking.recompute import recompute
from pod_job.config.generate import GenerateConfig
from pod_job.errors import JobError
from pod_job.generation.completions import Ending, completed_text, find_end
from pod_job.prompts.tokenizer import end_tokens, load_tokenizer
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.completions import Completion, read_completions, store_completions
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

NEW, SAMPLES, PER_BATCH = 18, 10, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), layers=4)


def overrides(model: Path, run_dir: Path, **changes: Any) -> list[str]:
    values = {
        "mode": "generate",
        "model.path": model,
        "model.dtype": "float32",
        "tasks": "arc_sample",
        "tasks.limit": SAMPLES,
        "extract.positions": "all",
        "extract.dtype": "float32",
        "extract.seq_len": 200,
        "extract.too_long": "tail",
        "extract.rows_per_device": 4,
        "extract.layers": [1, 3],
        "extract.save_every_n_samples": PER_BATCH,
        "generate.max_new_tokens": NEW,
        "generate.temperature": 1.0,  # a draw that depends on rows, batches or the order of refilling would differ
        "parity.samples": 0,
        "storage.run_dir": run_dir,
    }
    return [f"{key}={value}" for key, value in (values | changes).items()]


def vectors(run_dir: Path) -> dict[tuple[str, int, int], tuple[int, np.ndarray]]:
    """(task_id, sample_idx, position) -> token id and layer 3's vector."""
    dataset = ActivationDataset(str(run_dir), layer=3)
    rows = dataset.rows(slice(None))
    keys = zip(rows["task_id"], rows["sample_idx"].tolist(), rows["position"].tolist(), strict=True)
    found = {key: (int(rows["token_id"][i]), dataset[i]) for i, key in enumerate(keys)}
    assert len(found) == len(dataset)
    return found


def completions(run_dir: Path, per_batch: int = PER_BATCH) -> list[Completion]:
    folder = open_folder(str(run_dir))
    return [one for batch in range(1, -(-SAMPLES // per_batch) + 1) for one in read_completions(folder, batch)]


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one host with one device."""
    run_dir = tmp_path_factory.mktemp("alone")
    finish(start(overrides(model, run_dir), 1, 1))
    return run_dir


@pytest.mark.pod
def test_vectors_are_those_of_one_clean_pass_over_prompt_and_completion(
    model: Path, alone: Path, tmp_path: Path
) -> None:
    generated, made = vectors(alone), completions(alone)
    assert len(made) == SAMPLES
    lengths = [one.prompt_tokens + len(one.token_ids) for one in made]
    assert len(generated) == sum(lengths)
    tokens = np.zeros((SAMPLES, max(lengths)), np.int32)
    for row, (one, length) in enumerate(zip(made, lengths, strict=True)):
        tokens[row, :length] = [generated[one.task_id, one.sample_idx, i][0] for i in range(length)]
        assert tokens[row, one.prompt_tokens : length].tolist() == one.token_ids
    save_file({"tokens": tokens, "lengths": np.array(lengths)}, tmp_path / "whole.safetensors")
    clean_run = {
        "mode": "prefill",
        "tasks.format": "tokens",
        "tasks.path": tmp_path / "whole.safetensors",
        "extract.seq_len": 256,
    }
    finish(start(overrides(model, tmp_path / "clean", **clean_run), 1, 1))
    clean = vectors(tmp_path / "clean")
    for row, one in enumerate(made):
        for position in range(lengths[row]):
            token, vector = generated[one.task_id, one.sample_idx, position]
            expected_token, expected = clean[f"row_{row}", 0, position]
            assert token == expected_token
            np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-4)


def test_rows_of_prompt_and_completion_are_computed_anew(alone: Path) -> None:
    found = recompute(alone, 40, consent=Consent(follow_recorded=True))
    assert list(found) == ["layer_1", "layer_3"]
    for deviation in found.values():
        assert deviation.rows == 40
        assert 0 < deviation.median <= deviation.largest < 1e-4


@pytest.mark.slow
@pytest.mark.pod
@pytest.mark.parametrize(("hosts", "devices", "data", "model_axis"), [(2, 1, 1, 2), (2, 2, 2, 2)])
def test_the_same_rows_and_texts_on_any_pod(
    model: Path, alone: Path, tmp_path: Path, hosts: int, devices: int, data: int, model_axis: int
) -> None:
    mesh = {"mesh.data": data, "mesh.model": model_axis, "sharding": "tensor"}
    finish(start(overrides(model, tmp_path, **mesh), hosts, devices))
    assert completions(tmp_path) == completions(alone)
    expected = vectors(alone)
    found = vectors(tmp_path)
    assert found.keys() == expected.keys()
    for key, (token, vector) in found.items():
        assert token == expected[key][0]
        np.testing.assert_allclose(vector, expected[key][1], rtol=1e-4, atol=1e-4)
    predictions = (tmp_path / "outputs/predictions.jsonl").read_bytes()
    assert predictions == (alone / "outputs/predictions.jsonl").read_bytes()


@pytest.mark.pod
@pytest.mark.parametrize(("positions", "shift"), [("last", -1), ("generated", 0)])
def test_positions_choose_rows_of_all(model: Path, alone: Path, tmp_path: Path, positions: str, shift: int) -> None:
    finish(start(overrides(model, tmp_path, **{"extract.positions": positions}), 1, 1))
    found, every = vectors(tmp_path), vectors(alone)
    assert found.keys() == {
        (one.task_id, one.sample_idx, one.prompt_tokens + i + shift)
        for one in completions(alone)
        for i in range(len(one.token_ids))
    }
    for key, (token, vector) in found.items():
        assert token == every[key][0]
        np.testing.assert_allclose(vector, every[key][1], rtol=1e-5, atol=1e-5)


def test_an_attempt_after_a_kill_repeats_the_completions_that_are_there(
    model: Path, alone: Path, tmp_path: Path
) -> None:
    """Also that draws are the same in batches of another size, in other rows."""
    # What a run leaves that chose other tokens (on another mesh, at a tie) and was killed before its first commit.
    folder, ending, per_batch = open_folder(str(tmp_path)), Ending(GenerateConfig(), (256,), load_tokenizer(model)), 5
    others = []
    for one in completions(alone)[:per_batch]:
        tokens = [7, *one.token_ids[1:]]
        others.append(msgspec.structs.replace(one, token_ids=tokens, text=completed_text(tokens, ending)))
    store_completions(folder, 1, others)
    sizes = {"extract.save_every_n_samples": per_batch, "extract.rows_per_device": 3}
    finish(start(overrides(model, tmp_path, **sizes), 1, 1))
    assert completions(tmp_path, per_batch) == [*others, *completions(alone)[per_batch:]]
    found, every = vectors(tmp_path), vectors(alone)
    for one in others:
        key = (one.task_id, one.sample_idx, one.prompt_tokens)
        assert found[key][0] == 7
        assert np.abs(found[key][1] - every[key][1]).max() > 0.01


@pytest.mark.slow
@pytest.mark.pod
@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_next"])
def test_a_killed_run_of_layers_with_states_ends_as_an_undisturbed_one(family: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", family, layers=4)
    sizes = {"extract.save_every_n_samples": 1, "extract.rows_per_device": 2}
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start(overrides(model, undisturbed, **sizes), 1, 1))
    process = start(overrides(model, killed, **sizes), 1, 1)[0]
    while process.poll() is None and len(list(killed.glob("commits/*.json"))) < 3:
        pass
    process.kill()
    process.communicate()
    assert not (killed / layout.METADATA).exists()
    finish(start(overrides(model, killed, **sizes), 1, 1))
    assert completions(killed, 1) == completions(undisturbed, 1)
    found, expected = vectors(killed), vectors(undisturbed)
    assert found.keys() == expected.keys()
    for key, (token, vector) in found.items():
        assert token == expected[key][0]
        np.testing.assert_allclose(vector, expected[key][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"extract.seq_len": 4090}, "extract.seq_len=4090 and generate.max_new_tokens=18 are 4108 in sum, more than"),
        ({"mode": "prefill", "extract.positions": "generated"}, "extract.positions=generated needs generated tokens"),
        ({"generate.max_new_tokens": 0}, "generate.max_new_tokens=0 is too small"),
        ({"generate.temperature": -1}, "generate.temperature=-1.0 is not a temperature"),
        ({"generate.stop": '[""]'}, "generate.stop has an empty text"),
    ],
)
def test_generation_that_cannot_be_is_refused(model: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    assert says in finish(start(overrides(model, tmp_path, **changes), 1, 1), status=2)


def test_predictions_that_were_not_written_are_written_by_the_next_start(model: Path, alone: Path) -> None:
    outputs = alone / "outputs"
    names = ("predictions.jsonl", "submission.json", "summary.json")
    before = {name: (outputs / name).read_bytes() for name in names}
    for name in names:
        (outputs / name).unlink()
    finish(start(overrides(model, alone), 1, 1))
    assert {name: (outputs / name).read_bytes() for name in names} == before
    order = [(one.task_id, one.sample_idx) for one in completions(alone)]
    lines = [json.loads(line) for line in before["predictions.jsonl"].splitlines()]
    assert [(line["task_id"], line["sample_idx"]) for line in lines] == order


def test_a_completion_ends_at_the_end_token_a_stop_text_or_the_limit(model: Path) -> None:
    tokenizer = load_tokenizer(model)
    assert end_tokens(model) == (256,)

    def end(text: str, *, end_token: bool = False, most: int = 8, stop: tuple[str, ...] = ()) -> Any:
        tokens = tokenizer(text)["input_ids"] + [256] * end_token
        return find_end(tokens, Ending(GenerateConfig(max_new_tokens=most, stop=list(stop)), (256,), tokenizer))

    assert end("1 2\n") is None
    assert end("1 2\n", end_token=True) == (5, "end_token")
    assert end("1 2\n3 4\n", most=8) == (8, "length")
    assert end("1 2\n\n3", stop=("\n\n",)) == (5, "stop")
    assert end("1 2\n", stop=("\n\n",)) is None
    assert end("1 2 3 4\n\n", most=8, stop=("\n\n",)) == (8, "length")
    assert end("1\n\n", end_token=True, stop=("\n\n",)) == (3, "stop")
    ending = Ending(GenerateConfig(stop=["\n\n"]), (256,), tokenizer)
    assert completed_text([*tokenizer("1\n\n2")["input_ids"], 256], ending) == "1"


def test_other_completions_of_a_batch_are_never_written_over(tmp_path: Path) -> None:
    folder = open_folder(str(tmp_path))
    one = Completion("a", 0, 3, [1, 2], "x", "length")
    store_completions(folder, 1, [one])
    store_completions(folder, 1, [one])
    with pytest.raises(JobError, match="another host stored other completions of batch 1 meanwhile; start"):
        store_completions(folder, 1, [Completion("a", 0, 3, [1, 3], "y", "length")])
    assert read_completions(folder, 1) == [one]
    path = tmp_path / layout.outputs_file(1)
    content = path.read_bytes()
    for old, new in ((b"[1,2]", b"[1,6]"), (b'"x"', b'"y"'), (b"length", b"lengti"), (b'32c":"', b'32c":"A')):
        assert old in content
        path.write_bytes(content.replace(old, new))
        with pytest.raises(JobError, match=r"line 1: damaged: its crc32c is not that of its content; copy the file"):
            read_completions(folder, 1)
    path.write_bytes(content)
    assert json.loads((tmp_path / layout.outputs_file(1)).read_text())["text"] == "x"
