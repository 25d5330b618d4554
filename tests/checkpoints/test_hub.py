"""Models of the hub, served here by a small hub on loopback: what is fetched, what is read, and what is refused."""

import functools
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from golden_models import GOLDENS

from pod_job.checkpoints.checkpoint import check_checkpoint, fingerprint, read_checkpoint, weights_content
from pod_job.checkpoints.huggingface import TensorFiles
from pod_job.checkpoints.locate import find_model
from pod_job.errors import JobError
from pod_job.models.arch import read_arch_file
from pod_job.models.weight_table import weight_table

CASE = GOLDENS / "qwen2_full"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "org/model"


class Hub(BaseHTTPRequestHandler):
    """The few addresses of the hub that a model's files are found by."""

    def __init__(self, files: dict[str, bytes], sent: dict[str, int], *rest) -> None:
        self.files, self.sent = files, sent
        super().__init__(*rest)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPO}/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": f"{abs(hash(content)):040x}"[:40]}
                for name, content in self.files.items()
            ]
            self.answer(200, json.dumps(entries).encode())
        elif path.startswith(f"/api/models/{REPO}"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"/{REPO}/resolve/") and path.rpartition("/")[2] in self.files:
            self.send_range(path.rpartition("/")[2])
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound" if REPO in path else "RepoNotFound"})

    def send_range(self, name: str) -> None:
        content, status = self.files[name], 200
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(asked[1]), int(asked[2] or len(content)) + 1
            if start >= len(content):
                self.answer(416, b"", headers)
                return
            content, status = content[start:stop], 206
        if self.command == "GET":
            self.sent[name] = self.sent.get(name, 0) + len(content)
        self.answer(status, content, headers)

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, bytes], dict[str, int]]]:
    """The files that the hub has, and how many bytes of each it was asked for."""
    files = {name: (CASE / name).read_bytes() for name in ("config.json", "model.safetensors")}
    files["tokenizer.json"] = b"{}"
    files["chat_template.jinja"] = b"{{ messages }}"
    sent: dict[str, int] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, files, sent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield files, sent
    server.shutdown()
    server.server_close()


def test_only_small_files_are_fetched_and_headers_read(hub: tuple[dict[str, bytes], dict[str, int]]) -> None:
    files, sent = hub
    found = find_model(REPO)
    assert found.name == REPO
    assert sorted(path.name for path in found.directory.iterdir()) == sorted(files.keys() - {"model.safetensors"})
    assert "model.safetensors" not in sent
    checkpoint = read_checkpoint(found.weights)
    check_checkpoint(checkpoint, weight_table(read_arch_file(found.directory / "config.json")))
    header = int.from_bytes(files["model.safetensors"][:8], "little")
    assert sent["model.safetensors"] < header + 100
    assert fingerprint(checkpoint) == fingerprint(read_checkpoint(CASE))


def test_the_hub_and_its_cache_give_weights_the_same_checksum(hub: tuple[dict[str, bytes], dict[str, int]]) -> None:
    files, sent = hub
    found = find_model(REPO)
    on_hub = weights_content(read_checkpoint(found.weights))
    assert on_hub == {"model.safetensors": f"sha256:{hashlib.sha256(files['model.safetensors']).hexdigest()}"}
    assert sent["model.safetensors"] < len(files["model.safetensors"])
    (found.directory / "model.safetensors").write_bytes(files["model.safetensors"])
    assert weights_content(read_checkpoint(find_model(REPO).weights)) == on_hub


def test_a_range_is_all_that_is_read_of_a_tensor(hub: tuple[dict[str, bytes], dict[str, int]]) -> None:
    _, sent = hub
    name = "model.layers.1.mlp.down_proj.weight"
    checkpoint, truth = read_checkpoint(find_model(REPO).weights), read_checkpoint(CASE)
    assert isinstance(checkpoint, TensorFiles)
    assert isinstance(truth, TensorFiles)
    sent.clear()
    rows = checkpoint.read_rows(name, 3, 7)
    assert sent == {"model.safetensors": rows.nbytes}
    assert (rows == truth.read_rows(name, 3, 7)).all()


def test_a_model_whole_in_the_cache_is_read_there(hub: tuple[dict[str, bytes], dict[str, int]]) -> None:
    files, sent = hub
    directory = find_model(REPO).directory
    (directory / "model.safetensors").write_bytes(files["model.safetensors"])
    assert find_model(REPO).weights.local_path("model.safetensors") == directory / "model.safetensors"
    assert "model.safetensors" not in sent


def test_what_the_hub_does_not_have_is_one_line(hub: tuple[dict[str, bytes], dict[str, int]]) -> None:
    files, _ = hub
    with pytest.raises(JobError, match=r"model\.path=org/none is no local folder and cannot be had from the hub"):
        find_model("org/none")
    del files["model.safetensors"]
    with pytest.raises(JobError, match=r"has neither model\.safetensors nor"):
        read_checkpoint(find_model(REPO).weights)
    files["model.safetensors"] = (CASE / "model.safetensors").read_bytes()[:-10]
    with pytest.raises(JobError, match="truncated"):
        read_checkpoint(find_model(REPO).weights)
