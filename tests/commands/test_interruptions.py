"""Every command on a disk that fills, or killed anywhere: what was there stays, and it runs again."""

import contextlib
import errno
import hashlib
import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_content import content
from sample_runs import finished_run

from pod_job.checking.verify import verify
from pod_job.commands import export, export_sae_lens, import_pickles, merge, shuffle
from pod_job.commands import verify as verify_command
from pod_job.commands.report import picture_file, write_page
from pod_job.errors import JobError
from pod_job.interop.pickle_export import export_pickles
from pod_job.storage import local
from pod_job.storage.open import open_folder
from pod_job.training.architectures.shape import Architecture
from pod_job.training.layouts.read import read_saes
from pod_job.training.layouts.sae_lens import write_sae
from pod_job.training.saes import TrainedSae
from tools.fuzz.sae_targets import random_sae

EFFECTS = [(os, "write"), (os, "fsync"), (os, "link"), (os, "replace"), (os, "mkdir"), (local, "write_temporary")]
COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "merge": (merge.main, ["RUN"]),
    "compact": (merge.main, ["RUN", "--compact"]),
    "shuffle": (shuffle.main, ["RUN", "OUT"]),
    "export": (export.main, ["RUN", "OUT"]),
    "export-sae-lens": (export_sae_lens.main, ["RUN", "OUT", "--layer", "6", "--context-size", "8"]),
    "import": (import_pickles.main, ["PICKLES", "OUT"]),
    "verify": (verify_command.main, ["RUN"]),
}


class Killed(BaseException):
    """The death of a process: nothing that it does afterwards has any effect."""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and its pickles."""
    top = tmp_path_factory.mktemp("original")
    finished_run(open_folder(top / "RUN"), [20, 30])
    export_pickles(top / "RUN", top / "PICKLES")
    return top


@contextlib.contextmanager
def failing(after: int, error: BaseException) -> Iterator[list[int]]:
    """Lets so many of the EFFECTS happen; all later ones raise the error."""
    left = [after]

    def around(effect: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if effect is os_write and arguments[0] < 3:
                return effect(*arguments, **named)
            left[0] -= 1
            if left[0] < 0:
                raise error
            return effect(*arguments, **named)

        return call

    os_write = os.write
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in EFFECTS:
            patch.setattr(owner, name, around(getattr(owner, name)))
        if isinstance(error, Killed):  # a dead process tidies nothing up
            patch.setattr(Path, "unlink", around(Path.unlink))
            patch.setattr(shutil, "rmtree", around(shutil.rmtree))
        yield left


def run(command: str, top: Path) -> tuple[int, str]:
    """Returns exit status and errors of a command, RUN, PICKLES and OUT of which lie in `top`."""
    main, arguments = COMMANDS[command]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        status = main([str(top / word) if word.isupper() else word for word in arguments])
    return status, errors.getvalue()


def outcome(command: str, top: Path) -> Any:
    """Returns all that a reader gets of what the command made, and the names of all files."""
    names = sorted(str(path.relative_to(top)) for path in top.rglob("*"))
    if command in ("shuffle", "import"):
        return names, content(open_folder(top / "OUT"))
    if command in ("export", "export-sae-lens"):
        files = [path for path in sorted((top / "OUT").iterdir()) if path.suffix != ".arrow"]
        return names, [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return names, content(open_folder(top / "RUN"))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), Killed()], ids=["full", "killed"])
@pytest.mark.parametrize("page", ["report/index.html", "page.html"])
def test_a_report_leaves_the_earlier_page_or_the_new_one(page: str, error: BaseException, tmp_path: Path) -> None:
    """The page has its figures in it; those beside it are whole, too, wherever the command ends."""
    earlier, new = (
        ("<p>1</p>" * 1000, {"a": b"1" * 9000, "b": b"1" * 9}),
        ("<p>2</p>" * 1000, {"a": b"2", "b": b"2" * 9}),
    )
    for after in itertools.count():
        folder = open_folder(tmp_path / str(after))
        write_page(folder, page, *earlier)
        with failing(after, error) as left, contextlib.suppress(JobError, Killed):
            write_page(folder, page, *new)
        names = {page: None, picture_file(page, "a"): "a", picture_file(page, "b"): "b"}
        assert set(folder.names("")) == set(names)
        states = []
        for name, picture in names.items():
            contents = [(made[1][picture] if picture else made[0].encode()) for made in (earlier, new)]
            states.append(contents.index(folder.read(name)))
        assert states[0] <= min(states[1:])  # the page is replaced last
        if left[0] >= 0:
            assert states == [1, 1, 1]
            break
        write_page(folder, page, *new)
        assert folder.read(page) == new[0].encode()
    assert after > 9


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), Killed()], ids=["full", "killed"])
@pytest.mark.parametrize("every", [50, pytest.param(11, marks=pytest.mark.pod)])
@pytest.mark.parametrize("command", COMMANDS)
def test_it_leaves_what_was_there_and_runs_again(
    original: Path, tmp_path: Path, command: str, error: BaseException, every: int
) -> None:
    shutil.copytree(original, tmp_path / "whole")
    assert run(command, tmp_path / "whole")[0] == 0
    expected, before = outcome(command, tmp_path / "whole"), content(open_folder(original / "RUN"))
    interrupted = 0
    for after in itertools.count(1, every):
        top = tmp_path / str(after)
        shutil.copytree(original, top)
        with failing(after, error) as left:
            try:
                status, errors = run(command, top)
            except Killed:
                status, errors = 2, "error: killed\n"
        assert content(open_folder(top / "RUN")) == before
        if left[0] >= 0:
            break
        interrupted += 1
        assert errors.count("\n") == 1
        noted = command == "verify" and isinstance(error, OSError)  # what it found is shown all the same
        assert errors.startswith("note: " if noted else "error: ")
        assert status == (0 if noted else 2)
        if not isinstance(error, Killed):
            assert not [path for path in top.rglob(".*") if path.name.endswith(".tmp")]
        assert run(command, top)[0] == 0
        assert not [path for path in top.rglob(".*.tmp") if not path.name.startswith((".metadata", ".report", ".run"))]
        for place in ("RUN", "OUT"):
            open_folder(top / place).sweep(-1.0)  # small records that were being replaced; a later merge does it
        assert outcome(command, top) == expected
        assert verify(top / ("OUT" if command in ("shuffle", "import") else "RUN")).sound
        shutil.rmtree(top)
    assert interrupted


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), Killed()], ids=["full", "killed"])
@pytest.mark.parametrize("to", ["sae-lens", "circuit-tracer"])
def test_an_export_of_saes_leaves_none_or_whole_ones_and_runs_again(
    to: str, error: BaseException, tmp_path: Path
) -> None:
    write_sae(open_folder(tmp_path / "sae"), "", random_sae(Architecture.jump_relu, transcoder=to == "circuit-tracer"))
    [whole] = read_saes(tmp_path / "sae").values()
    for after in itertools.count():
        out = tmp_path / str(after)
        words = [str(tmp_path / "sae"), str(out), "--to", to]
        with failing(after, error) as left, contextlib.suppress(Killed):
            export.main(words)
        for folder in (out, *out.glob("*/")):
            with contextlib.suppress(JobError):
                assert all(same_parameters(sae, whole) for sae in read_saes(folder).values())
        assert export.main(words) == 0
        [again] = [sae for folder in (out, *out.glob("*/")) for sae in read_or_none(folder)]
        assert same_parameters(again, whole)
        if left[0] >= 0:
            break
    assert after > 3


def read_or_none(folder: Path) -> list[TrainedSae]:
    """Returns the SAEs of a folder that has some."""
    try:
        return list(read_saes(folder).values())
    except JobError:
        return []


def same_parameters(one: TrainedSae, other: TrainedSae) -> bool:
    """Returns whether parameters are equal, but for the rounding of thresholds, which layouts store in another way."""
    return all(np.allclose(one.parameters[name], other.parameters[name], rtol=1e-5) for name in other.parameters)
