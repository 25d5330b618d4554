"""Hosts get the code and exactly the task files that the job reads: nothing hidden, nothing from outside, no run."""

import json
import os
import tarfile
from io import BytesIO
from pathlib import Path

import datasets
import pytest

from launch.cloud import bundle
from launch.cloud.bundle import make_bundle, task_files
from pod_job.config.tasks import TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.tasks import read_tasks

TASK = json.dumps({"train": [{"input": [[1]], "output": [[2]]}], "test": [{"input": [[1]]}]})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workstation's folder, in which a person has tasks and what is nobody's business."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/a.json", "data/b.json", "data/.env", "data/notes.md", "data/.git/x.json", ".env", "key.pem"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(TASK)
    (tmp_path / "data" / "link").symlink_to("/etc/shadow")
    return tmp_path


def sent(path: str, form: TaskFormat) -> list[str]:
    return sorted(task_files(TasksConfig(path=path, format=form)))


def test_only_what_the_job_reads_is_sent(here: Path) -> None:
    assert sent("data", TaskFormat.arc) == sent("./data/", TaskFormat.arc) == ["data/a.json", "data/b.json"]
    assert sent("data/a.json", TaskFormat.arc) == ["data/a.json"]
    assert sent("data/notes.md", TaskFormat.jsonl) == ["data/notes.md"]
    (here / "data" / ".secret.json").write_text(TASK)  # as a glob would, ARC tasks leave hidden files out
    assert sent(".", TaskFormat.arc) == ["data/a.json", "data/b.json"]  # below a folder that has none itself
    assert sent("org/name", TaskFormat.dataset) == sent(str(here / "data"), TaskFormat.arc) == []


def test_texts_and_datasets_are_sent_whole(here: Path) -> None:
    for name in ("texts/a.txt", "texts/sub/b.txt", "texts/.hidden", "texts/c.md"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("text")
    assert sent("texts", TaskFormat.text) == ["texts/a.txt", "texts/sub/b.txt"]
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(here / "saved")
    (here / "saved" / "train" / "notes.json").write_text("{}")
    names = sent("saved", TaskFormat.dataset)
    assert "saved/train/notes.json" not in names
    assert "saved/dataset_dict.json" in names
    moved = here / "hosts"
    for name in names:
        (moved / name).parent.mkdir(parents=True, exist_ok=True)
        (moved / name).write_bytes((here / name).read_bytes())
    tasks = read_tasks(TasksConfig(path=str(moved / "saved"), format=TaskFormat.dataset, split="test"))
    assert [sample.prompt for sample in tasks.samples] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "target", "form", "reason"),
    [
        ("link.json", "/etc/hostname", TaskFormat.arc, "is a link that leads out of the folder"),
        ("link.json", "../.env", TaskFormat.arc, "is a link that leads out of the folder"),
        (".ssh/id.txt", None, TaskFormat.text, "is hidden"),
        ("run/commits/x.txt", None, TaskFormat.text, "is in a run folder"),
        ("run/deep/er/x.txt", None, TaskFormat.text, "is in a run folder"),
    ],
)
def test_what_nobody_wants_to_send_is_refused_by_name(
    name: str, target: str | None, form: TaskFormat, reason: str, here: Path
) -> None:
    place = here / "data" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target) if target else place.write_text("x")
    if "run" in place.parts[-4:]:
        (here / "data" / "run" / "run.json").write_text("{}")
        (here / "data" / "run" / "commits").mkdir(exist_ok=True)
    with pytest.raises(JobError, match=rf"tasks\.path=data: data/{name} {reason}; put the task files"):
        sent("data", form)


def test_a_path_up_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "work").mkdir()
    monkeypatch.chdir(here / "work")
    with pytest.raises(JobError, match="is outside the folder that you launch from"):
        sent("../data", TaskFormat.arc)


def test_a_pipe_is_refused(here: Path) -> None:
    os.mkfifo(here / "data" / "c.json")
    with pytest.raises(JobError, match="is not a regular file"):
        sent("data", TaskFormat.arc)


def test_the_code_has_no_hidden_file_and_no_link(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("code/job.py", "code/.env", "code/.git/config", "code/__pycache__/job.pyc"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("")
    (here / "code" / "linked.py").symlink_to("/etc/hostname")
    assert list(bundle.tree(here / "code", "pod_job")) == ["pod_job/job.py"]
    with tarfile.open(fileobj=BytesIO(make_bundle(TasksConfig(path="data")).data)) as archive:
        names = archive.getnames()
    assert {"pod_job/job.py", "conf/job.yaml", "pyproject.toml", "data/a.json", "data/b.json"} <= set(names)
    assert [name for name in names if "/." in name or name.startswith((".", "/"))] == []
