"""Checkpoints of training: any state comes back on any mesh, only whole ones count, and others' are refused."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pod_job.errors import JobError
from pod_job.formats.checksummed_json import read_checksummed
from pod_job.run_folder.layout import CHECKPOINTS
from pod_job.run_folder.train_identity import SaeRecord, TrainIdentity
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder
from pod_job.training import checkpoint_writer as module
from pod_job.training.checkpoint_restore import check_same_training, restore
from pod_job.training.checkpoint_writer import CheckpointWriter, write_part
from pod_job.training.checkpoints import Checkpoint, complete_checkpoints, latest_checkpoint, remove_after

SAE = SaeRecord("a", "topk", ["layer_1"], 64, 0, 16, 16, 3e-4, k=4)
TRAIN = TrainIdentity("run", [SAE], 100, 8, 64, 10, 20, 10, 64, 0, "float32", run="r")


@dataclass(frozen=True)
class Layout:
    """A mesh and how the arrays of the state lie on it."""

    data: int
    model: int
    rows: tuple[str | None, ...]

    def place(self, name: str) -> NamedSharding:
        mesh: Mesh = jax.make_mesh((self.data, self.model), ("data", "model"))
        return NamedSharding(mesh, PartitionSpec(*self.rows) if name in ("wide", "rows") else PartitionSpec())


LAYOUTS = [Layout(4, 2, ("data", "model")), Layout(2, 4, (None, "model")), Layout(8, 1, ("data",)), Layout(1, 8, ())]


def values() -> dict[str, np.ndarray]:
    wide = np.random.default_rng(0).standard_normal((32, 24)).astype(np.float32)
    return {"wide": wide, "rows": np.asarray(jnp.bfloat16(wide)), "step": np.int32(7), "flags": wide[0] > 0}


def state(layout: Layout) -> dict[str, Any]:
    return {name: jax.device_put(value, layout.place(name)) for name, value in values().items()}


def like(layout: Layout) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(np.shape(value), np.asarray(value).dtype, sharding=layout.place(name))
        for name, value in values().items()
    }


def saved(folder: Folder, steps: list[int], layout: Layout = LAYOUTS[0]) -> None:
    with CheckpointWriter(folder, TRAIN, 0, 1) as writer:
        for step in steps:
            writer.save(step, 1.5, state(layout))
        writer.finish()


@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", LAYOUTS[:2])
def test_the_state_comes_back_bit_by_bit_on_any_mesh(tmp_path: Path, before: Layout, after: Layout) -> None:
    folder = open_folder(tmp_path)
    saved(folder, [7], before)
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.seconds) == (7, 1.5)
    again = restore(folder, checkpoint, like(after))
    for name, value in values().items():
        np.testing.assert_array_equal(np.asarray(again[name]), value)
        assert again[name].sharding.is_equivalent_to(after.place(name), np.ndim(value))


@pytest.mark.parametrize("pieces", [1, 50])
def test_a_part_has_few_files_however_many_arrays(tmp_path: Path, pieces: int) -> None:
    """Each is an object of a bucket."""
    write_part(tmp_path, {f"piece_{number}": np.full((16, 8), number, np.float32) for number in range(pieces)})
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) <= 3


def test_a_bucket_keeps_checkpoints_as_a_disk_does(new_folder: Any) -> None:
    folder = new_folder()
    folder.check_writable()
    saved(folder, [1, 2])
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    again = restore(folder, checkpoint, like(LAYOUTS[1]))
    np.testing.assert_array_equal(np.asarray(again["wide"]), values()["wide"])


def test_the_newest_two_stay_and_an_unfinished_one_does_not_count(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    saved(folder, [5, 10, 15])
    assert [checkpoint.step for checkpoint in complete_checkpoints(folder)] == [10, 15]
    assert not folder.names(f"{CHECKPOINTS}step_000000005")
    folder.remove(f"{CHECKPOINTS}step_000000015/host_00.json")
    latest = latest_checkpoint(folder)
    assert latest is not None
    assert latest.step == 10
    saved(folder, [15])  # over what the host that was killed has left
    assert [checkpoint.step for checkpoint in complete_checkpoints(folder)] == [10, 15]


def test_a_checkpoint_counts_when_all_hosts_have_written_their_part(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    for host in (0, 1):
        assert latest_checkpoint(folder) is None
        with CheckpointWriter(folder, TRAIN, host, 2) as writer:
            writer.save(3, 0.0, state(LAYOUTS[0]))
            writer.finish()
    assert latest_checkpoint(folder) is not None


def test_what_a_killed_host_has_left_never_completes_a_later_checkpoint(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    for host, steps in ((0, (3, 6)), (1, (3,))):  # host 1 was killed before it had written its part of step 6
        with CheckpointWriter(folder, TRAIN, host, 2) as writer:
            for step in steps:
                writer.save(step, 0.0, state(LAYOUTS[0]))
    remove_after(folder, 3)
    with CheckpointWriter(folder, TRAIN, 1, 2) as writer:
        writer.save(6, 0.0, state(LAYOUTS[0]))
    assert [checkpoint.step for checkpoint in complete_checkpoints(folder)] == [3]


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    saved(folder, [4])
    data = max((path for path in tmp_path.rglob("d/*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    with pytest.raises(JobError, match=r"is not what was written; remove .*step_000000004"):
        restore(folder, checkpoint, like(LAYOUTS[0]))


def test_no_byte_of_a_record_changes_unnoticed(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    saved(folder, [4])
    [record] = tmp_path.rglob("host_*.json")
    content = record.read_bytes()
    for at in range(0, len(content), 7):
        record.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(JobError, match=r"host_00\.json"):
            latest_checkpoint(folder)
    record.write_bytes(read_checksummed(content, ""))  # as an earlier version wrote it
    assert latest_checkpoint(folder) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"start": [0] * 5},
        {"shape": [40, 24]},
        {"shape": [3, 3]},
        {"start": [1, 0]},
        {"name": "../x"},
        {"leaf": "other"},
    ],
)
def test_records_that_do_not_fit_their_arrays_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = open_folder(tmp_path)
    saved(folder, [4])
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    [part] = checkpoint.parts
    pieces = [msgspec.structs.replace(piece, **changes) for piece in part.pieces if "wide" in piece.leaf]
    rest = [piece for piece in part.pieces if "wide" not in piece.leaf]
    lying = Checkpoint(4, (msgspec.structs.replace(part, pieces=pieces + rest),))
    with pytest.raises(JobError, match=r"step_000000004|has not all of its state") as caught:
        restore(folder, lying, like(LAYOUTS[0]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("shape", "dtype"), [((32, 24), np.uint32), ((32, 12), np.float32), ((16, 24), np.float32)])
def test_arrays_of_another_form_are_refused(tmp_path: Path, shape: tuple[int, int], dtype: type) -> None:
    """As an earlier version may have kept them."""
    folder = open_folder(tmp_path)
    saved(folder, [4])
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    other = like(LAYOUTS[3]) | {"wide": jax.ShapeDtypeStruct(shape, dtype, sharding=LAYOUTS[3].place("wide"))}
    with pytest.raises(JobError, match=r"step_000000004/: its records do not fit its arrays \(\['wide'\]"):
        restore(folder, checkpoint, other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_rows": 16}, "train.batch_rows is 8 there, 16 here"),
        ({"seed": 1}, "train.seed is 0 there, 1 here"),
        ({"saes": [msgspec.structs.replace(SAE, k=8)]}, r"train.saes\[0\].k is 4 there, 8 here"),
        ({"saes": [SAE, SAE]}, "train.saes"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_with_the_difference(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = open_folder(tmp_path)
    saved(folder, [4])
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    check_same_training(folder, checkpoint, TRAIN)
    with pytest.raises(JobError, match=said):
        check_same_training(folder, checkpoint, msgspec.structs.replace(TRAIN, **change))


def test_what_goes_wrong_in_the_thread_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise JobError("the disk is full")

    monkeypatch.setattr(module, "write_part", full)
    with CheckpointWriter(open_folder(tmp_path), TRAIN, 0, 1) as writer:
        writer.save(1, 0.0, state(LAYOUTS[0]))
        with pytest.raises(JobError, match="the disk is full"):
            writer.finish()
