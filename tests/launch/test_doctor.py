"""Each problem that `doctor` finds is one line with the fix; test_rehearsal has its checks of the cloud."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launch.cloud.bundle import pinned_versions
from launch.cloud.iam import NotChecked
from launch.cloud.pods import Pod
from launch.cloud.tpu_api import Node, QueuedResource
from launch.shell import Finished
from launch.verbs import doctor
from pod_job.config.load import load
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from tools.fakepod.cloud import QUOTA

NAMED = ["cloud.zones=[us-west4-a,us-east5-b]", "storage.run_dir=gs://bucket/run"]


def config(*more: str) -> JobConfig:
    return load(["experiment=v5e64", *NAMED, *more])


@pytest.fixture
def pods(monkeypatch: pytest.MonkeyPatch) -> list[Pod]:
    """The pods of the project, as gcloud lists them."""
    there: list[Pod] = []
    monkeypatch.setattr(doctor, "list_pods", lambda project: there)
    monkeypatch.setattr(doctor, "find_pods", lambda name, project: there)
    return there


def test_a_request_refused_for_want_of_quota_is_found(pods: list[Pod]) -> None:
    said = doctor.check_quota(config())
    assert said.startswith(
        "64 chips of preemptible quota needed in a zone (0 unless asked for, console.cloud.google.com"
    )
    assert "64 chips of reserved quota" in doctor.check_quota(config("cloud.capacity=reserved"))
    error = {"failedData": {"error": {"message": QUOTA}}}
    queued = {"name": "extract-1", "state": {"state": "FAILED", **error}, "tpu": {"nodeSpec": [{}]}}
    pods.append(Pod("extract-1", "us-west4-a", None, msgspec.convert(queued, QueuedResource)))
    with pytest.raises(JobError, match=r"^us-west4-a refused extract-1: Quota limit .*; ask for 64 chips of pre"):
        doctor.check_quota(config())


def test_a_zone_without_such_pods_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"us-west4-a": Finished(0, "{}", ""), "us-east5-b": Finished(1, "", "ERROR: (gcloud) NOT_FOUND: no")}
    monkeypatch.setattr(doctor, "call", lambda argv: next(a for zone, a in answers.items() if f"--zone={zone}" in argv))
    with pytest.raises(JobError, match=r"^us-east5-b has no v5litepod-64; take it off cloud\.zones, or see `gcloud "):
        doctor.check_zones(config())
    answers["us-east5-b"] = answers["us-west4-a"]
    assert doctor.check_zones(config()) == "v5litepod-64 is offered in us-west4-a, us-east5-b"


@pytest.mark.parametrize(
    ("where", "far"), [("us-west4", "us-east5"), ("us", ""), ("europe-west4", "us-east5, us-west4")]
)
def test_a_bucket_far_from_the_zones_is_told(
    where: str, far: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bucket:
        url = "gs://bucket/run"

        def check_writable(self) -> None:
            pass

    monkeypatch.setattr(doctor, "open_folder", lambda url: Bucket())
    monkeypatch.setattr(doctor, "bucket_location", lambda bucket: where)
    said = doctor.check_bucket(config())
    assert ("not in " + far in said) if far else ("not in" not in said)


def test_versions_here_and_on_the_hosts_must_agree(pods: list[Pod], monkeypatch: pytest.MonkeyPatch) -> None:
    here: dict[str, Any] = {"jax": pinned_versions()["jax"], "libtpu": None}
    monkeypatch.setattr(doctor, "installed", here.__getitem__)
    assert f"jax {here['jax']} by uv, with constraints.txt" in doctor.check_versions(config())
    here["jax"] = "0.1"
    with pytest.raises(JobError, match=r"^jax 0\.1 here, .* on the hosts: .*pip install -c constraints\.txt"):
        doctor.check_versions(config())

    pods.append(Pod("extract-1", "us-west4-a", Node(name="extract-1", state="READY"), None))
    found = {0: "3.11.7 0.1", 1: "3.11.7 0.1"}
    monkeypatch.setattr(doctor, "host_versions", lambda config, pod: found)
    assert doctor.check_versions(config()).startswith("hosts have Python and jax 3.11.7 0.1, here Python ")
    found[1] = "3.10.1 0.1"
    with pytest.raises(JobError, match="hosts differ in Python and jax"):
        doctor.check_versions(config())
    found[0] = found[1] = "3.11.7 0.2"
    with pytest.raises(JobError, match=r"hosts have Python and jax 3\.11\.7 0\.2, here Python .* jax 0\.1; install"):
        doctor.check_versions(config())


def test_the_pins_are_those_for_this_python() -> None:
    pins = pinned_versions()
    assert {"jax", "numpy", "google-cloud-storage"} <= pins.keys()


def test_each_cause_is_told_once_and_what_was_not_checked_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(config: JobConfig) -> str:
        raise JobError("gcloud is not installed; install it")

    def unseen(config: JobConfig) -> str:
        raise NotChecked("403 forbidden")

    checks = dict.fromkeys(doctor.CHECKS, lambda config: "fine")
    monkeypatch.setattr(doctor, "CHECKS", checks | {"gcloud": fails, "quota": fails, "code": fails, "hosts": unseen})
    monkeypatch.setattr(doctor, "NEEDS", {"account": ["gcloud"], "api": ["account"], "zones": ["api"]})
    assert doctor.doctor(Namespace(overrides=["experiment=v5e64", *NAMED], dry_run=False, json=False)) == 2
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert [name for name, line in lines.items() if line.startswith("BAD")] == ["gcloud"]
    assert [name for name, line in lines.items() if line.startswith("WARN")] == [
        *("account", "api", "zones", "quota", "hosts", "code")
    ]
    assert "not checked: it needs gcloud" in lines["code"]
    assert "not checked: 403 forbidden" in lines["hosts"]
