"""The fake hub holds what huggingface_hub sends it, and gives that back, as the hub does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub().serving(monkeypatch) as serving:
        yield serving


@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # within huggingface_hub
@pytest.mark.parametrize("part_bytes", [None, 1000])
def test_a_folder_that_is_uploaded_can_be_read(hub: FakeHub, tmp_path: Path, part_bytes: int | None) -> None:
    hub.part_bytes = part_bytes
    contents = {"README.md": b"# Name", "a/big.safetensors": bytes(range(256)) * 20, "a/empty.txt": b""}
    for name, content in contents.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(content)
    api = HfApi(token="hf_x")
    assert api.whoami()["name"] == "user"
    api.create_repo("user/saes")
    first = api.upload_folder(repo_id="user/saes", folder_path=tmp_path / "up", commit_message="SAEs")
    assert hub.repos["models/user/saes"].messages[-1] == "SAEs"
    for name, content in contents.items():
        path = hf_hub_download("user/saes", name, revision=first.oid, cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == content
    sent = [line for line in hub.requests if line.startswith("PUT")]
    assert len(sent) == (1 if part_bytes is None else 6)
    api.upload_folder(repo_id="user/saes", folder_path=tmp_path / "up")  # again, and nothing is sent
    assert [line for line in hub.requests if line.startswith("PUT")] == sent
    api.delete_file("a/empty.txt", "user/saes")
    assert sorted(api.list_repo_files("user/saes")) == ["README.md", "a/big.safetensors"]
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="user/saes", parent_commit=first.oid)


def test_a_private_repository_is_seen_with_its_token_alone(hub: FakeHub) -> None:
    hub.put("datasets/user/own", {"a.jsonl": b"{}"})
    hub.repos["datasets/user/own"].token = "hf_secret"
    assert HfApi(token="hf_secret").dataset_info("user/own").private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).dataset_info("user/own")
