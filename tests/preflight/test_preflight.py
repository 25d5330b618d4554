"""A job is compiled for the pod that it names; memory, time, cost and fitting changes are reported."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forecasts import step_forecast
from sample_runs import identity

from launch.local import coordinator_address
from pod_job import environment
from pod_job.config.load import load, to_json
from pod_job.errors import JobError
from pod_job.models.arch import read_arch_file
from pod_job.models.taps import resolve
from pod_job.planning.inputs import needed_weights
from pod_job.planning.model_cost import vector_bytes
from pod_job.preflight.changes import proposals
from pod_job.preflight.compiled_text import Collective
from pod_job.preflight.forecast_cache import cache_folder, cached
from pod_job.preflight.measured import measure
from pod_job.preflight.planned_job import PlannedJob
from pod_job.preflight.records import Comparison
from pod_job.preflight.report import pod_slice
from pod_job.run_folder.identity import claim
from pod_job.run_folder.status import HostStatus, Phase, write_status
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent.parent


def overrides(model: Path, tmp_path: Path, *more: str) -> list[str]:
    """A tiny model on a v5litepod-4, small in every way."""
    pod = ["pod=v5e_64", "pod.accelerator_type=v5litepod-4", "pod.hosts=1", "mesh=2x2"]
    sizes = ["extract=all_tokens", "extract.layers=[0,2]", "extract.seq_len=128", "extract.too_long=tail"]
    return [f"model.path={model}", "tasks=arc_sample", f"storage.run_dir={tmp_path / 'run'}", *pod, *sizes, *more]


TINY: dict[str, Any] = {"layers": 4, "heads": 4, "kv_heads": 2, "head_dim": 64}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes that a TPU kernel takes; only config.json and the tokenizer are left."""
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny") / "m", **TINY)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    return folder


def test_what_does_not_fit_gets_fewer_rows_or_split_weights(model: Path, tmp_path: Path) -> None:
    config = load(overrides(model, tmp_path, "extract.rows_per_device=16"))
    arch = read_arch_file(model / "config.json")
    taps = resolve([0, 1, 2, 3], [], arch)
    job = PlannedJob(config, arch, taps, pod_slice(config))
    weights = sum(math.prod(weight.shape) for weight in needed_weights(config, arch).values()) * 2

    def proposed(need: int, available: int, **seconds: float) -> list[str]:
        forecast = step_forecast(fits=bool(seconds), hbm={"total": need}, hbm_available=available, seconds=seconds)
        return [overrides for overrides, _ in proposals(job, forecast)]

    rows = "extract.rows_per_device="
    # A quarter more than there is: half the weights gone is enough; so are rows that need 2 in place of 3 parts.
    assert proposed(4 * weights, 3 * weights)[0] == f"{rows}8"
    assert proposed(2 * weights + weights // 2, 2 * weights)[:2] == ["sharding=fsdp", f"{rows}8"]
    # Weights alone are too much: fewer rows do not help.
    assert proposed(5 * weights, weights // 2 + weights // 4)[:2] == ["sharding=fsdp", f"sharding=fsdp {rows}1"]
    # The compiler did not say how much it needs.
    assert proposed(0, 3 * weights) == [f"{rows}{fewer}" for fewer in (8, 4, 2, 1)]
    assert proposed(1, 2, compute=1.0, hbm=0.1, bucket=2.0) == ["extract.layers=[1,3]", "extract.layers=[3]"]
    assert proposed(1, 2, compute=2.0, hbm=0.1, bucket=1.0) == []


def test_a_stored_vector_counts_with_its_scales() -> None:
    arch = read_arch_file(ROOT / "tests/data/configs/Qwen2.5-0.5B/config.json")
    taps, sizes = resolve([6, 12], [], arch), {"float32": 896 * 4, "bfloat16": 896 * 2, "int8": 896 + 14 * 2}
    for dtype, size in sizes.items():
        config = load(["experiment=v5e64", "storage.run_dir=r", f"extract.dtype={dtype}"])
        assert vector_bytes(arch, taps, config.extract) == 2 * size


def test_a_cached_forecast_is_the_one_that_was_compiled(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = load(overrides(model, tmp_path))
    arch = read_arch_file(model / "config.json")
    job = PlannedJob(config, arch, resolve([0], [], arch), pod_slice(config))
    moved = [Collective("all-reduce", 1, 4)]
    step = step_forecast(seconds={"compute": 0.1, "hbm": 0.3}, tokens=12, collectives=moved)
    assert (step.step_s, step.bottleneck, step.tokens_per_s) == (0.3, "hbm", 40.0)
    assert cached(job, lambda _: [step]) == ([step], False)
    assert cached(job, pytest.fail) == ([step], True)
    (file,) = cache_folder().glob("*.json")
    file.write_text(file.read_text().replace('"chips":4', '"chips":"4"'))
    assert cached(job, lambda _: [step]) == ([step], False)


def run_preflight(arguments: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as for users: jax must not have started with other settings."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", "pod_job.preflight", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="session")
def compiler(require: Callable[[bool, str], None]) -> None:
    require(importlib.util.find_spec("libtpu") is not None, "libtpu (pip install .[preflight])")


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("sharding", ["replicated", "fsdp"])
def test_a_preflight_compiles_the_step_for_the_pod(sharding: str, model: Path, tmp_path: Path) -> None:
    done = run_preflight([*overrides(model, tmp_path, f"sharding={sharding}"), "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    step = report["step"]
    assert (step["topology"], step["chips"], step["fits"]) == ("v5e:2x2", 4, True)
    assert step["kernel_s"] > 0, "attention did not run as the kernel"
    assert step["kernel_origin"] == "bundles", "the kernel's instructions were not written, or not read"
    assert step["tokens"] == 4 * 128
    assert step["stored_bytes"] == step["tokens"] * 2 * 64 * 2
    assert 0 < step["mfu"] <= step["compute_mfu"] < 1
    assert step["hbm"]["total"] == sum(size for kind, size in step["hbm"].items() if kind != "total")
    kinds = {(moved["kind"], moved["count"], moved["bytes"]) for moved in step["collectives"]}
    flag = ("all-reduce", 1, 4)
    assert kinds == {flag} if sharding == "replicated" else kinds > {flag}
    assert report["run"]["samples"] == 44
    assert report["run"]["usd_list"] > report["run"]["usd_spot"] > 0
    assert report["rates"]["assumed"] == ["host_gb_s", "bucket_gb_s"]
    assert ("split 2 ways over model: hidden size 64" in report["weights"]) == (sharding == "fsdp")


TRAIN = ("mode=train", "train.saes=[{tap:[0,2],latents:256,k:8}]", "train.tokens=10240", "train.batch_rows=256")


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_preflight_of_training_covers_the_forward_pass_and_the_trainer(model: Path, tmp_path: Path) -> None:
    job = [line for line in overrides(model, tmp_path) if not line.startswith("extract.layers")]
    done = run_preflight([*job, *TRAIN, "train.buffer_rows=1024", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    forward, trainer, training = report["step"], report["trainer"], report["training"]
    assert (forward["program"], trainer["program"]) == ("forward", "trainer")
    assert all(set(program["seconds"]) == {"compute", "hbm", "network"} for program in (forward, trainer))
    assert forward["stored_bytes"] == 0
    # Of two SAEs one on each device, of its matrices the half that is not on the other device which splits the rows.
    matrices, vectors = 2 * 64 * 256 * 4 // 2, (256 + 64 + 1) * 4
    hbm = trainer["hbm"]
    assert hbm["SAEs"] == matrices + vectors
    assert 2 * (matrices + vectors) <= hbm["optimizer"] < 2 * (matrices + vectors) + 64
    assert hbm["shuffle buffer"] == 1024 * (2 * 64 * 2 + 1) // 4
    assert hbm["model"] == forward["hbm"]["weights and inputs"]
    assert hbm["total"] == sum(size for kind, size in hbm.items() if kind != "total")
    assert training["forward_passes"] == 256 / 512
    parts = training["seconds"]
    assert parts["forward"] == pytest.approx(forward["step_s"] / 2)
    assert training["step_s"] == pytest.approx(sum(parts.values()))
    assert report["tokens_per_s"] == pytest.approx(256 / training["step_s"])
    run = report["run"]
    assert (run["steps"], run["rows"], run["bytes"]) == (40, 10240, 0)
    assert run["hours"] == pytest.approx(40 * training["step_s"] / 3600)


@pytest.fixture(scope="module")
def generation(
    model: Path, tmp_path_factory: pytest.TempPathFactory, compiler: None
) -> tuple[list[str], Path, dict[str, Any]]:
    """A job that generates, the folder of its cached forecasts, and its report."""
    cache = tmp_path_factory.mktemp("cache")
    more = ["mode=generate", "generate.max_new_tokens=20", "extract.positions=generated", "tasks.limit=8"]
    job = overrides(model, cache, *more)
    return job, cache, json.loads(run_preflight([*job, "--json"], cache).stdout)


@pytest.mark.slow
def test_the_programs_of_generation_are_compiled_once(generation: tuple[list[str], Path, dict[str, Any]]) -> None:
    """Another run folder and other prompts are the same programs."""
    job, cache, first = generation
    again = json.loads(run_preflight([*job, "storage.run_dir=elsewhere", "tasks.limit=9", "--json"], cache).stdout)
    assert (first["cached"], again["cached"]) == (False, True)
    assert (first["run"]["samples"], again["run"]["samples"]) == (8, 9)
    changing = {"cached", "run"}
    assert {name: first[name] for name in first.keys() - changing} == {
        name: again[name] for name in again.keys() - changing
    }


@pytest.mark.slow
def test_a_preflight_covers_generation(generation: tuple[list[str], Path, dict[str, Any]]) -> None:
    report = generation[2]
    prefill, decode = report["step"], report["decode"]
    assert (prefill["program"], decode["program"], decode["tokens_in_turn"]) == ("prefill", "decode", 16)
    assert decode["tokens"] == 4 * 16
    slots = 128 + 2 * 16  # whole calls
    cache = 4 * slots * 2 * 64 * 2 * 2  # layers x slots x heads x head size x (key, value) x bytes, for one row
    assert cache <= decode["cache_bytes"] < 2 * cache  # so few heads are padded
    assert prefill["stored_bytes"] == 0
    assert decode["stored_bytes"] == decode["tokens"] * 2 * 64 * 2
    assert decode["seconds"]["hbm"] > prefill["seconds"]["hbm"]
    run = report["run"]
    assert (run["new_tokens"], run["rows"]) == (8 * 20, 8 * 20)
    assert run["steps"] == math.ceil(run["tokens"] / (0.98 * prefill["tokens"]))
    calls = math.ceil(8 * 20 / decode["tokens"])
    assert run["hours"] == pytest.approx((run["steps"] * prefill["step_s"] + calls * decode["step_s"]) / 3600)
    full = math.ceil(4 * 128 / prefill["tokens"]) * prefill["step_s"] + math.ceil(4 * 20 / 64) * decode["step_s"]
    assert report["tokens_per_s"] == pytest.approx(4 * 20 / full)


@pytest.mark.pod
def test_what_was_predicted_is_compared_with_what_a_run_measured(
    generation: tuple[list[str], Path, dict[str, Any]], tmp_path: Path
) -> None:
    """On CPU devices, so the ratio is not one of a TPU; everything else is as on a pod."""
    job, cache, report = generation
    job = [*job, f"model.path={write_tiny_model(tmp_path / 'm', **TINY)}"]
    local = ["pod.kind=local", "pod.devices_per_host=4", f"storage.run_dir={tmp_path / 'run'}"]
    local += ["parity.samples=0", "extract.rows_per_device=2"]
    env = os.environ | environment.local_host(0, 4, coordinator_address(0), "one")
    command = [sys.executable, "-m", "pod_job", *job, *local]
    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout + ran.stderr

    measured = json.loads(run_preflight([*job, "--measured", str(tmp_path / "run"), "--json"], cache).stdout)[
        "measured"
    ]
    assert (measured["hosts"], measured["device"], measured["attempt"]) == (1, "cpu", "one")
    assert measured["step"]["predicted_s"] == report["step"]["step_s"]
    assert measured["token"]["predicted_s"] == report["decode"]["step_s"] / 16
    for times in (measured["step"], measured["token"]):
        assert times["ratio"] == times["measured_s"] / times["predicted_s"] > 1
    assert measured["differs"] == ["extract.rows_per_device: 2 there, 1 here"]


def test_the_median_of_the_hosts_is_compared(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    config = load(["model.path=m", f"storage.run_dir={tmp_path}", "tasks=arc_sample", "pod.hosts=3", "mesh.data=3"])
    step = step_forecast(seconds={"compute": 0.5})
    with pytest.raises(JobError, match="holds no run"):
        measure(folder, config, [step])
    claim(folder, identity(8), to_json(config))
    with pytest.raises(JobError, match="no host has timed a step"):
        measure(folder, config, [step])
    for host, seconds in enumerate((0.4, 0.6, 9.0)):
        write_status(folder, HostStatus(host=host, attempt="b", phase=Phase.done, step_s=seconds))
    measured = measure(folder, config, [step])
    assert measured.step == Comparison(predicted_s=0.5, measured_s=0.6, ratio=1.2)
    assert (measured.token, measured.differs) == (None, [])


CHIPS = """
from pod_job import environment
import os
os.environ.update(environment.COMPILE_ONLY)
import jax, sys
from jax.sharding import SingleDeviceSharding
from pod_job.preflight.compiled_text import read_program, total_cycles
from pod_job.preflight.pod_devices import pod_devices
from pod_job.preflight.tpu_facts import read_accelerator_type
for name in sys.argv[1:]:
    pod = read_accelerator_type(name)
    devices = pod_devices(pod)
    square = jax.ShapeDtypeStruct((2048, 2048), "bfloat16", sharding=SingleDeviceSharding(devices[0]))
    cycles = total_cycles(read_program(jax.jit(lambda x: x @ x).lower(square).compile().as_text()))
    print(name, len(devices), 2 * 2048**3 / (cycles / pod.chip.cycles_s) / pod.chip.peak_flops)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_the_compiler_knows_every_kind_and_counts_its_cycles_at_our_clock() -> None:
    """A large product runs at 50 to 100% of the published peak; a chip whose cores count as two has half."""
    names = {"v5litepod-1": 1, "v5litepod-256": 256, "v6e-8": 8, "v6e-16": 16, "v5p-8": 4, "v5p-384": 192, "v4-16": 8}
    done = subprocess.run(
        [sys.executable, "-c", CHIPS, *names], cwd=ROOT, capture_output=True, text=True, timeout=280, check=True
    )
    pods = {name: (int(chips), float(share)) for name, chips, share in map(str.split, done.stdout.splitlines())}
    assert {name: chips for name, (chips, _) in pods.items()} == names
    assert all(0.5 < share < 1 for _, share in pods.values()), pods


def test_errors_are_one_line(model: Path, tmp_path: Path) -> None:
    for wrong, reason in {
        "pod.accelerator_type=v9-4": "v9-4 is not known",
        "model.path=nobody/nothing": "give a folder that holds config.json",
        "pod.kind=local": "a preflight is for TPU pods",
    }.items():
        done = run_preflight(overrides(model, tmp_path, wrong), tmp_path)
        assert done.returncode == 2
        assert reason in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
