"""A plan counts with the bucket's rate that such hosts have measured, unless the configuration gives one."""

from pathlib import Path

import pytest

from pod_job.config.load import load
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.preflight.report import find_rate, pod_slice, rates, with_rate
from pod_job.run_folder.bucket_rate import BucketRate, write_rate
from pod_job.run_folder.layout import BUCKET_RATE
from pod_job.storage.open import open_folder


def config(run_dir: Path | str, *more: str) -> JobConfig:
    return load(["experiment=v5e64", f"storage.run_dir={run_dir}", *more])


def measured_on(accelerator_type: str, run_dir: Path) -> BucketRate:
    rate = BucketRate("2026-11-27T09:00:00+00:00", accelerator_type, "us-west4-a", 4, 4, 1 << 31, 2.5e9, 3e9)
    write_rate(open_folder(run_dir), rate)
    return rate


@pytest.mark.parametrize("measured", ["v5litepod-16", "v5litepod-64", "v5litepod-256"])
def test_a_rate_of_the_same_kind_of_host_is_taken(measured: str, tmp_path: Path) -> None:
    job = config(tmp_path)
    rate = measured_on(measured, tmp_path)
    assert find_rate(job, pod_slice(job)) == rate
    known = rates(with_rate(job, rate), pod_slice(job), rate)
    assert (known.bucket_gb_s, known.assumed) == (2.5, ["host_gb_s"])
    assert known.bucket_origin == f"measured by 4 hosts of {measured} in us-west4-a with 4 writers each, 2026-11-27"


@pytest.mark.parametrize("measured", ["v5litepod-8", "v5litepod-1", "v4-32", "v6e-16", "v5p-64"])
def test_a_rate_of_another_kind_of_host_is_not(measured: str, tmp_path: Path) -> None:
    job = config(tmp_path)
    measured_on(measured, tmp_path)
    assert find_rate(job, pod_slice(job)) is None
    known = rates(job, pod_slice(job), None)
    assert (known.bucket_gb_s, known.assumed, known.bucket_origin) == (1.0, ["host_gb_s", "bucket_gb_s"], "")


def test_the_configuration_comes_first(tmp_path: Path) -> None:
    measured_on("v5litepod-64", tmp_path)
    job = config(tmp_path, "preflight.bucket_gb_s=0.5")
    assert find_rate(job, pod_slice(job)) is None
    assert rates(job, pod_slice(job), None).assumed == ["host_gb_s"]


def test_a_folder_that_cannot_be_read_from_here_leaves_the_assumption(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> None:
        raise JobError("no usable Google credentials")

    monkeypatch.setattr("pod_job.preflight.report.open_folder", refuse)
    job = config("gs://bucket/run")
    assert find_rate(job, pod_slice(job)) is None


@pytest.mark.parametrize(
    "content",
    [b"{}", b"[]", b'{"measured": 1}', b"\xff", b"write_bytes_s"],
    ids=["empty", "list", "type", "bytes", "text"],
)
def test_a_damaged_record_is_named_with_the_fix(content: bytes, tmp_path: Path) -> None:
    open_folder(tmp_path).replace(BUCKET_RATE, content)
    job = config(tmp_path)
    with pytest.raises(JobError, match=r"launcher/bucket_rate\.json: .*; remove it, then run `pod-job doctor --mea"):
        find_rate(job, pod_slice(job))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_what_cannot_be_a_rate_is_no_record(rate: float) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        BucketRate("2026-11-27", "v5litepod-64", "us-west4-a", 1, 4, 1, rate, 1.0)
