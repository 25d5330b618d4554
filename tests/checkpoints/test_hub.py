"""Models of the hub, served by the hub on loopback: what is fetched, what is read, and what is refused."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub
from golden_models import GOLDENS

from pod_job.checkpoints.checkpoint import check_checkpoint, fingerprint, read_checkpoint, weights_content
from pod_job.checkpoints.huggingface import TensorFiles
from pod_job.checkpoints.locate import find_model
from pod_job.errors import JobError
from pod_job.models.arch import read_arch_file
from pod_job.models.weight_table import weight_table

CASE = GOLDENS / "qwen2_full"
REPO = "org/model"
WEIGHTS = f"{REPO}/model.safetensors"
FILES = {name: (CASE / name).read_bytes() for name in ("config.json", "model.safetensors")}
FILES |= {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ messages }}"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that has the model; its `sent` is by REPO/FILE."""
    server = FakeHub()
    server.put(f"models/{REPO}", FILES)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with server.serving(monkeypatch):
        yield server


def test_only_small_files_are_fetched_and_headers_read(hub: FakeHub) -> None:
    found = find_model(REPO)
    assert found.name == REPO
    assert sorted(path.name for path in found.directory.iterdir()) == sorted(FILES.keys() - {"model.safetensors"})
    assert WEIGHTS not in hub.sent
    checkpoint = read_checkpoint(found.weights)
    check_checkpoint(checkpoint, weight_table(read_arch_file(found.directory / "config.json")))
    header = int.from_bytes(FILES["model.safetensors"][:8], "little")
    assert hub.sent[WEIGHTS] < header + 100
    assert fingerprint(checkpoint) == fingerprint(read_checkpoint(CASE))


def test_the_hub_and_its_cache_give_weights_the_same_checksum(hub: FakeHub) -> None:
    found = find_model(REPO)
    on_hub = weights_content(read_checkpoint(found.weights))
    assert on_hub == {"model.safetensors": f"sha256:{hashlib.sha256(FILES['model.safetensors']).hexdigest()}"}
    assert hub.sent[WEIGHTS] < len(FILES["model.safetensors"])
    (found.directory / "model.safetensors").write_bytes(FILES["model.safetensors"])
    assert weights_content(read_checkpoint(find_model(REPO).weights)) == on_hub


def test_a_range_is_all_that_is_read_of_a_tensor(hub: FakeHub) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    checkpoint, truth = read_checkpoint(find_model(REPO).weights), read_checkpoint(CASE)
    assert isinstance(checkpoint, TensorFiles)
    assert isinstance(truth, TensorFiles)
    hub.sent.clear()
    rows = checkpoint.read_rows(name, 3, 7)
    assert hub.sent == {WEIGHTS: rows.nbytes}
    assert (rows == truth.read_rows(name, 3, 7)).all()


def test_a_model_whole_in_the_cache_is_read_there(hub: FakeHub) -> None:
    directory = find_model(REPO).directory
    (directory / "model.safetensors").write_bytes(FILES["model.safetensors"])
    assert find_model(REPO).weights.local_path("model.safetensors") == directory / "model.safetensors"
    assert WEIGHTS not in hub.sent


def test_what_the_hub_does_not_have_is_one_line(hub: FakeHub) -> None:
    with pytest.raises(JobError, match=r"model\.path=org/none is no local folder and cannot be had from the hub"):
        find_model("org/none")
    hub.put(f"models/{REPO}", {"model.safetensors": None})
    with pytest.raises(JobError, match=r"has neither model\.safetensors nor"):
        read_checkpoint(find_model(REPO).weights)
    hub.put(f"models/{REPO}", {"model.safetensors": FILES["model.safetensors"][:-10]})
    with pytest.raises(JobError, match="truncated"):
        read_checkpoint(find_model(REPO).weights)


def test_an_adapter_beside_a_model_of_the_hub_is_refused(hub: FakeHub) -> None:
    hub.put(f"models/{REPO}", FILES | {"adapter_config.json": b'{"base_model_name_or_path": "org/base"}'})
    with pytest.raises(
        JobError, match=r"^model\.path=org/model: adapter_config\.json says that an adapter of org/base"
    ):
        find_model(REPO)
