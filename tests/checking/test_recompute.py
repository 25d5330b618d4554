"""Recomputed rows agree with the stored ones, by either reference; changed rows and replaced inputs are found."""

import json
from pathlib import Path

import pytest
from job_processes import finish, start
from msgspec.structs import replace

from pod_job.checking import reference
from pod_job.checking.consent import Consent
from pod_job.checking.recompute import recompute
from pod_job.commands.verify import main
from pod_job.errors import JobError
from pod_job.finishing.merge import merge
from pod_job.formats.checksummed_json import with_checksum
from pod_job.formats.records import encode
from pod_job.run_folder import layout
from pod_job.run_folder.commit import read_record
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.layout import committed
from pod_job.run_folder.start import StartRecord, read_start
from pod_job.storage.checksums import checksum
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

FOLLOW = Consent(follow_recorded=True)
TAPS = ["layer_1", "layer_2.q", "layer_3_norm"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight prompts on a mesh of eight devices, packed."""
    run_dir = tmp_path_factory.mktemp("run")
    overrides = [
        *("mesh=2x2", "tasks=arc_sample", "tasks.limit=8", "extract=all_tokens"),
        *(f"model.path={model}", "model.dtype=float32", f"extract.taps=[{','.join(TAPS)}]"),
        *("extract.seq_len=512", "extract.save_every_n_samples=3", "parity.samples=0", f"storage.run_dir={run_dir}"),
    ]
    finish(start(overrides, hosts=1, devices=4))
    return run_dir


@pytest.mark.parametrize("name", ["torch", "built-in"])
def test_rows_are_what_the_reference_computes(
    finished: Path, name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if name == "torch":
        request.getfixturevalue("torch_there")
    else:
        monkeypatch.setattr(reference, "torch_installed", lambda: False)
    deviations = recompute(finished, 40, consent=FOLLOW)
    assert list(deviations) == TAPS
    for deviation in deviations.values():
        assert deviation.reference == {"torch": reference.TORCH, "built-in": reference.BUILT_IN}[name]
        assert deviation.rows == 40
        assert 0 < deviation.median < 2**-8  # bfloat16 as stored
        assert deviation.largest < 2**-7


def test_the_command_reports_it(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(finished), "--recompute", "5", "--follow-recorded", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recomputed"]["layer_1"]["rows"] == 5


def test_changed_vectors_are_too_far_whatever_limit_the_run_sets_itself(finished: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    copied.mkdir()
    for path in finished.rglob("*.*"):
        (copied / path.relative_to(finished)).parent.mkdir(exist_ok=True)
        (copied / path.relative_to(finished)).write_bytes(path.read_bytes())
    for path in copied.glob("activations/layer_1_batch_*.safetensors"):
        data = bytearray(path.read_bytes())
        data[4096:] = data[4096 + 128 :] + data[4096 : 4096 + 128]  # every row moved up by one
        path.write_bytes(data)
    record_checksums(copied, "layer_1")
    start = read_start(open_folder(copied)) or {}
    config = start | {"parity": {"samples": 0, "limit": 1e9}}
    (copied / layout.START).write_bytes(encode(StartRecord(config)))
    deviations = recompute(copied, 10, consent=FOLLOW)
    assert deviations["layer_1"].too_far
    assert not deviations["layer_2.q"].too_far
    assert "parity.limit=1e+09 of the run is not used" in str(deviations["layer_1"])
    allowed = recompute(copied, 10, consent=Consent(["parity.limit=10"], True))["layer_1"]
    assert not allowed.too_far
    assert (allowed.limit, allowed.unused_limit) == (10, None)


def record_checksums(run_dir: Path, tap: str) -> None:
    """Records the checksums of a tap's files as they are now: nothing but the vectors is off."""
    folder = open_folder(run_dir)
    for number in committed(folder):
        record = read_record(folder, number)
        files = [
            replace(file, crc32c=checksum([folder.read(file.file)]).crc32c) if file.tap == tap else file
            for file in record.files
        ]
        name = layout.commit_file(number)
        (run_dir / name).write_bytes(with_checksum(encode(replace(record, files=files))))
    folder.remove(layout.METADATA)
    merge(folder)


def test_moved_inputs_are_named_and_can_be_given_again(finished: Path, model: Path, tmp_path: Path) -> None:
    moved = write_tiny_model(tmp_path / model.name)
    assert recompute(finished, 3, 0, Consent([f"model.path={moved}"], True))["layer_1"].rows == 3
    other = write_tiny_model(tmp_path / "other" / model.name, seed=1)
    with pytest.raises(JobError, match=r"model\.weights\.model\.safetensors is crc32c:"):
        recompute(finished, 3, 0, Consent([f"model.path={other}"], True))


def test_a_run_without_its_configuration_is_named(finished: Path, tmp_path: Path) -> None:
    record = replace(read_run(open_folder(finished)), config=None)
    (tmp_path / layout.RUN).write_bytes(encode(record))
    with pytest.raises(JobError, match="does not tell how the run was started"):
        recompute(tmp_path, 3, consent=FOLLOW)
