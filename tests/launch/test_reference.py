"""The reference that vectors will be compared with is known before a pod is paid for."""

import re
from dataclasses import replace

import pytest

from launch.reference import expected_reference
from pod_job.checking import reference, shipped
from pod_job.config.load import load
from pod_job.planning.inputs import Inputs, read_inputs
from tools.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    folder = tmp_path_factory.mktemp("reference")
    model = write_tiny_model(folder / "model")
    return read_inputs(load([f"model.path={model}", "tasks=arc_sample", f"storage.run_dir={folder}/run"]))


POD = ("experiment=v5e64", "storage.run_dir=gs://bucket/run", "model.path=Qwen/Qwen2.5-0.5B")
HERE = ("experiment=demo",)


@pytest.mark.parametrize(
    ("overrides", "torch", "says"),
    [
        (HERE, True, "Hugging Face's model in torch, on host 0"),
        (HERE, False, "the built-in decoder in NumPy: torch is not installed here"),
        (POD, True, "Hugging Face's model in torch, computed where `pod-job run` is started and sent along"),
        (POD, False, "the built-in decoder in NumPy, unless host 0 has torch; none is sent along: torch is not"),
        ((*POD, "parity.send_reference=false"), True, "the built-in decoder in NumPy, .*: parity.send_reference=false"),
        ((*POD, "mode=generate"), True, "the built-in decoder in NumPy, .*: tokens that are generated are not known"),
        ((*POD, "parity.samples=0"), True, "none: parity.samples=0"),
    ],
)
def test_the_reference_that_there_will_be(
    inputs: Inputs, overrides: tuple[str, ...], torch: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "torch_installed", lambda: torch)
    shown = expected_reference(replace(inputs, config=load(overrides)))
    assert re.match(says, shown), shown


def test_one_that_is_too_large_is_not_sent(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "torch_installed", lambda: True)
    monkeypatch.setattr(shipped, "MOST_BYTES", 1000)
    assert "GB are too many; take fewer taps" in expected_reference(replace(inputs, config=load(POD)))
