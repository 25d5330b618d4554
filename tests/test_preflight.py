"""What a pod would take is read from the compiler's own text, and the job is compiled for the pod it names."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pod_job.config import load
from pod_job.errors import JobError
from pod_job.models.arch import read_arch_file
from pod_job.models.taps import resolve
from pod_job.preflight import compiled_text, tpu_facts
from pod_job.preflight.report import pod_slice, proposals
from tools.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent

PROGRAM = """HloModule step
%cond (p: (s32[], bf16[8,16])) -> pred[] {
  %bound = s32[] constant(23)
  %p = (s32[], bf16[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}
%started (q: bf16[8,2]) -> (bf16[8,2], bf16[8,16]) {
  %q = bf16[8,2]{1,0} parameter(0)
  %gathered = bf16[8,16]{1,0} all-gather(%q), dimensions={1}
  ROOT %start = (bf16[8,2], bf16[8,16]) custom-call(%gathered), custom_call_target="AsyncCollectiveStart"
}
%body (p: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p = (s32[], bf16[8,16]{1,0}) parameter(0)
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %collect = (bf16[8,2], bf16[8,16]) fusion(%x), kind=kCustom, calls=%started
  %y = bf16[8,16]{1,0} fusion(%x), kind=kOutput, calls=%product, backend_config={"estimated_cycles":"1000","a":[]}
  ROOT %r = (s32[], bf16[8,16]) tuple(%p, %y)
}
%product (q: bf16[8,16]) -> bf16[8,16] {
  %q = bf16[8,16]{1,0} parameter(0)
  %again = bf16[8,16]{1,0} all-gather(%q), dimensions={1}
  ROOT %neg = bf16[8,16]{1,0} negate(%again), backend_config={"estimated_cycles":"7"}
}
ENTRY %main (a: bf16[8,16]) -> bf16[8,16] {
  %a = bf16[8,16]{1,0} parameter(0)
  %three = s32[] constant(3)
  %from = s32[] copy(%three)
  %t = (s32[], bf16[8,16]{1,0}) tuple(%from, %a)
  %loop = (s32[], bf16[8,16]{1,0}) while(%t), condition=%cond, body=%body
  %flag = s32[] all-reduce(%from), to_apply=%max
  ROOT %out = bf16[8,16]{1,0} copy(%a), backend_config={"estimated_cycles":"50"}
}
"""


def test_a_loop_counts_as_often_as_it_turns() -> None:
    """20 turns of 1000 cycles; nothing inside a fusion counts a second time."""
    assert compiled_text.total_cycles(compiled_text.read_program(PROGRAM)) == 20 * 1000 + 50


def test_a_collective_counts_once_where_it_starts() -> None:
    found = compiled_text.collectives(compiled_text.read_program(PROGRAM))
    assert found == [
        compiled_text.Collective("all-gather", 20, 8 * 16 * 2),
        compiled_text.Collective("all-reduce", 1, 4),
    ]


def test_a_loop_that_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match="turns of loop loop"):
        compiled_text.read_program(PROGRAM.replace("%bound = s32[] constant(23)", "%bound = s32[] parameter(1)"))


@pytest.mark.parametrize(
    ("name", "topology", "hosts", "chips_per_host"),
    [
        ("v5litepod-1", "v5e:1x1", 1, 1),
        ("v5litepod-8", "v5e:2x4", 1, 8),
        ("v5litepod-64", "v5e:8x8", 16, 4),
        ("v5litepod-128", "v5e:8x16", 32, 4),
        ("v6e-16", "v6e:4x4", 4, 4),
        ("v5p-8", "v5p:2x2x1", 1, 4),
        ("v5p-32", "v5p:2x2x4", 4, 4),
        ("v4-64", "v4:2x4x4", 8, 4),
    ],
)
def test_slices(name: str, topology: str, hosts: int, chips_per_host: int) -> None:
    found = tpu_facts.read_accelerator_type(name)
    assert (found.topology, found.hosts, found.chips_per_host) == (topology, hosts, chips_per_host)


@pytest.mark.parametrize("name", ["v5e64", "v7x-8", "v5litepod-48", "v5p-7", "v4-4"])
def test_unknown_slices_are_refused(name: str) -> None:
    with pytest.raises(JobError, match=f"pod.accelerator_type={name}"):
        tpu_facts.read_accelerator_type(name)


def test_hosts_must_be_those_of_the_slice() -> None:
    with pytest.raises(JobError, match="16 hosts of 4 chips"):
        pod_slice(load(["experiment=v5e64", "storage.run_dir=r", "pod.hosts=8", "pod.devices_per_host=8"]))


def overrides(model: Path, tmp_path: Path, *more: str) -> list[str]:
    """A tiny model on a v5litepod-4, small in every way."""
    pod = ["pod=v5e_64", "pod.accelerator_type=v5litepod-4", "pod.hosts=1", "mesh=2x2"]
    sizes = ["extract=all_tokens", "extract.layers=[0,2]", "extract.seq_len=128", "extract.too_long=cut"]
    return [f"model.path={model}", "tasks=arc_sample", f"storage.run_dir={tmp_path / 'run'}", *pod, *sizes, *more]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes that a TPU kernel takes; only config.json and the tokenizer are left."""
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny") / "m", layers=4, heads=4, kv_heads=2, head_dim=64)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    return folder


def test_what_does_not_fit_gets_fewer_rows_or_split_weights(model: Path, tmp_path: Path) -> None:
    from pod_job.preflight.forecast import Forecast

    config = load(overrides(model, tmp_path, "extract.rows_per_device=4"))
    arch = read_arch_file(model / "config.json")
    taps = resolve([0, 2], [], arch.layers)
    found = Forecast(topology="", chips=4, fits=False, compile_s=1.0, hbm={"total": 2}, hbm_available=1)
    assert [change for change, *_ in proposals(config, arch, taps, found)] == [
        "sharding=fsdp",
        "extract.rows_per_device=2",
        "extract.rows_per_device=1",
    ]
    waits = dataclasses.replace(found, fits=True, seconds={"compute": 1.0, "bucket": 2.0})
    assert [change for change, *_ in proposals(config, arch, taps, waits)] == ["fewer taps: layer_2"]
    computes = dataclasses.replace(found, fits=True, seconds={"compute": 2.0, "bucket": 1.0})
    assert list(proposals(config, arch, taps, computes)) == []


def run_preflight(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as for users: jax must not have started with other settings."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pod_job.preflight", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="session")
def compiler(require: Callable[[bool, str], None]) -> None:
    require(importlib.util.find_spec("libtpu") is not None, "libtpu (pip install .[preflight])")


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("sharding", ["replicated", "fsdp"])
def test_a_preflight_compiles_the_step_for_the_pod(sharding: str, model: Path, tmp_path: Path) -> None:
    done = run_preflight([*overrides(model, tmp_path, f"sharding={sharding}"), "--json"])
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    step = report["step"]
    assert (step["topology"], step["chips"], step["fits"]) == ("v5e:2x2", 4, True)
    assert step["kernel_s"] > 0, "attention did not run as the kernel"
    assert step["tokens"] == 4 * 128
    assert step["stored_bytes"] == step["tokens"] * 2 * 64 * 2
    assert 0 < step["mfu"] <= step["compute_mfu"] < 1
    assert step["hbm"]["total"] == sum(size for kind, size in step["hbm"].items() if kind != "total")
    kinds = {(each["kind"], each["count"], each["bytes"]) for each in step["collectives"]}
    flag = ("all-reduce", 1, 4)
    assert kinds == {flag} if sharding == "replicated" else kinds > {flag}
    assert report["run"]["samples"] == 44
    assert report["run"]["usd_list"] > report["run"]["usd_spot"] > 0


def test_errors_are_one_line(model: Path, tmp_path: Path) -> None:
    for wrong, said in {
        "pod.accelerator_type=v9-4": "v9-4 is not known",
        "model.path=nobody/nothing": "give a folder that holds config.json",
        "pod.kind=local": "a preflight is for TPU pods",
    }.items():
        done = run_preflight(overrides(model, tmp_path, wrong))
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
