"""Every command line of gcloud to the letter; that gcloud itself accepts them is what rehearsals show."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cloud import gcloud, remote
from launch.cloud.gcloud import PodSpec, Reach
from launch.cloud.remote import read_answers
from launch.cloud.request import pod_name, pod_spec, reach
from launch.shell import Finished, call
from pod_job.config.cloud import Capacity
from pod_job.config.load import load
from pod_job.errors import JobError

SPEC = PodSpec(
    name="extract-1",
    accelerator_type="v5litepod-64",
    runtime_version="v2-alpha-tpuv5-lite",
    capacity=Capacity.spot,
    valid_until="6h",
    labels={"made-by": "pod-job", "team": "sae"},
    service_account="extract@p.iam.gserviceaccount.com",
    internal_ip=False,
)
REACH = Reach("extract-1", "us-west4-a", "my-project", True, ["-oPort=2222"])
PLACE = "--zone=us-west4-a --project=my-project --quiet"
SSH = (
    "--ssh-flag=-oBatchMode=yes --ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=15 "
    "--ssh-flag=-oServerAliveCountMax=4 --ssh-flag=-oPort=2222"
)
GOLDEN = {
    "create_queued": (
        gcloud.create_queued(SPEC, "us-west4-a", "my-project"),
        "gcloud compute tpus queued-resources create extract-1 --node-id=extract-1 "
        "--runtime-version=v2-alpha-tpuv5-lite --valid-until-duration=6h --accelerator-type=v5litepod-64 "
        "--labels=made-by=pod-job,team=sae --spot --service-account=extract@p.iam.gserviceaccount.com "
        f"{PLACE} --async",
    ),
    "create_node": (
        gcloud.create_node(replace(SPEC, capacity=Capacity.on_demand, internal_ip=True), "us-west4-a", None),
        "gcloud compute tpus tpu-vm create extract-1 --version=v2-alpha-tpuv5-lite --accelerator-type=v5litepod-64 "
        "--labels=made-by=pod-job,team=sae --service-account=extract@p.iam.gserviceaccount.com --internal-ips "
        "--zone=us-west4-a --quiet",
    ),
    "create_reserved": (
        gcloud.create_queued(replace(SPEC, capacity=Capacity.reserved, service_account=None), "us-west4-a", None),
        "gcloud compute tpus queued-resources create extract-1 --node-id=extract-1 "
        "--runtime-version=v2-alpha-tpuv5-lite --valid-until-duration=6h --accelerator-type=v5litepod-64 "
        "--labels=made-by=pod-job,team=sae --reserved --zone=us-west4-a --quiet --async",
    ),
    "create_node_reserved": (
        gcloud.create_node(replace(SPEC, capacity=Capacity.reserved), "us-west4-a", "my-project"),
        "gcloud compute tpus tpu-vm create extract-1 --version=v2-alpha-tpuv5-lite --accelerator-type=v5litepod-64 "
        f"--labels=made-by=pod-job,team=sae --reserved --service-account=extract@p.iam.gserviceaccount.com {PLACE}",
    ),
    "create_queued_reservation": (
        gcloud.create_queued(
            replace(SPEC, capacity=Capacity.reserved, reservation="mine", service_account=None), "us-west4-a", None
        ),
        "gcloud alpha compute tpus queued-resources create extract-1 --node-id=extract-1 "
        "--runtime-version=v2-alpha-tpuv5-lite --valid-until-duration=6h --accelerator-type=v5litepod-64 "
        "--labels=made-by=pod-job,team=sae --reserved --reservation=mine --zone=us-west4-a --quiet --async",
    ),
    "create_node_reservation": (
        gcloud.create_node(
            replace(SPEC, capacity=Capacity.reserved, reservation="projects/p/reservations/mine", service_account=None),
            "us-west4-a",
            None,
        ),
        "gcloud alpha compute tpus tpu-vm create extract-1 --version=v2-alpha-tpuv5-lite "
        "--accelerator-type=v5litepod-64 --labels=made-by=pod-job,team=sae --reserved "
        "--reservation=projects/p/reservations/mine --zone=us-west4-a --quiet",
    ),
    "create_queued_flex": (
        gcloud.create_queued(
            replace(SPEC, capacity=Capacity.flex_start, flex_hours=1.5, service_account=None), "us-west4-a", None
        ),
        "gcloud alpha compute tpus queued-resources create extract-1 --node-id=extract-1 "
        "--runtime-version=v2-alpha-tpuv5-lite --valid-until-duration=6h --accelerator-type=v5litepod-64 "
        "--labels=made-by=pod-job,team=sae --provisioning-model=flex-start --max-run-duration=5400s "
        "--zone=us-west4-a --quiet --async",
    ),
    "create_queued_network": (
        gcloud.create_queued(
            replace(
                SPEC, network="vpc", subnetwork="west", tags=["tpu", "ssh"], create_flags=["--shielded-secure-boot"]
            ),
            "us-west4-a",
            None,
        ),
        "gcloud compute tpus queued-resources create extract-1 --node-id=extract-1 "
        "--runtime-version=v2-alpha-tpuv5-lite --valid-until-duration=6h --accelerator-type=v5litepod-64 "
        "--labels=made-by=pod-job,team=sae --spot --service-account=extract@p.iam.gserviceaccount.com --network=vpc "
        "--subnetwork=west --tags=tpu,ssh --shielded-secure-boot --zone=us-west4-a --quiet --async",
    ),
    "ssh_iap": (
        gcloud.ssh(replace(REACH, iap=True, ssh_flags=[]), "all", "true"),
        "gcloud alpha compute tpus tpu-vm ssh extract-1 --worker=all --zone=us-west4-a --project=my-project --quiet "
        f"--tunnel-through-iap {SSH.removesuffix(' --ssh-flag=-oPort=2222')} --command=true",
    ),
    "scp_iap": (
        gcloud.scp(replace(REACH, iap=True, ssh_flags=[]), "/tmp/a.tar.gz", "a.tar.gz"),
        "gcloud alpha compute tpus tpu-vm scp /tmp/a.tar.gz extract-1:a.tar.gz --worker=all --zone=us-west4-a "
        "--project=my-project --quiet --tunnel-through-iap "
        + SSH.removesuffix(" --ssh-flag=-oPort=2222").replace("--ssh-flag", "--scp-flag"),
    ),
    "delete_queued": (
        gcloud.delete_queued("extract-1", "us-west4-a", "my-project"),
        f"gcloud compute tpus queued-resources delete extract-1 --force {PLACE}",
    ),
    "delete_node": (
        gcloud.delete_node("extract-1", "us-west4-a", "my-project"),
        f"gcloud compute tpus tpu-vm delete extract-1 {PLACE}",
    ),
    "list_nodes": (gcloud.list_nodes(None), "gcloud compute tpus tpu-vm list --zone=- --quiet --format=json"),
    "list_queued": (
        gcloud.list_queued("my-project"),
        "gcloud compute tpus queued-resources list --zone=- --project=my-project --quiet --format=json",
    ),
    "describe_accelerator": (
        gcloud.describe_accelerator("v5litepod-64", "us-west4-a", "my-project"),
        f"gcloud compute tpus accelerator-types describe v5litepod-64 {PLACE} --format=json",
    ),
    "describe_bucket": (
        gcloud.describe_bucket("my-bucket"),
        "gcloud storage buckets describe gs://my-bucket --quiet --format=json",
    ),
    "bucket_policy": (
        gcloud.bucket_policy("my-bucket"),
        "gcloud storage buckets get-iam-policy gs://my-bucket --quiet --format=json",
    ),
    "project_policy": (gcloud.project_policy("p"), "gcloud projects get-iam-policy p --quiet --format=json"),
    "describe_project": (gcloud.describe_project("p"), "gcloud projects describe p --quiet --format=json"),
    "settings": (gcloud.settings(), "gcloud config list --format=json"),
    "version": (gcloud.version(), "gcloud version --format=json"),
    "ssh": (
        gcloud.ssh(REACH, "1,4", "true"),
        f"gcloud compute tpus tpu-vm ssh extract-1 --worker=1,4 {PLACE} --internal-ip {SSH} --command=true",
    ),
    "scp": (
        gcloud.scp(REACH, "/tmp/a.tar.gz", "a.tar.gz"),
        f"gcloud compute tpus tpu-vm scp /tmp/a.tar.gz extract-1:a.tar.gz --worker=all {PLACE} --internal-ip "
        + SSH.replace("--ssh-flag", "--scp-flag"),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_command_lines(name: str) -> None:
    argv, golden = GOLDEN[name]
    assert " ".join(argv) == golden


def refused(commands: list[list[str]], scratch: Path) -> list[str]:
    """Returns the errors of the real gcloud's parser for the commands, none of which is run."""
    listed = scratch / "commands.json"
    listed.write_text(json.dumps([{"command_string": shlex.join(command)} for command in commands]))
    done = call(["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={listed}"], timeout_s=120)
    return [
        f"{said['command_string']}: {said['error_message']}" for said in json.loads(done.out) if not said["success"]
    ]


@pytest.mark.slow
@pytest.mark.pod
def test_the_real_gcloud_accepts_every_command_line(require: Callable[[bool, str], None], tmp_path: Path) -> None:
    require(shutil.which("gcloud") is not None, "gcloud")
    public = [getattr(gcloud, name) for name in vars(gcloud) if not name.startswith("_")]
    built = {f.__name__ for f in public if callable(f) and f.__module__ == gcloud.__name__} - {"node_flags", "place"}
    built -= {"PodSpec", "Reach", "capacity_flags"}
    assert built <= {re.sub("_(reserved|reservation|flex|network|iap)$", "", name) for name in GOLDEN}
    assert refused([argv for argv, _ in GOLDEN.values()], tmp_path) == []
    misspelt = [arg.replace("--reserved", "--reservd") for arg in GOLDEN["create_reserved"][0]]
    assert "--reservd" in refused([misspelt], tmp_path)[0]


def test_a_request_from_the_configuration() -> None:
    job = ["experiment=v5e64", "storage.run_dir=gs://bucket/run", "cloud.zones=[us-west4-a]", "+cloud.labels.team=sae"]
    config = load(job)
    spec = pod_spec(config)
    assert spec.labels == {"made-by": "pod-job", "team": "sae"}
    assert spec.accelerator_type == "v5litepod-64"
    assert spec.name == pod_name(config) == pod_name(load([*job, "mesh=8x8"]))
    assert spec.name != pod_name(load([*job, "storage.run_dir=gs://bucket/other"]))
    assert reach(config, "us-west4-a").name == spec.name


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (["cloud.reservation=mine"], r"cloud\.reservation=mine has no effect with cloud\.capacity=spot; set cl"),
        (["cloud.flex_hours=2"], r"cloud\.flex_hours=2.* has no effect with cloud\.capacity=spot"),
        (["cloud.capacity=flex_start"], r"cloud\.flex_hours=None: .* give more than 0 and at most 168"),
        (["cloud.capacity=flex_start", "cloud.flex_hours=200"], r"at most 168"),
        (["cloud.capacity=flex_start", "cloud.flex_hours=2", "cloud.queued=false"], r"use cloud\.queued=true"),
        (["cloud.capacity=reserved", "cloud.reservation='a b'"], r"cloud\.reservation: 'a b' is not allowed"),
        (["cloud.tags=[Tag]"], r"cloud\.tags: 'Tag' is not allowed"),
        (["pod.accelerator_type=tpu7x-128"], r"the Cloud TPU API does not have it, GKE does; use `pod-job manifest"),
    ],
)
def test_a_request_that_cannot_be_made_is_refused(changes: list[str], error: str) -> None:
    with pytest.raises(JobError, match=error):
        pod_spec(load(["experiment=v5e64", "storage.run_dir=gs://b/r", "cloud.zones=[us-west4-a]", *changes]))


HOSTILE = [
    "a b",
    "$(touch stolen)",
    "`touch stolen`",
    "it's",
    'say "x"',
    "two\nlines",
    "; touch stolen #",
    "\\",
    "*",
    "",
]


def test_values_reach_a_script_as_they_are() -> None:
    """Through the very shells that are between here and a host: none reads a value as a command."""
    lines = [remote.assignment("MANY", HOSTILE), "printf '%s\\0' \"${MANY[@]}\""]
    done = subprocess.run(["bash", "-c", remote.command("\n".join(lines))], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == HOSTILE


def test_answers_count_once_per_host_whatever_else_is_printed() -> None:
    out = "Warning: x\npod-job 3 LAUNCHED a\nnoise pod-job 1 NO\npod-job 10 READY\npod-job 3 ALREADY_RUNNING a\n"
    answers = read_answers([Finished(255, out, "")])
    assert {host: (answer.word, answer.detail) for host, answer in answers.items()} == {
        3: ("ALREADY_RUNNING", "a"),
        10: ("READY", ""),
    }


def test_a_command_that_hangs_ends_with_all_it_started() -> None:
    done = call(["bash", "-c", "echo early; sleep 600 & sleep 600"], timeout_s=0.5)
    assert (done.code, done.out) == (-9, "early\n")
    assert "no answer within 0.5 s" in done.err


def test_a_missing_program_is_named() -> None:
    with pytest.raises(JobError, match=r"^no-such-gcloud is not installed; install the Google Cloud SDK"):
        call(["no-such-gcloud"])
