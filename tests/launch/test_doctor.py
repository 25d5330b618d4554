"""Each problem that `doctor` finds is one line with the fix; test_rehearsal has its checks of the cloud."""

from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launch.cloud.bundle import Bundle, pinned_versions
from launch.cloud.iam import NotChecked
from launch.cloud.pods import Pod
from launch.cloud.remote import Answer
from launch.cloud.tpu_api import Node, QueuedResource
from launch.doctor import bucket, bucket_rate, project, versions
from launch.doctor.answer import check_answer
from launch.doctor.findings import all_findings, each_cause_once
from launch.shell import Finished
from launch.verbs import doctor
from pod_job.config.load import load
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.run_folder.bucket_rate import read_rate
from pod_job.storage.open import open_folder
from tools.fakepod.cloud import QUOTA

NAMED = ["cloud.zones=[us-west4-a,us-east5-b]", "storage.run_dir=gs://bucket/run"]


def namespace(overrides: list[str], **options: bool) -> Namespace:
    off = dict.fromkeys(("dry_run", "json", "measure_bucket"), False)
    return Namespace(overrides=["experiment=v5e64", *overrides], **off | options)


def config(*more: str) -> JobConfig:
    return load(["experiment=v5e64", *NAMED, *more])


@pytest.fixture
def pods(monkeypatch: pytest.MonkeyPatch) -> list[Pod]:
    """The pods of the project, as gcloud lists them."""
    there: list[Pod] = []
    monkeypatch.setattr(project, "list_pods", lambda project: there)
    for module in (versions, bucket_rate):
        monkeypatch.setattr(module, "pods_of", lambda config: there)
    return there


def test_a_request_refused_for_want_of_quota_is_found(pods: list[Pod]) -> None:
    said = project.check_quota(config())
    assert said.startswith(
        "64 chips of preemptible quota needed in a zone (0 unless asked for, console.cloud.google.com"
    )
    assert "64 chips of reserved quota" in project.check_quota(config("cloud.capacity=reserved"))
    error = {"failedData": {"error": {"message": QUOTA}}}
    queued = {"name": "extract-1", "state": {"state": "FAILED", **error}, "tpu": {"nodeSpec": [{}]}}
    pods.append(Pod("extract-1", "us-west4-a", None, msgspec.convert(queued, QueuedResource)))
    with pytest.raises(JobError, match=r"^us-west4-a refused extract-1: Quota limit .*; ask for 64 chips of pre"):
        project.check_quota(config())


def test_a_zone_without_such_pods_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"us-west4-a": Finished(0, "{}", ""), "us-east5-b": Finished(1, "", "ERROR: (gcloud) NOT_FOUND: no")}
    monkeypatch.setattr(
        project, "call", lambda argv: next(a for zone, a in answers.items() if f"--zone={zone}" in argv)
    )
    with pytest.raises(JobError, match=r"^us-east5-b has no v5litepod-64; take it off cloud\.zones, or see `gcloud "):
        project.check_zones(config())
    answers["us-east5-b"] = answers["us-west4-a"]
    assert project.check_zones(config()) == "v5litepod-64 is offered in us-west4-a, us-east5-b"


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

    monkeypatch.setattr(bucket, "open_folder", lambda url: Bucket())
    monkeypatch.setattr(bucket, "bucket_location", lambda bucket: where)
    said = bucket.check_bucket(config())
    assert ("not in " + far in said) if far else ("not in" not in said)


def test_versions_here_and_on_the_hosts_must_agree(pods: list[Pod], monkeypatch: pytest.MonkeyPatch) -> None:
    here: dict[str, Any] = {"jax": pinned_versions()["jax"], "libtpu": None}
    monkeypatch.setattr(versions, "installed", here.__getitem__)
    assert f"jax {here['jax']} by uv, with constraints.txt" in versions.check_versions(config())
    assert "need Cloud NAT" not in versions.check_versions(config())
    assert "need Cloud NAT for that, or cloud.environments=" in versions.check_versions(
        config("cloud.internal_ip=true")
    )
    archive = config("cloud.internal_ip=true", "cloud.environments=gs://bucket/environments")
    assert versions.check_versions(archive).endswith("as an archive in gs://bucket/environments")
    here["jax"] = "0.1"
    with pytest.raises(JobError, match=r"^jax 0\.1 here, .* on the hosts: .*pip install -c constraints\.txt"):
        versions.check_versions(config())

    pods.append(Pod("extract-1", "us-west4-a", Node(name="extract-1", state="READY"), None))
    found = {0: "3.11.7 0.1", 1: "3.11.7 0.1"}
    monkeypatch.setattr(versions, "host_versions", lambda config, pod: found)
    assert versions.check_versions(config()).startswith("hosts have Python and jax 3.11.7 0.1, here Python ")
    found[1] = "3.10.1 0.1"
    with pytest.raises(JobError, match="hosts differ in Python and jax"):
        versions.check_versions(config())
    found[0] = found[1] = "3.11.7 0.2"
    with pytest.raises(JobError, match=r"hosts have Python and jax 3\.11\.7 0\.2, here Python .* jax 0\.1; install"):
        versions.check_versions(config())


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

    fine = {check.name: replace(check, look=lambda config: "fine") for check in doctor.CHECKS}
    looks = {"gcloud": fails, "quota": fails, "code": fails, "hosts": unseen}
    wrong = {name: replace(fine[name], look=look) for name, look in looks.items()}
    wrong["quota"] = replace(wrong["quota"], needs=())
    monkeypatch.setattr(doctor, "CHECKS", [*(fine | wrong).values()])
    assert doctor.doctor(namespace(NAMED)) == 2
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert [name for name, line in lines.items() if line.startswith("BAD")] == ["gcloud"]
    assert [name for name, line in lines.items() if line.startswith("WARN")] == [
        *("account", "api", "zones", "quota", "hosts", "code", "versions")
    ]
    assert "not checked: it needs gcloud" in lines["code"]
    assert "not checked: it needs gcloud" in lines["account"]


GB = 10**9


@pytest.fixture
def measuring(pods: list[Pod], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Answers of the hosts of a READY pod to the script that measures; what they are asked is in `asked`."""
    pods.append(Pod("extract-1", "us-west4-a", Node(name="p", state="READY", accelerator_type="v5litepod-64"), None))
    answers = {
        host: f'MEASURED {{"bytes": 9, "write_bytes_s": {2e9 - host}, "read_bytes_s": {1e9 + host}}}' for host in (0, 1)
    }

    def ask(reach: Any, hosts: int, text: str) -> dict[int, Answer]:
        assert "RUN=gs://bucket/run" in text
        assert "WRITERS=4" in text
        return {host: Answer(host, *answer.split(" ", 1)) for host, answer in answers.items()}

    monkeypatch.setattr(bucket_rate, "ask", ask)
    monkeypatch.setattr(bucket_rate, "install", lambda *_: Bundle("b" * 64, b"", "e"))
    monkeypatch.setattr(bucket_rate, "open_folder", lambda url: open_folder(tmp_path))
    return answers


def test_the_rate_of_the_slowest_host_is_kept_in_the_run_folder(measuring: dict[int, str], tmp_path: Path) -> None:
    with pytest.raises(NotChecked, match=r"^1 GB/s from each host .* is assumed; .* --measure-bucket"):
        bucket_rate.check_rate(config())
    said = bucket_rate.measure_rate(config())
    assert said.startswith("2 GB/s from each host, 1 GB/s to each, measured by 2 hosts of v5litepod-64 in us-west4-a")
    assert bucket_rate.check_rate(config()) == said
    rate = read_rate(open_folder(tmp_path))
    assert rate is not None
    assert (rate.write_bytes_s, rate.read_bytes_s) == (2 * GB - 1, GB)
    measuring[1] = 'MEASURED {"bytes": 9, "write_bytes_s": 5e8, "read_bytes_s": 5e8}'
    assert bucket_rate.measure_rate(config()).startswith("0.5 GB/s from each host")
    assert bucket_rate.check_rate(config("preflight.bucket_gb_s=3")) == "preflight.bucket_gb_s=3 GB/s from each host"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("BUSY a job runs here", "worker 1: busy: a job runs here"),
        ("FAILED 403 forbidden", "worker 1: failed: 403 forbidden"),
        ("MEASURED {}", "answer of worker 1: bytes is missing"),
        ('MEASURED {"bytes": 9, "write_bytes_s": 0.0, "read_bytes_s": 1.0}', "answer of worker 1: 0.0 is not a rate"),
    ],
)
def test_a_measurement_that_a_host_did_not_make_is_none(
    answer: str, said: str, measuring: dict[int, str], tmp_path: Path
) -> None:
    measuring[1] = answer
    with pytest.raises(JobError) as error:
        bucket_rate.measure_rate(config())
    assert str(error.value).startswith(said)
    assert read_rate(open_folder(tmp_path)) is None


def test_without_a_ready_pod_nothing_is_measured_and_the_command_is_named(pods: list[Pod]) -> None:
    fix = r"extract-\w+ is not READY, .*`pod-job up storage\.run_dir=gs://bucket/run \.\.\.` first"
    for state in (None, "CREATING", "PREEMPTED"):
        pods[:] = [Pod("extract-1", "us-west4-a", Node(name="p", state=state), None)] if state else []
        with pytest.raises(JobError, match=fix):
            bucket_rate.measure_rate(config())


def test_the_flag_measures_where_the_list_only_looks(capsys: pytest.CaptureFixture[str]) -> None:
    looks = {check.name: check.look for check in map(partial(doctor.measuring, checks=doctor.CHECKS), doctor.CHECKS)}
    assert looks["rate"] is bucket_rate.measure_rate
    assert {name: look for name, look in looks.items() if name != "rate"} == {
        check.name: check.look for check in doctor.CHECKS if check.name != "rate"
    }


@pytest.fixture
def own(tmp_path: Path) -> JobConfig:
    """A job on three hosts of a file, each a slice."""
    (tmp_path / "hosts.txt").write_text("me@vm-0:2222\n\nvm-1\n\n[2001:db8::1]\n")
    pod = ("pod=v5e_8", "mesh=8x1", "pod.slices=3", f"pod.hosts_file={tmp_path}/hosts.txt")
    return load(["experiment=v5e64", *pod, f"storage.run_dir={tmp_path}/run", f"cloud.shared_folders=[{tmp_path}]"])


def answering(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Has ssh answer with a word on each host of the file in turn; "" stands for a host that it cannot reach."""
    targets = ["me@vm-0", "vm-1", "2001:db8::1"]

    def call(argv: list[str], stdin: bytes = b"", timeout_s: float = 0.0) -> Finished:
        word = words[targets.index(argv[-2])]
        return Finished(0, f"pod-job 0 {word} a\n", "") if word else Finished(255, "", "ssh: connect: timed out")

    monkeypatch.setattr("launch.cloud.calls.call", call)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["NONE", "NONE", "EXITED"], "all hosts answer over ssh"),
        (["NONE", "RUNNING", "EXITED"], "all hosts answer over ssh; a job runs on vm-1"),
        (["RUNNING", "NONE", "RUNNING"], "all hosts answer over ssh; a job runs on me@vm-0:2222, 2001:db8::1"),
    ],
)
def test_hosts_of_a_file_are_asked_and_a_job_on_them_is_named(
    own: JobConfig, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, words)
    assert check_answer(own) == said


def test_a_host_of_a_file_that_does_not_answer_is_bad_and_what_needs_it_is_not_checked(
    own: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, ["NONE", "", "NONE"])
    checks = [check for check in doctor.CHECKS_OF_OWN_HOSTS if check.name in ("hosts file", "answer", "versions")]
    findings = {finding.check: finding for finding in each_cause_once(all_findings(checks, own))}
    assert findings["hosts file"].well
    assert findings["answer"].said.startswith("worker 0 (vm-1) of 1 gave no answer over ssh: ssh: connect: timed out")
    assert not findings["answer"].well
    assert (findings["versions"].checked, findings["versions"].said) == (False, "not checked: it needs answer")
