"""A run folder has one layout, and belongs to one run."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from sample_runs import identity

from pod_job.errors import JobError
from pod_job.run_folder import layout
from pod_job.run_folder.identity import claim, read_run
from pod_job.storage.open import open_folder


def test_the_layout() -> None:
    assert layout.activations_file("layer_6", 1) == "activations/layer_6_batch_000001.safetensors"
    assert layout.rows_file(12) == "activations/rows_batch_000012.parquet"
    assert layout.commit_file(1_234_567) == "commits/batch_1234567.json"
    assert (layout.status_file(3), layout.log_file(12)) == ("status/host_03.json", "logs/host_12.log")
    assert layout.METADATA == "activations/metadata.json"


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("commits/batch_000012.json", 12),
        ("commits/batch_1234567.json", 1_234_567),
        ("commits/batch_12.json", None),
        ("commits/batch_000012.json.tmp", None),
        ("commits/x/batch_000012.json", None),
        ("activations/batch_000012.json", None),
    ],
)
def test_batch_of_commit(name: str, number: int | None) -> None:
    assert layout.batch_of_commit(name) == number


def test_layer_number() -> None:
    layers = [layout.layer_number(tap) for tap in ("layer_6", "layer_24_norm", "layer_6.attn_out", "embed")]
    assert layers == [6, 24, 6, -1]
    for foreign in ("embedding", "layer_", "layer_6b", "xlayer_6"):
        with pytest.raises(JobError, match="names no layer"):
            layout.layer_number(foreign)


def test_a_claim_holds_for_the_same_identity(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    claim(folder, identity(40))
    before = folder.read(layout.RUN)
    claim(folder, identity(40))
    assert folder.read(layout.RUN) == before
    assert read_run(folder).identity == identity(40)


def test_another_identity_is_refused_with_every_difference(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    claim(folder, identity(40))
    other = replace(identity(41, dtype="float32"), tokenizer=None)
    with pytest.raises(JobError) as refused:
        claim(folder, other)
    assert str(refused.value) == (
        f"storage.run_dir={tmp_path} belongs to another run: dtype is bfloat16 there, float32 here; "
        "tasks.samples is 40 there, 41 here; tokenizer is t there, absent here; use another storage.run_dir"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Input data was truncated; the file is damaged"),
        ("[]", "Expected `object`, got `array`"),
        (json.dumps({"identity": {}, "format": 9}), "format 9, this version"),
    ],
)
def test_a_damaged_run_record_is_named(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / layout.RUN).write_text(content)
    with pytest.raises(JobError, match=rf"run\.json: {reason}"):
        claim(open_folder(tmp_path), identity(40))


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"holds no run: run\.json is missing"):
        read_run(open_folder(tmp_path))
