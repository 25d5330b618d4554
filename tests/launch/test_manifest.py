"""A manifest is of its engine's schema, asks for the job's slice, and starts it with the job's own words."""

import math
import re
import shlex
import subprocess
from pathlib import Path

import msgspec
import pytest
import yaml
from manifest_schemas import JobSet, JobSpec, PodSpec, SkyTask

from launch.__main__ import main
from pod_job.config.load import conf_dir, load
from pod_job.preflight.tpu_facts import PREFIXES, known_sizes, read_accelerator_type

JOB = ["experiment=v5e64", "storage.run_dir=gs://b/q", "tasks.path=gs://b/arc.json"]
JOBSET = ["manifest", "--for", "jobset", "--image", "gcr.io/p/pod-job:1"]
SKYPILOT = ["manifest", "--for", "skypilot"]
# https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
GKE_NAMES = {
    **{"v4": "tpu-v4-podslice", "v5litepod": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice"},
    **{"v6e": "tpu-v6e-slice", "tpu7x": "tpu7x"},
}
HOSTILE = "model.revision='a $(HF_TOKEN) \"b\" `id` # c'"


def jobset(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[JobSpec, PodSpec]:
    assert main([*JOBSET, *JOB, *more]) == 0
    values = msgspec.convert(yaml.safe_load(capsys.readouterr().out), JobSet)
    (replicated,) = values.spec.replicated_jobs
    return replicated.template.spec, replicated.template.spec.template.spec


def task(capsys: pytest.CaptureFixture[str], *more: str) -> SkyTask:
    assert main([*SKYPILOT, *JOB, *more]) == 0
    return msgspec.convert(yaml.safe_load(capsys.readouterr().out), SkyTask)


def slice_words(prefix: str, size: int) -> list[str]:
    sold = read_accelerator_type(f"{prefix}-{size}")
    return [
        *(f"pod.accelerator_type={prefix}-{size}", "pod.runtime_version=any", f"pod.hosts={sold.hosts}"),
        *(f"pod.devices_per_host={sold.chips_per_host}", f"mesh.data={sold.chips}", "mesh.model=1"),
    ]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_jobset_has_a_pod_for_every_vm_of_the_slice_and_its_topology(
    prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chip = PREFIXES[prefix]
    for chips in known_sizes(chip)[1:5:2]:
        sold = read_accelerator_type(f"{prefix}-{chips * chip.cores}")
        spec, pods = jobset(capsys, *slice_words(prefix, chips * chip.cores))
        assert spec.completions == spec.parallelism == sold.hosts
        (host,) = pods.containers
        topology = pods.node_selector["cloud.google.com/gke-tpu-topology"]
        sides = [int(side) for side in topology.split("x")]
        assert math.prod(sides) == chips == spec.completions * host.resources.limits["google.com/tpu"]
        assert len(sides) == chip.dimensions
        assert pods.node_selector["cloud.google.com/gke-tpu-accelerator"] == GKE_NAMES[prefix]


def test_a_jobset_restarts_what_a_restart_may_cure_and_ends_by_what_it_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*JOBSET, *JOB, "cloud.preemptions=3", "cloud.bad_machines=2", "cloud.failures=1"]) == 0
    policy = msgspec.convert(yaml.safe_load(capsys.readouterr().out), JobSet).spec.failure_policy
    assert policy.max_restarts == 6
    assert [rule.action for rule in policy.rules] == ["FailJobSet"]
    spec, pods = jobset(capsys)
    (rule,) = spec.pod_failure_policy.rules
    variables = {variable.name: variable.value for variable in pods.containers[0].env}
    assert rule.on_exit_codes.values == [1, 2]
    assert int(variables["POD_JOB_RESTART_STATUS"] or 0) not in rule.on_exit_codes.values
    assert spec.backoff_limit == 0


@pytest.mark.parametrize(
    ("capacity", "label"),
    [
        (["cloud.capacity=spot"], "cloud.google.com/gke-spot=true"),
        (["cloud.capacity=flex_start", "cloud.flex_hours=2"], "cloud.google.com/gke-flex-start=true"),
        (["cloud.capacity=reserved", "cloud.reservation=mine"], "cloud.google.com/reservation-name=mine"),
        (["cloud.capacity=on_demand"], ""),
    ],
)
def test_nodes_are_selected_by_the_kind_of_capacity(
    capacity: list[str], label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, pods = jobset(capsys, *capacity)
    labels = [f"{name}={value}" for name, value in pods.node_selector.items() if "gke-tpu" not in name]
    assert labels == ([label] if label else [])


def test_hosts_get_the_overrides_the_secrets_and_an_attempt_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = [HOSTILE, "cloud.secrets=[HF_TOKEN]", "cloud.max_hours=3", "cloud.max_usd=1000"]
    spec, pods = jobset(capsys, *words)
    (host,) = pods.containers
    assert [word.replace("$$(", "$(") for word in host.args] == [*JOB, *words]
    assert not any("$(" in word.replace("$$(", "") for word in host.args)  # which Kubernetes would fill in
    sources = {variable.name: variable.value_from for variable in host.env if variable.value_from}
    assert sources["HF_TOKEN"] is not None
    assert sources["HF_TOKEN"].secret_key_ref is not None
    attempt = sources["POD_JOB_ATTEMPT"]
    assert attempt is not None
    assert attempt.field_ref is not None
    assert "controller-uid" in attempt.field_ref.field_path
    assert spec.active_deadline_seconds == 3 * 3600
    assert pods.termination_grace_period_seconds > 20


def test_a_task_of_skypilot_asks_for_one_slice_in_any_of_the_zones(capsys: pytest.CaptureFixture[str]) -> None:
    made = task(capsys, "cloud.zones=[us-west4-a,us-east5-b]", "cloud.secrets=[HF_TOKEN]")
    assert made.num_nodes == 1
    assert made.resources.accelerators == {"tpu-v5litepod-64": 1}
    assert made.resources.any_of is not None
    assert [place.infra for place in made.resources.any_of] == ["gcp/us-west4/us-west4-a", "gcp/us-east5/us-east5-b"]
    assert made.resources.use_spot
    assert made.secrets == {"HF_TOKEN": None}
    assert int(made.envs["POD_JOB_RESTART_STATUS"]) in made.resources.job_recovery.recover_on_exit_codes
    assert not {1, 2} & set(made.resources.job_recovery.recover_on_exit_codes)
    alone = task(capsys, "cloud.zones=[us-west4-a]", "cloud.capacity=on_demand")
    assert (alone.resources.infra, alone.resources.use_spot) == ("gcp/us-west4/us-west4-a", False)


def test_the_command_of_skypilot_has_the_overrides_as_they_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = task(capsys, HOSTILE, "cloud.max_hours=1")
    python = tmp_path / "pod-job-environment/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/bash\nprintf '%s\\0' \"$@\"\n")
    python.chmod(0o755)
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", made.run], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == ["-m", "pod_job", *JOB, HOSTILE, "cloud.max_hours=1"]
    assert shlex.split(made.run)[:2] == ["timeout", "3600"]
    subprocess.run(["bash", "-n"], input=made.setup, text=True, check=True)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([*JOBSET, *JOB, "experiment=demo"], r"pod\.kind=local has no slice"),
        (
            [*JOBSET, *JOB, "storage.run_dir=/mnt/x", "cloud.shared_folders=[/mnt]"],
            r"hosts of an engine share no folder",
        ),
        ([*JOBSET, *JOB, "pod.hosts=8", "mesh=4x4", "pod.devices_per_host=2"], "is 16 hosts of 4 chips"),
        (
            [*JOBSET, *JOB, "tasks.path=tests/data/arc/arc_sample.json"],
            r"tasks\.path=tests/.*\.json is on this machine",
        ),
        (["manifest", "--for", "jobset", *JOB], "--image is not given"),
        ([*SKYPILOT, *JOB, "--image", "x"], "--image: only for jobset"),
        ([*SKYPILOT, *JOB, *slice_words("tpu7x", 8)], "use --for jobset"),
        ([*SKYPILOT, *JOB, "cloud.capacity=reserved"], r"cloud\.capacity=reserved is not for SkyPilot"),
    ],
)
def test_a_job_that_an_engine_could_not_run_is_refused(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert re.search(error, line), line


def test_every_experiment_of_a_pod_has_a_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((conf_dir() / "experiment").glob("*v5e64.yaml")):
        config = load([f"experiment={path.stem}", "storage.run_dir=gs://b/q"])
        assert main([*JOBSET, f"experiment={path.stem}", "storage.run_dir=gs://b/q"]) == 0
        assert f"completions: {config.pod.hosts}" in capsys.readouterr().out
