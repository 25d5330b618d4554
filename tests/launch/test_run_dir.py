"""Verbs on a run need its folder alone; what is recorded there is data, and trusted no further than it must be."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from sample_runs import identity

from launch.__main__ import main
from launch.cloud.pod_records import note_start
from launch.cloud.request import pod_name
from launch.job_config import config_of_run
from pod_job.config.load import load, to_json
from pod_job.run_folder.identity import claim
from pod_job.run_folder.layout import log_file
from pod_job.run_folder.pods import PodRecord
from pod_job.run_folder.status import HostStatus, Phase, write_status
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

ZONE = "us-west4-a"
SECRET = "s3cr3t-of-this-machine"
GCLOUD = """\
#!/bin/bash
printf '%s\\n' "$*" >>{log}
case "$*" in
  *tpu-vm\\ list*) cat {nodes};;
  *queued-resources\\ list*) echo '[]';;
  *ssh*) echo 'pod-job 0 ASKED'; echo 'pod-job 1 ASKED';;
esac
"""


class Cloud:
    """A program that stands in for gcloud: it lists `nodes` and keeps what it was told."""

    def __init__(self, root: Path) -> None:
        self.nodes, self.log = root / "nodes.json", root / "gcloud.log"
        self.nodes.write_text("[]")
        self.log.touch()
        program = root / "gcloud"
        program.write_text(GCLOUD.format(log=self.log, nodes=self.nodes))
        program.chmod(0o755)

    def add(self, name: str, made_by: str = "pod-job") -> None:
        node: dict[str, Any] = {"name": f"projects/p/locations/{ZONE}/nodes/{name}", "state": "READY"}
        node |= {"labels": {"made-by": made_by}, "networkEndpoints": [{"ipAddress": "10.0.0.1"}] * 2}
        node |= {"createTime": "2026-01-01T00:00:00Z", "acceleratorType": "v5litepod-8"}
        self.nodes.write_text(json.dumps([*json.loads(self.nodes.read_text()), node]))

    @property
    def commands(self) -> list[str]:
        """The command lines so far, without those that only list."""
        return [line for line in self.log.read_text().splitlines() if " list " not in line]


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return Cloud(tmp_path / "bin")


def started(run_dir: Path, *overrides: str, **changes: Any) -> Folder:
    """A run of 3 batches on two hosts, one batch done; `changes`: of sections of its recorded configuration."""
    folder = open_folder(run_dir)
    job = ["model.path=gone", "tasks.path=gone", f"storage.run_dir={run_dir}", "pod.hosts=2", "mesh.data=2"]
    recorded = to_json(load([*job, *overrides]))
    for section, values in changes.items():
        recorded[section] |= values
    claim(folder, identity(12, per_batch=4), recorded)
    folder.create("commits/batch_000001.json", [b"{}"])
    for host in range(2):
        write_status(folder, HostStatus(host=host, attempt="a", phase=Phase.extracting, batches=1, seconds=9.0))
        folder.replace(log_file(host), f"2026-01-01 00:00:0{host},000 INFO here is {host}\n".encode())
    return folder


TPU = ("pod.kind=tpu", "pod.accelerator_type=v5litepod-8", "cloud.project=their-project", f"cloud.zones=[{ZONE}]")


def test_a_run_on_this_machine_needs_its_folder_alone(
    tmp_path: Path, cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    started(run)
    assert main(["status", str(run), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["run"], shown["batches_done"], shown["batches"]) == (str(run), 1, 3)
    assert [host["phase"] for host in shown["hosts"]] == ["extracting"] * 2
    assert main(["logs", str(run), "--host", "1"]) == 0
    assert capsys.readouterr().out == "01 2026-01-01 00:00:01,000 INFO here is 1\n"
    assert main(["stop", str(run)]) == 2
    assert "pod.kind=local has no pod in the cloud; stop the job with Ctrl-C" in capsys.readouterr().err
    assert main(["down", str(run)]) == 0
    assert "there is nothing to delete" in capsys.readouterr().err
    assert cloud.log.read_text() == ""


def test_a_run_on_a_pod_needs_its_folder_alone(
    tmp_path: Path, cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also once it lies elsewhere than it was started: the pod's name comes from where that was."""
    folder = started(tmp_path / "run", *TPU)
    name = pod_name(config_of_run([folder.url]))
    cloud.add(name)
    cloud.add("extract-of-another")
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "run", moved)
    assert pod_name(config_of_run([str(moved)])) == name
    assert main(["status", str(moved), "--json"]) == 0
    assert [pod["name"] for pod in json.loads(capsys.readouterr().out)["pods"]] == [name]
    assert main(["stop", str(moved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"0": "ASKED", "1": "ASKED"}
    assert main(["down", str(moved), "cloud.project=other"]) == 0
    stop, delete = cloud.commands
    assert f"ssh {name} --worker=all --zone={ZONE} --project=their-project" in stop
    assert f"delete {name} --zone={ZONE} --project=other" in delete
    assert len(open_folder(moved).names("pods/")) == 1  # what it has cost


def test_the_pods_on_record_are_those_of_the_run_too(tmp_path: Path, cloud: Cloud) -> None:
    """A later start chose another name than run.json has."""
    folder = started(tmp_path, *TPU)
    note_start(folder, PodRecord("second", ZONE, "v5litepod-8", "spot", 1.0))
    cloud.add("second")
    assert main(["down", str(tmp_path)]) == 0
    assert [line.split(" --")[0] for line in cloud.commands] == ["compute tpus tpu-vm delete second"]


def test_a_pod_whose_job_has_not_begun_is_deleted(
    tmp_path: Path, cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    note_start(open_folder(tmp_path), PodRecord("early", ZONE, "v5litepod-8", "spot", 1.0))
    cloud.add("early")
    assert main(["down", str(tmp_path), "--dry-run"]) == 0
    assert "tpu-vm delete early" in capsys.readouterr().out
    note_start(open_folder(tmp_path), PodRecord("later", ZONE, "v5litepod-8", "free", 2.0))
    assert main(["down", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: cloud.capacity: Invalid value 'free', expected one of ")


def test_a_pod_that_the_launcher_did_not_make_is_left_alone(tmp_path: Path, cloud: Cloud) -> None:
    """A run folder from a stranger may hold the name of any machine."""
    folder = started(tmp_path, *TPU, "cloud.name=production")
    note_start(folder, PodRecord("staging", ZONE, "v5litepod-8", "spot", 1.0))
    cloud.add("production", made_by="hand")
    cloud.add("staging", made_by="hand")
    assert main(["down", str(tmp_path)]) == 0
    assert main(["stop", str(tmp_path)]) == 2
    assert cloud.commands == []


def test_recorded_values_are_neither_resolved_nor_run(
    tmp_path: Path, cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    """A `${...}` stays text, and flags for ssh, which can name programs, are not taken from a run folder."""
    token = "${oc.env:HF_TOKEN}"
    flags = [f"-oProxyCommand=touch {tmp_path}/stolen"]
    started(
        tmp_path / "run",
        *TPU,
        cloud={"name": "victim", "project": token, "ssh_flags": flags},
        model={"path": token},
        storage={"run_dir": token, "compile_cache": token},
    )
    cloud.add("victim")
    config = config_of_run([str(tmp_path / "run")])
    assert (config.model.path, config.cloud.project, config.cloud.ssh_flags) == (token, token, [])
    for verb in ("status", "logs", "stop", "down"):
        assert main([verb, str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err + cloud.log.read_text()
    assert "ProxyCommand" not in cloud.log.read_text()
    assert f"--project={token}" in cloud.log.read_text()


@pytest.mark.parametrize("verb", ["status", "logs", "stop", "down"])
def test_a_folder_without_a_run_is_an_error(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, str(tmp_path / "gone")]) == 2
    shown = capsys.readouterr()
    assert shown.err.strip().endswith("gone holds no run: run.json is missing")
    assert not (tmp_path / "gone").exists()


def test_a_run_without_a_recorded_configuration_names_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claim(open_folder(tmp_path), identity(12, per_batch=4))
    assert main(["status", str(tmp_path)]) == 2
    assert f"give experiment=... storage.run_dir={tmp_path}" in capsys.readouterr().err


def test_gc_needs_nothing(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    for words, project in (
        ([], ""),
        (["--project", "mine"], "--project=mine"),
        (["cloud.project=mine"], "--project=mine"),
        (["experiment=v5e64", "storage.run_dir=gs://b/r", "cloud.project=mine"], "--project=mine"),
    ):
        cloud.log.write_text("")
        assert main(["gc", *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []
        for line in cloud.log.read_text().splitlines():
            assert ("--project" in line) == bool(project)
            assert project in line
    assert main(["gc"]) == 0
    assert capsys.readouterr().out == "no pod of pod-job exists\n"
    assert main(["gc", "cloud.projct=mine"]) == 2
    assert "did you mean cloud.project?" in capsys.readouterr().err
