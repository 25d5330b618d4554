"""Others at work while a run is compacted: a second compaction, a merge, a late writer, a reader."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from run_content import content
from sample_runs import BUCKET, batch, finished_run

from pod_job.checking.verify import verify
from pod_job.errors import JobError
from pod_job.finishing import merge
from pod_job.finishing.compact import compact
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder.commit import commit_batch
from pod_job.storage import local
from pod_job.storage.local import LocalFolder
from pod_job.storage.open import open_folder

pytestmark = pytest.mark.slow

COUNTS = [20, 0, 33, 5, 7, 1, 40]
SMALL = [6, 9]


@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_two_at_once_and_a_merge_leave_one_run(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = str(tmp_path / "run")
    if where == "bucket":
        request.getfixturevalue("proxy")
        url = f"gs://{BUCKET}/run"
    folder = open_folder(url)
    finished_run(folder, COUNTS)
    before = content(folder)
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(compact, open_folder(url), most) for most in (1 << 30, 1 << 30, 9000)]
        running.append(pool.submit(merge.merge, open_folder(url)))
    assert all(future.result().complete for future in running)
    assert content(folder) == before
    compact(folder)  # which removes what the slower of them may have made after the faster one was through
    assert verify(url).problems == []


def test_a_merge_from_before_is_not_the_last_word(tmp_path: Path) -> None:
    class Slow(LocalFolder):
        overtaken = False

        def replace(self, name: str, data: local.Part) -> local.Stored:
            if not self.overtaken:
                self.overtaken = True
                compact(open_folder(tmp_path))
            return super().replace(name, data)

    finished_run(open_folder(tmp_path), SMALL)
    before = content(open_folder(tmp_path))
    assert merge.merge(Slow(str(tmp_path))).joined is not None
    assert content(open_folder(tmp_path)) == before


def test_a_late_writer_changes_nothing(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    finished_run(folder, COUNTS)
    before = content(folder)
    compact(folder)
    with pytest.raises(JobError, match="describes other files than are there"):
        commit_batch(folder, batch(3, COUNTS[2], noise=1e-2), host=1)
    merge.merge(folder)
    assert content(folder) == before
    problems = "\n".join(verify(tmp_path).problems)
    assert "layer_6_batch_000003.safetensors: lies in a joined file, too" in problems
    compact(folder)
    assert verify(tmp_path).sound


def test_a_reader_that_was_open_is_right_or_told(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    finished_run(folder, COUNTS)
    data, mapped = ActivationDataset(folder.url, 6), ActivationDataset(folder.url, 6)
    vectors = mapped[np.arange(len(mapped))]
    compact(folder)
    np.testing.assert_array_equal(mapped[np.arange(len(mapped))], vectors)  # its files are gone by name only
    for read in (lambda: data[:], lambda: data[[3, 40]], lambda: data.rows(0)):
        with pytest.raises(JobError, match=r"missing; open the run again if it was compacted meanwhile"):
            read()
