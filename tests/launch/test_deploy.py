"""Hosts that run different attempts are not one job."""

from pathlib import Path

import pytest

from launch.cloud import deploy
from launch.cloud.bundle import Bundle
from launch.cloud.gcloud import Reach
from launch.cloud.remote import Answer
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.storage.open import open_folder


def test_a_host_that_runs_an_earlier_start_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(reach: Reach, hosts: int, text: str, patience_s: float = 0.0) -> dict[int, Answer]:
        started = "ATTEMPT=" in text
        words = (
            ["LAUNCHED new", "ALREADY_RUNNING old", *["LAUNCHED new"] * (hosts - 2)]
            if started
            else ["READY found"] * hosts
        )
        return {host: Answer(host, *answer.split()) for host, answer in enumerate(words)}

    monkeypatch.setattr(deploy, "make_bundle", lambda _: Bundle("a" * 64, b"", "environment"))
    monkeypatch.setattr(deploy, "place_bundle", lambda *_: {"BUNDLE_URL": ""})
    monkeypatch.setattr(deploy, "ask", ask)
    config = load(["experiment=v5e64", "storage.run_dir=gs://bucket/run"])
    reach = Reach("extract-1", "us-west4-a", None, False, [])
    with pytest.raises(JobError, match=r"^worker 1: still runs an earlier start; `pod-job stop` first$"):
        deploy.deploy(config, [], reach, open_folder(str(tmp_path)), deploy.Start("new", "", None), lambda _: None)
