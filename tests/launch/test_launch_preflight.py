"""Before a pod is asked for, its programs are compiled for it: what does not fit is refused, with what would."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from forecasts import preflight_report, step_values

from launch import preflight, shell
from launch.__main__ import main
from launch.shell import Finished
from pod_job.errors import JobError
from pod_job.preflight.records import Change
from pod_job.units import GIB
from tools.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "m", layers=4, heads=4, kv_heads=2, head_dim=64)


@pytest.fixture
def job(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A job for a v5litepod-4, on a machine without gcloud."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pod = ["pod=v5e_64", "pod.accelerator_type=v5litepod-4", "pod.hosts=1", "mesh=2x2", "cloud.zones=[us-west4-a]"]
    pod.append("cloud.shared_folders=[/]")
    sizes = ["extract=all_tokens", "extract.layers=[0,2]", "extract.seq_len=128", "extract.too_long=tail"]
    return [f"model.path={model}", "tasks=arc_sample", f"storage.run_dir={tmp_path / 'run'}", *pod, *sizes]


def program(name: str, size: int, fits: bool = True) -> dict[str, Any]:
    return step_values(program=name, fits=fits, hbm={"total": size}, hbm_available=16 * GIB)


def test_a_refusal_names_the_program_and_a_change_with_which_it_fits() -> None:
    step, decode = program("prefill", 4 * GIB), program("decode", 20 * GIB, fits=False)
    split = Change(change="sharding=fsdp", **program("decode", 18 * GIB, fits=False))
    fewer_rows = Change(change="extract.rows_per_device=4", **program("prefill", 8 * GIB))
    with pytest.raises(JobError, match=r"decode needs 20.00 GiB of a chip's 16.00.*; use extract.rows_per_device=4$"):
        preflight.refuse_what_does_not_fit(preflight_report(step, decode, split, fewer_rows))
    with pytest.raises(JobError, match="tried and too big as well: sharding=fsdp; use more chips"):
        preflight.refuse_what_does_not_fit(preflight_report(step, decode, split))
    preflight.refuse_what_does_not_fit(preflight_report(step, None))


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (
            Finished(2, "", "libtpu: noise\nerror: model.path: no such folder\n"),
            "preflight: model.path: no such folder",
        ),
        (Finished(1, "", "Traceback ...\nValueError: no ENTRY\n"), "preflight: ValueError: no ENTRY"),
        (Finished(-9, "", ""), "preflight: exit status -9"),
    ],
)
def test_a_preflight_that_fails_says_its_last_word(done: Finished, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "call", lambda argv: done)
    with pytest.raises(JobError, match=said):
        preflight.run_preflight(["a=b"])


@pytest.mark.parametrize("verb", ["up", "run", pytest.param("watch", marks=pytest.mark.pod)])
def test_without_the_compiler_a_start_goes_on_and_says_so(
    verb: str, job: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "compiler_here", lambda: False)
    assert main([verb, *job]) == 2
    said = capsys.readouterr().err
    assert "preflight skipped: no TPU compiler here" in said
    assert "gcloud is not installed" in said  # what comes next


def test_a_preflight_can_be_left_out(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", *job, "--no-preflight"]) == 2
    assert "preflight" not in capsys.readouterr().err
    assert main(["plan", *job, "--no-preflight", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["preflight"], plan["no_preflight"]) == (None, "--no-preflight")


def test_a_local_pod_has_none(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *job, "pod=local", "pod.devices_per_host=4"]) == 0
    assert "none: pod.kind=local has no TPU" in capsys.readouterr().out


@pytest.mark.pod
def test_what_does_not_fit_is_not_started(
    job: list[str], capsys: pytest.CaptureFixture[str], require: Callable[[bool, str], None]
) -> None:
    """The change that is named is one with which the plan goes through."""
    require(find_spec("libtpu") is not None, "libtpu (pip install .[preflight])")
    big = [*job, "extract.rows_per_device=262144"]
    assert main(["up", *big]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: preflight: step needs ")
    assert " and does not fit; use extract.rows_per_device=" in said
    assert main(["plan", *big, said.rpartition("use ")[2]]) == 0
    shown = capsys.readouterr().out
    assert shown.index("host 0 runs") < shown.index("bound by") < shown.index("at list price")
