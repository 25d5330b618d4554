"""A compaction may die at any step, in a folder and in a bucket, and be begun again: no row is lost or doubled."""

import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from faulty_bucket import Proxy
from run_content import content, names
from sample_runs import BUCKET, TAPS, batch, finished_run

from pod_job.checking.verify import verify
from pod_job.finishing import merge
from pod_job.finishing.compact import compact
from pod_job.run_folder import layout
from pod_job.run_folder.commit import commit_batch
from pod_job.storage import gcs_compose, local
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """The death of a process: nothing that it does afterwards has any effect."""


def dying(patch: pytest.MonkeyPatch, after: int, effects: list[tuple[Any, str]]) -> list[int]:
    """Makes the process die before (even) or after (odd) the `after`-th of these calls; later ones have no effect."""
    left, lock = [after], threading.Lock()

    def around(effect: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread().daemon:  # the library looks at the bucket in the background
                return effect(*arguments, **named)
            with lock:
                if left[0] <= 0:
                    left[0] = -1
                    raise Killed
                result = effect(*arguments, **named)
                left[0] -= 2
                if left[0] == -1:
                    raise Killed
                return result

        return call

    for owner, name in effects:
        patch.setattr(owner, name, around(getattr(owner, name)))
    return left


def assert_survives(folder: Folder, effects: list[tuple[Any, str]], every: int = 1) -> None:
    """Compacting, killed at each of its effects in turn and begun again: no row is ever lost, doubled or mixed."""
    before, killed = content(folder), 0
    for after in itertools.count(0, every):
        with pytest.MonkeyPatch.context() as patch:
            dying(patch, after, effects)
            try:
                compact(open_folder(folder.url))
            except Killed:
                killed += 1
            else:
                break
        assert content(open_folder(folder.url)) == before
        for problem in verify(folder.url).problems:
            assert "--compact" in problem or "metadata.json: batches, joined, rows_files differ" in problem
        restore(folder)
    assert killed >= 5
    assert content(folder) == before
    assert verify(folder.url).sound
    assert len(names(folder)) == 2


def restore(folder: Folder) -> None:
    """Compacts the run to its end, as the next process does, and checks that its content is unchanged."""
    compact(open_folder(folder.url))
    folder.sweep(0.0)
    assert verify(folder.url).sound
    assert [name for name in folder.names("") if name.startswith("joining/")] == []
    joined_names = names(folder)
    folder.remove(layout.COMPACTION)
    folder.remove(layout.METADATA)
    for number, count in enumerate(SMALL, 1):
        commit_batch(folder, batch(number, count, taps=ONE_TAP), host=0)
    for name in joined_names:
        folder.remove(name)
    merge.merge(folder)
    assert len(names(folder)) == 2 * len(SMALL)


SMALL, ONE_TAP = [6, 9], TAPS[:1]


def test_it_may_die_at_any_step(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    finished_run(folder, SMALL, ONE_TAP)
    assert_survives(folder, [(os, "link"), (os, "replace"), (os, "unlink"), (local, "write_temporary")])


@pytest.mark.pod
def test_it_may_die_at_any_request(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_compose, "MOST_JOINED", 2)  # so few objects are a tree, too
    folder = open_folder(f"gs://{BUCKET}/run")
    finished_run(folder, SMALL, ONE_TAP)
    assert_survives(folder, [(requests.Session, "send")], every=9)
