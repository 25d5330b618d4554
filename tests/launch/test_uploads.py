"""Task files and models of a workstation reach a bucket once, whole, and hosts read there what the workstation has."""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden_models import GOLDENS
from sample_runs import BUCKET as EMULATED
from sample_runs import folders
from strict_bucket import BUCKET, StrictBucket, strict_bucket

from launch.cloud import sending, uploads
from launch.cloud.uploads import Placed, to_upload, with_uploads
from launch.verbs.plan import uploads_of
from pod_job.checkpoints.checkpoint import read_checkpoint, weights_content
from pod_job.checkpoints.locate import find_model
from pod_job.config.load import from_json, load, to_json
from pod_job.config.schema import JobConfig, StorageConfig
from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.sources import listing, places
from pod_job.prompts.tasks import Tasks, read_tasks
from pod_job.run_folder.start import shareable

PIECE = 1000
WORDS = ("experiment=v5e64", "tasks=arc_sample", "tasks.format=auto")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictBucket]:
    monkeypatch.setattr(sending, "PIECE_BYTES", PIECE)
    monkeypatch.setattr("pod_job.storage.gcs_errors.FIRST_WAIT_S", 0.01)
    places.bucket_folder.cache_clear()  # its connections are to the server before
    with strict_bucket(monkeypatch.setenv) as server:
        yield server


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workstation's folder of documents, outside of the one that it starts jobs from."""
    write_lines(tmp_path / "data" / "a.jsonl", 100)
    write_lines(tmp_path / "data" / "sub" / "b.jsonl", 7)
    (tmp_path / "data" / "README.md").write_text("not read")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "data"


def write_lines(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({"text": f"{path.name} {number} " + "x" * 50}) + "\n" for number in range(count))
    )


@functools.cache
def base() -> JobConfig:
    return load([*WORDS, "storage.run_dir=gs://b/r", "tasks.path=x"])


def job(tasks: Any, bucket: str = BUCKET, **cloud: Any) -> JobConfig:
    """Returns a job of a pod with these task paths."""
    paths = [str(path) for path in tasks] if isinstance(tasks, list) else str(tasks)
    return replace(
        base(),
        tasks=replace(base().tasks, path=paths),
        storage=replace(base().storage, run_dir=f"gs://{bucket}/run"),
        cloud=replace(base().cloud, **cloud),
    )


def placed(config: JobConfig) -> Placed:
    return with_uploads(config, ["a=b"], lambda line: None)


def content(tasks: Tasks) -> list[tuple[str, object]]:
    return [(str(sample), sample.prompt) for sample in tasks.samples]


def sent(bucket: StrictBucket) -> int:
    return sum(method in ("POST", "PUT") for method, _ in bucket.requests)


WAYS: dict[str, Callable[[Path], object]] = {
    "a folder": lambda data: data,
    "a file": lambda data: data / "a.jsonl",
    "a glob": lambda data: f"{data}/**/*.jsonl",
    "a list": lambda data: [data / "sub", data / "a.jsonl"],
    "a path up": lambda data: "../data",
    "with what is in a bucket": lambda data: [data / "a.jsonl", f"gs://{BUCKET}/other.jsonl"],
}


@pytest.mark.parametrize(("way", "small"), [*((way, False) for way in WAYS), ("a list", True)])
def test_hosts_read_what_the_workstation_has(
    bucket: StrictBucket, data: Path, way: str, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples, their names and the fingerprint are equal, whatever the bucket is called."""
    monkeypatch.setattr(listing, "SMALL_BYTES", 1 << 20 if small else -1)
    bucket.store("other.jsonl", b'{"text": "other"}\n', None, None)
    config = job(WAYS[way](data))
    hosts = placed(config).config
    here, there = read_tasks(config.tasks), read_tasks(hosts.tasks)
    assert content(here) == content(there)
    assert here.fingerprint == there.fingerprint
    before = sent(bucket)
    assert placed(config).config == hosts  # again: the same place, and nothing is sent
    assert sent(bucket) == before
    assert not [name for name in bucket.objects if name.startswith("pod-job-uploads/parts/")]
    assert not [name for name in bucket.objects if "README" in name]


def test_a_model_has_its_name_its_weights_and_their_checksums(bucket: StrictBucket, tmp_path: Path, data: Path) -> None:
    model = tmp_path / "My model's"
    shutil.copytree(GOLDENS / "qwen2_full", model)
    (model / "pytorch_model.bin").write_bytes(b"not read")
    (model / "tokenizer.json").write_text("{}")
    config = job([data / "*.jsonl", f"gs://{BUCKET}/x.jsonl"])
    start = placed(replace(config, model=replace(config.model, path=str(model))))
    there, here = find_model(start.config.model.path), find_model(str(model))
    assert there.name == here.name == "My model's"
    assert weights_content(read_checkpoint(there.weights)) == weights_content(read_checkpoint(here.weights))
    names = sorted(name.rpartition("/")[2] for name in bucket.objects)
    assert names == ["a.jsonl", "config.json", "model.safetensors", "tokenizer.json"]
    read = load([*WORDS, "storage.run_dir=gs://b/r", f"tasks.path=[a,gs://{BUCKET}/x.jsonl]", *start.overrides[1:]])
    assert start.overrides[0] == "a=b"
    assert (read.model, read.tasks.places) == (start.config.model, start.config.tasks.places)


def test_a_cut_upload_goes_on(bucket: StrictBucket, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, pieces = job(data / "a.jsonl"), 0

    def cut(folder: Any, piece: sending.Piece, present: Any) -> Any:
        nonlocal pieces
        pieces += 1
        if pieces == 4:
            raise KeyboardInterrupt
        return send_piece(folder, piece, present)

    send_piece = sending.send_piece
    monkeypatch.setattr(sending, "IN_FLIGHT", 1)
    monkeypatch.setattr(sending, "send_piece", cut)
    with pytest.raises(KeyboardInterrupt):
        placed(config)
    assert len(bucket.objects) == 3
    assert all("/parts/" in name for name in bucket.objects)
    kept = list(bucket.objects)
    bucket.requests.clear()
    monkeypatch.setattr(sending, "send_piece", send_piece)
    assert content(read_tasks(placed(config).config.tasks)) == content(read_tasks(config.tasks))
    written = [path for method, path in bucket.requests if method == "POST" and "/upload/" in path]
    assert len(written) == -(-(data / "a.jsonl").stat().st_size // PIECE) - len(kept)


@pytest.mark.parametrize("change", ["content", "shorter", "longer", "removed"])
@pytest.mark.parametrize("lines", [5, 100])
def test_a_file_that_changes_during_its_upload_is_noticed(
    bucket: StrictBucket, data: Path, change: str, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data / "a.jsonl"
    write_lines(path, lines)

    def change_then_send(folder: Any, piece: sending.Piece, present: Any) -> Any:
        if piece.start == 0:
            before = path.read_bytes()
            path.unlink()
            if change != "removed":
                after = {"content": before.replace(b"x", b"y"), "shorter": before[:-9], "longer": before + b"{}\n"}
                path.write_bytes(after[change])
        return send_piece(folder, piece, present)

    send_piece = sending.send_piece
    monkeypatch.setattr(sending, "IN_FLIGHT", 1)
    monkeypatch.setattr(sending, "send_piece", change_then_send)
    with pytest.raises(JobError, match=r"tasks\.path: .*a\.jsonl (was changed while it was uploaded|cannot be read)"):
        placed(job(path))
    whole = [name for name in bucket.objects if "/parts/" not in name]
    assert all(bucket.objects[name].content.count(b"y") == 0 for name in whole)


def test_faults_of_the_network_cost_requests_and_nothing_else(bucket: StrictBucket, data: Path) -> None:
    bucket.faults = ["none", 503, "lost", "reset", "none", "cut", 500, "lost"] * 3
    config = job(data)
    assert content(read_tasks(placed(config).config.tasks)) == content(read_tasks(config.tasks))


def test_the_emulator_composes_an_upload_too(
    data: Path, tmp_path: Path, require: Callable[[bool, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "PIECE_BYTES", 100)  # more pieces than one request composes
    places.bucket_folder.cache_clear()
    with folders("bucket", tmp_path, require):
        config = job(data, bucket=EMULATED)
        assert content(read_tasks(placed(config).config.tasks)) == content(read_tasks(config.tasks))


def test_small_files_of_the_working_directory_travel_with_the_code(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    assert to_upload(job("data")) == []
    monkeypatch.setattr(uploads, "MOST_SENT_ALONG", 100)
    [source] = to_upload(job("data"))
    assert sorted(source.files) == ["a.jsonl", "sub/b.jsonl"]
    assert to_upload(replace(job("data"), storage=StorageConfig(run_dir="/nfs/run"))) == []
    assert to_upload(job(data, shared_folders=[str(data)])) == []
    assert to_upload(load(["experiment=demo", f"tasks.path={data}"])) == []
    assert uploads.sent_along(job("data")).uploaded is not None


def test_a_plan_says_how_much_is_uploaded_where_and_how_long_it_takes(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(path.stat().st_size for path in data.rglob("*.jsonl"))
    monkeypatch.setattr(uploads, "ASSUMED_BYTES_S", size / 600)
    line = uploads_of(job(data, uploads="gs://other/up"))
    assert line is not None
    assert f"upload of {data} to gs://other/up: 2 files, 0.00 GB, about 10 min at" in line
    assert uploads_of(job(f"gs://{BUCKET}/x.jsonl")) is None


@pytest.mark.parametrize(("name", "says"), [("link.jsonl", "is a link that leads out"), (".secret.jsonl", "is hidden")])
def test_what_nobody_wants_to_send_is_refused_by_name(data: Path, name: str, says: str) -> None:
    if name == "link.jsonl":
        (data / name).symlink_to("/etc/hostname")
    else:
        write_lines(data / name, 3)
    with pytest.raises(JobError, match=rf"tasks\.path={data}.*{name} {says}.*; put the task files alone"):
        to_upload(job(data if name == "link.jsonl" else data / name))


def test_where_files_were_uploaded_to_is_not_published_and_not_followed_with_another_path() -> None:
    config = load(
        ["experiment=v5e64", "storage.run_dir=gs://b/r", "tasks.path=a.jsonl", "tasks.uploaded=[gs://own/a.jsonl]"]
    )
    recorded = to_json(config)
    assert "gs://own" not in json.dumps(shareable(recorded))
    assert from_json(recorded).tasks.places == ["gs://own/a.jsonl"]
    assert from_json(recorded, ["tasks.path=b.jsonl"]).tasks.places == ["b.jsonl"]


@pytest.mark.parametrize("places", [["a"], ["gs://b/a", None], "gs://b/a"])
def test_places_are_one_for_each_path(places: object) -> None:
    with pytest.raises(JobError, match=r"tasks\.uploaded=.* for each path of tasks\.path; leave it out"):
        TasksConfig(path="a.jsonl", uploaded=places)
