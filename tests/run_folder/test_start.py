"""run.json and metadata.json name nothing of the workstation and the cloud project; launcher/ has it all."""

from pathlib import Path

import pytest
from sample_runs import identity

from pod_job.config.load import from_json, load, to_json
from pod_job.run_folder.identity import claim, read_run
from pod_job.run_folder.start import is_of_one_machine, read_start
from pod_job.storage.open import open_folder

SECRETS = ("their-project", "robot@their-project", "their_key", "/home/me", "their-team", "THEIR_TOKEN", "their-bucket")


def test_run_json_is_fit_to_be_published(tmp_path: Path) -> None:
    config = load(
        [
            *(
                "cloud.project=their-project",
                "cloud.service_account=robot@their-project",
                "cloud.secrets=[THEIR_TOKEN]",
            ),
            *("cloud.ssh_flags=[-i,their_key]", "+cloud.labels.team=their-team", "cloud.zones=[us-west4-a]"),
            *(
                "model.path=/home/me/models/x",
                "tasks.path=/home/me/tasks.json",
                "storage.run_dir=gs://their-bucket/run",
            ),
            *("storage.compile_cache=/home/me/cache", "cloud.python=/home/me/python"),
        ]
    )
    folder = open_folder(tmp_path)
    claim(folder, identity(8), to_json(config))
    text = (tmp_path / "run.json").read_text()
    assert [secret for secret in SECRETS if secret in text] == []
    assert from_json(read_start(folder) or {}) == config
    recorded = read_run(folder).config
    assert recorded is not None
    assert recorded["extract"]["seq_len"] == config.extract.seq_len
    assert "path" not in recorded["model"] | recorded["tasks"]


@pytest.mark.parametrize("source", ["/home/me/runs/source", "../their-team/source"])
def test_a_training_run_names_the_run_that_it_read_and_not_where_that_lies(tmp_path: Path, source: str) -> None:
    config = load(
        [
            *("mode=train", f"train.run={source}", "train.source=run", "train.saes=[{tap:layer_6,latents:32,k:2}]"),
            f"storage.run_dir={tmp_path}",
        ]
    )
    folder = open_folder(tmp_path)
    claim(folder, identity(8), to_json(config))
    assert from_json(read_start(folder) or {}) == config
    recorded = read_run(folder).config
    assert recorded is not None
    assert from_json(recorded | {"storage": {"run_dir": "x"}}).train.run == "source"


def test_the_first_start_stays_on_record(tmp_path: Path) -> None:
    folder, job = open_folder(tmp_path), ["model.path=x", "tasks.path=y", f"storage.run_dir={tmp_path}"]
    first, second = to_json(load([*job, "cloud.project=first"])), to_json(load([*job, "cloud.project=second"]))
    claim(folder, identity(8), first)
    claim(folder, identity(8), second)
    assert read_start(folder) == first
    (tmp_path / "launcher" / "start.json").unlink()  # the first start was killed before it was written
    claim(folder, identity(8), second)
    assert read_start(folder) == second


@pytest.mark.parametrize("path", ["/home/me/x", "~/x", "~me/x", "../x", "a/../../x", "/"])
def test_paths_of_one_machine(path: str) -> None:
    assert is_of_one_machine(path)


@pytest.mark.parametrize("path", ["Qwen/Qwen2.5-7B", "gs://bucket/a/../b", "runs/models/x", "tasks.json", "x..y"])
def test_names_that_others_can_use(path: str) -> None:
    assert not is_of_one_machine(path)
