"""Checks before a pod is paid for refuse what would fail on it, in one line with the fix."""

import subprocess
from pathlib import Path
from typing import cast

import pytest
from golden_models import GOLDENS
from omegaconf import OmegaConf

from launch.__main__ import main
from launch.cloud.checks import IMAGES, check_image, check_key, check_paths, check_pod, check_secrets, check_shape
from launch.cloud.iam import Binding, NotChecked, Policy, verdict
from pod_job.config.load import conf_dir, load
from pod_job.config.schema import JobConfig, PodConfig
from pod_job.errors import JobError
from pod_job.preflight.tpu_facts import V4, read_accelerator_type
from pod_job.storage.open import open_folder

MODEL = GOLDENS / "qwen2_full"
SHARED_RUN = ("storage.run_dir=/mnt/nfs/run", "cloud.shared_folders=[/mnt/nfs]")


def config(*more: str) -> JobConfig:
    return load(["experiment=v5e64", "storage.run_dir=gs://bucket/run", "cloud.zones=[us-west4-a]", *more])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (["pod.hosts=8", "mesh=4x4", "pod.devices_per_host=2"], r"pod\.hosts=8, but v5litepod-64 has 16 VMs; set"),
        (["pod.accelerator_type=v4-64"], r"pod\.hosts=16, but v4-64 has 8 VMs"),
        (["pod.accelerator_type=v6e-64"], r"is the image of v5e, but v6e-64 is v6e; use .*v2-alpha-tpuv6e"),
        (["pod.accelerator_type=v5p-128"], r"use pod\.runtime_version=v2-alpha-tpuv5$"),
        (["pod.accelerator_type=v5litepod-63"], "the nearest are"),
        (["model.path=/models/qwen"], r"model\.path=/models/qwen is no folder of this machine.*gs://bucket/"),
        (["model.path=launch"], r"model\.path=launch is no folder of this machine with a config\.json"),
        (["model.path='~/qwen'"], r"model\.path=~/qwen is no folder"),
        ([*SHARED_RUN, f"model.path={MODEL}"], r"qwen2_full is a folder of this machine, .*storage\.run_dir=gs://"),
        (["tasks.path=/data/arc.json"], r"tasks\.path=/data/arc\.json is not on this machine; correct it"),
        (["tasks.path=../arc.json"], r"tasks\.path=\.\./arc\.json is not on this machine"),
        (["tasks.path=[gs://bucket/a.json,/data/b.json]"], r"tasks\.path=/data/b\.json is not on this machine"),
        ([*SHARED_RUN, f"tasks.path={__file__}"], r"test_checks\.py is a path of this machine,.*cloud\.uploads=gs://"),
        (["cloud.uploads=/data"], r"cloud\.uploads=/data is not a place in a bucket; use gs://"),
        (["storage.run_dir=runs/x"], r"storage\.run_dir=runs/x is a folder of this machine.*gs://bucket/prefix"),
        (["storage.run_dir=/mnt/x", "cloud.shared_folders=[/mnt/y]"], r"storage\.run_dir=/mnt/x is a folder"),
    ],
)
def test_what_a_pod_would_not_take_is_refused(changes: list[str], error: str) -> None:
    with pytest.raises(JobError, match=error):
        check_pod(config(*changes))


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["model.path=gs://bucket/qwen", "tasks.path=gs://bucket/arc.json"],
        ["model.path=/mnt/nfs/qwen", "tasks.path=/mnt/nfs/a.json", "cloud.shared_folders=[/mnt/nfs]"],
        ["tasks.path=[gs://bucket/a.json,b.json]"],
        [f"tasks.path={__file__}", f"model.path={MODEL}"],  # uploaded
        [*SHARED_RUN, f"tasks.path={__file__}", "cloud.uploads=gs://bucket/up"],
        ["storage.run_dir=/mnt/nfs/run", "cloud.shared_folders=[/mnt/nfs/]"],
        ["pod.accelerator_type=v9-64"],  # not known here
        ["pod.runtime_version=tpu-ubuntu2204-base"],
    ],
)
def test_what_a_pod_may_take_is_let_through(changes: list[str]) -> None:
    job = config(*changes)
    check_pod(job)
    assert check_paths(job)


@pytest.mark.parametrize("path", sorted((conf_dir() / "pod").glob("v*.yaml")), ids=lambda path: path.stem)
def test_a_preset_is_a_slice_that_is_sold_with_its_image(path: Path) -> None:
    values = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PodConfig), OmegaConf.load(path)))
    pod = cast(PodConfig, values)
    sold = read_accelerator_type(str(pod.accelerator_type))
    assert path.stem == f"{sold.chip.name}_{str(pod.accelerator_type).rpartition('-')[2]}"
    assert (pod.hosts, pod.devices_per_host) == (sold.hosts, sold.chips_per_host)
    image = {V4.name: "tpu-ubuntu2204-base"} | {chip.name: image for image, chip in IMAGES.items()}
    assert pod.runtime_version == image[sold.chip.name]


def test_what_is_not_known_here_is_said_to_be_unchecked() -> None:
    with pytest.raises(NotChecked, match="v9-64 is not known here"):
        check_shape(config("pod.accelerator_type=v9-64"))
    with pytest.raises(NotChecked, match="whether image my-image fits v5litepod-64"):
        check_image(config("pod.runtime_version=my-image"))
    assert check_shape(config()) == "v5litepod-64 has 16 VMs of 4 chips"
    assert check_image(config()) == "v2-alpha-tpuv5-lite is the image of v5e"


SA = "serviceAccount:hosts@p.iam.gserviceaccount.com"


def policy(**members: str) -> Policy:
    return Policy([Binding(f"roles/{role.replace('__', '.')}", [member]) for role, member in members.items()])


@pytest.mark.parametrize(
    ("bucket", "project", "error"),
    [
        (policy(storage__objectAdmin=SA), policy(), None),
        (policy(), policy(storage__objectUser=SA), None),
        (policy(storage__legacyBucketOwner="projectEditor:p", storage__objectViewer=SA), policy(editor=SA), None),
        (policy(storage__objectAdmin="allAuthenticatedUsers"), policy(), None),
        (policy(storage__legacyBucketOwner="projectEditor:p"), policy(), JobError),
        (policy(storage__objectViewer=SA), policy(), JobError),
        (policy(storage__objectCreator=SA), policy(), JobError),
        (policy(storage__objectAdmin="user:me@x"), policy(editor="user:me@x"), JobError),
        (policy(storage__objectAdmin="group:all@x"), policy(), NotChecked),
        (policy(), None, NotChecked),
    ],
)
def test_access_of_the_hosts_by_policy(bucket: Policy, project: Policy | None, error: type[Exception] | None) -> None:
    policies, unread = ([bucket], "forbidden") if project is None else ([bucket, project], None)
    account = SA.removeprefix("serviceAccount:")
    if error is None:
        assert verdict("b", account, "p", policies, unread) == f"{account} can read and write gs://b"
    else:
        with pytest.raises(error):
            verdict("b", account, "p", policies, unread)


@pytest.mark.parametrize("verb", ["plan", "up", "run", "watch"])
def test_verbs_refuse_before_anything_is_asked(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    words = ["experiment=v5e64", "storage.run_dir=gs://bucket/run", "cloud.zones=[us-west4-a]", "model.path=launch"]
    assert main([verb, *words]) == 2
    assert "error: model.path=launch is no folder of this machine with a config.json" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["gs:/bucket/run", "gs:bucket/run", "gs//bucket/run", "s3:/bucket", "GS:/b", "file:/x"])
def test_a_url_with_a_slash_left_out_is_no_folder(url: str) -> None:
    with pytest.raises(JobError, match="must be a local folder or gs://bucket/prefix"):
        open_folder(url)


def test_a_missing_secret_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(JobError, match=r"^cloud\.secrets: NOT_THERE not set here; export it"):
        check_secrets(config("cloud.secrets=[NOT_THERE]"))
    monkeypatch.setenv("NOT_THERE", "x")
    assert check_secrets(config("cloud.secrets=[NOT_THERE]")) == "NOT_THERE"


def make_key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True)
    return path


def test_a_key_is_usable_without_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    assert "will be made" in check_key(tmp_path / "none")
    key = make_key(tmp_path / "key")
    assert check_key(key) == str(key)
    key.chmod(0o644)
    with pytest.raises(JobError, match=r"can be read by others.*chmod 600"):
        check_key(key)
    with pytest.raises(JobError, match=r"has a passphrase, or is damaged.*ssh-add"):
        check_key(make_key(tmp_path / "locked", "word"))
    other = make_key(tmp_path / "other")
    other.with_suffix(".pub").write_text((tmp_path / "key.pub").read_text())
    with pytest.raises(JobError, match=r"other\.pub does not belong to .*other"):
        check_key(other)
