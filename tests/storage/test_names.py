"""Names and links in a folder lead nowhere else, whoever wrote them: nothing outside is read, written or listed."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from sample_runs import finished_run

from pod_job.checkpoints.checkpoint import read_checkpoint
from pod_job.errors import JobError
from pod_job.host.compile_cache import fetch
from pod_job.interop.pickle_export import export_pickles
from pod_job.interop.pickle_metadata import read_pickle_metadata
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout, metadata
from pod_job.run_folder.metadata import read_any
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import Folder, Readable, is_name
from pod_job.storage.local import LocalFolder
from pod_job.storage.open import open_folder

OUTSIDE = (
    *(
        "",
        ".",
        "..",
        "../x",
        "/etc/x",
        "//x",
        "a/../../x",
        "a/..",
        "a//b",
        "a/./b",
        "a/",
        "cache//tmp/x/authorized_keys",
    ),
    *("a\0", "a\nb", "a\x1b[2J", "a\\..\\b", "\ud83d", "a/" + "b" * 300, "é" * 126, "/".join(["word"] * 250)),
)
INSIDE = ("x", "a/b", "activations/layer_6.attn_out_batch_000001.safetensors", "..x", ".x", "a b/ünï…", "x" * 250)
WAYS: dict[str, Callable[[Folder, str], object]] = {
    "read": lambda folder, name: folder.read(name),
    "read_into": lambda folder, name: folder.read_into(name, 0, memoryview(bytearray(3))),
    "stat": lambda folder, name: folder.stat(name),
    "create": lambda folder, name: folder.create(name, [b"new"]),
    "replace": lambda folder, name: folder.replace(name, b"new"),
    "join": lambda folder, name: folder.join(name, b"new", []),
    "remove": lambda folder, name: folder.remove(name),
}
READS = ("read", "read_into", "stat")


def test_names_are_told_from_what_is_none() -> None:
    assert [name for name in OUTSIDE if is_name(name)] == []
    assert [name for name in INSIDE if not is_name(name)] == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["../x", "a//b"])
def test_no_operation_takes_a_name_outside(way: str, name: str, new_folder: Callable[[], Folder]) -> None:
    with pytest.raises(JobError, match="not a name inside"):
        WAYS[way](new_folder(), name)


def test_a_listing_leaves_out_what_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = LocalFolder(str(tmp_path / "run"))
    folder.create("a/b", [b"1"])
    (tmp_path / "run" / "a" / "line\nbreak").write_text("")
    assert folder.names("") == folder.names("a/") == ["a/b"]


def test_a_link_to_nothing_is_not_listed_and_one_to_itself_is_refused(tmp_path: Path) -> None:
    folder = LocalFolder(str(tmp_path))
    for name in ("a", "nothing", "loop"):
        (tmp_path / f"link to {name}").symlink_to(f"link to {name}" if name == "loop" else name)
    (tmp_path / "a").write_text("x")
    assert folder.names("") == ["a", "link to a", "link to loop"]
    for reads in (folder.read, folder.local_path):
        with pytest.raises(JobError):
            reads("link to loop")


@pytest.mark.parametrize("made", [Path.mkdir, lambda path: path.write_text("x"), os.mkfifo])
@pytest.mark.parametrize("name", [layout.ACTIVATIONS.rstrip("/"), layout.activations_file("layer_6", 1)])
def test_rows_whose_file_is_something_else_are_refused(made: Callable, name: str, tmp_path: Path) -> None:
    finished_run(open_folder(tmp_path), [5])
    described = read_any(open_folder(tmp_path))
    (tmp_path / name).rename(tmp_path / "aside")
    made(tmp_path / name)
    for index in (2, slice(0, 3), [1, 2]):
        with pytest.raises(JobError, match="layer_6_batch_000001"):
            ActivationDataset.from_metadata(open_folder(tmp_path), described, "layer_6")[index]


def test_the_compile_cache_writes_no_name_elsewhere(tmp_path: Path) -> None:
    class Hostile(LocalFolder):
        def names(self, prefix: str) -> list[str]:
            return ["jit_f-cache", f"{tmp_path}/authorized_keys", "/tmp/x/authorized_keys", "sub/x"]

        def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
            return b"content"

    (tmp_path / "local").mkdir()
    fetch(Hostile(str(tmp_path / "cache")), tmp_path / "local")
    assert [path.name for path in tmp_path.rglob("*")] == ["local", "jit_f-cache"]


@pytest.mark.parametrize("name", OUTSIDE[:10])
def test_no_file_that_a_file_names_is_elsewhere(tmp_path: Path, name: str) -> None:
    index = {"weight_map": {"model.embed_tokens.weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(JobError, match="not a name inside"):
        read_checkpoint(tmp_path)
    manifest = {"format": 1, "name": "m", "fingerprint": "0", "path": name, "weights": {}}
    (tmp_path / "converted.json").write_text(json.dumps(manifest))
    with pytest.raises(JobError, match="not a name inside"):
        read_checkpoint(tmp_path)


def test_a_pickle_that_metadata_names_is_beside_it(tmp_path: Path) -> None:
    entry = {"batch_id": 1, "layer": "layer_6", "file": "../x.pkl", "n_samples": 1}
    described = {"model_name": "m", "layers_extracted": [6], "hidden_dim": 2, "total_samples": 1, "batches": [entry]}
    (tmp_path / "metadata.json").write_text(json.dumps(described))
    with pytest.raises(JobError, match="not the name of a file"):
        read_pickle_metadata(tmp_path / "metadata.json")


def link_out(place: Path, secret: Path) -> None:
    place.symlink_to(secret)


def link_parent(place: Path, secret: Path) -> None:
    place.parent.rmdir()
    place.parent.symlink_to(secret.parent)


def make_pipe(place: Path, secret: Path) -> None:
    os.mkfifo(place)


def make_socket(place: Path, secret: Path) -> None:
    here = Path.cwd()
    os.chdir(place.parent)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place.name)
    os.chdir(here)


@pytest.mark.parametrize("make", [link_out, link_parent, make_pipe, make_socket])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_outside_is_reached_through_the_folder(
    make: Callable[[Path, Path], None], way: str, tmp_path: Path
) -> None:
    """Links that lead out, pipes and sockets: reads refuse them at once, writes leave what they point to alone."""
    secret = tmp_path / "outside" / "x"
    secret.parent.mkdir()
    secret.write_bytes(b"secret")
    folder, place = LocalFolder(str(tmp_path / "run")), tmp_path / "run" / "a" / "x"
    place.parent.mkdir(parents=True)
    make(place, secret)
    if way not in ("replace", "remove") or make is link_parent:
        with pytest.raises(JobError, match=r"is a link|is not a regular file"):
            WAYS[way](folder, "a/x")
    else:
        WAYS[way](folder, "a/x")
        assert not place.is_symlink()
        assert way == "remove" or place.read_bytes() == b"new"
    assert [path.name for path in secret.parent.iterdir()] == ["x"]
    assert secret.read_bytes() == b"secret"


@pytest.mark.parametrize("prefix", ["a/", "", "a/x"])
def test_a_linked_folder_is_not_listed(prefix: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").symlink_to(tmp_path / "outside")
    if prefix:
        with pytest.raises(JobError, match="is a link"):
            LocalFolder(str(tmp_path / "run")).names(prefix)
    else:
        assert LocalFolder(str(tmp_path / "run")).names(prefix) == []


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder deeper than Python recurses, and than a path may be long, with files at three depths."""
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        for depth in range(1, 3000):
            os.mkdir("a")
            os.chdir("a")
            if depth in (2, 450, 2500):
                Path("x").write_bytes(b"")
                Path(f".x.{'0' * 32}.tmp").write_bytes(b"")
        yield tmp_path
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-r", tmp_path / "a"], check=True)  # shutil recurses, also that of pytest


def test_folders_of_any_depth_are_listed_and_swept(deep: Path) -> None:
    folder = LocalFolder(str(deep))
    assert [name.count("/") for name in folder.names("")] == [450, 2]
    folder.sweep(-1.0)
    swept = [name for place in ("a/a", "a/" * 449 + "a") for name in os.listdir(deep / place)]
    assert sorted(swept) == ["a", "a", "x", "x"]


def test_links_within_the_folder_and_to_the_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk" / "run" / "a").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    folder: Readable = open_folder(tmp_path / "run")
    (tmp_path / "run" / "a" / "x").write_bytes(b"content")
    (tmp_path / "run" / "b").symlink_to(tmp_path / "disk" / "run" / "a")
    (tmp_path / "run" / "y").symlink_to("a/x")
    assert [folder.read(name) for name in ("a/x", "b/x", "y")] == [b"content"] * 3


def test_a_model_is_read_through_the_links_of_the_hub_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1f").write_bytes(b"weights")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/1f")
    folder = open_folder(tmp_path / "snapshot", "model.path", follow_links=True)
    assert (folder.read("model.safetensors"), folder.stat("model.safetensors")) == (b"weights", checksum([b"weights"]))


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "../run.json"])
def test_no_entry_of_metadata_names_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    folder = open_folder(tmp_path / "run")
    finished_run(folder, [20], ("layer_6",))
    described = metadata.read_any(folder)
    [entry] = described.batches
    moved = msgspec.structs.replace(described, batches=[msgspec.structs.replace(entry, file=name)])
    folder.replace(layout.METADATA, metadata.render(moved))
    with pytest.raises(JobError, match="not a name inside"):
        ActivationDataset(tmp_path / "run", 6)[[0, 3]]
    with pytest.raises(JobError, match="not a name inside"):
        export_pickles(tmp_path / "run", tmp_path / "out")


def test_a_dataset_maps_no_file_outside(tmp_path: Path) -> None:
    finished_run(open_folder(tmp_path / "run"), [20], ("layer_6",))
    [file] = (tmp_path / "run" / "activations").glob("*.safetensors")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(JobError, match="is a link"):
        ActivationDataset(tmp_path / "run", 6)[[0, 3]]
