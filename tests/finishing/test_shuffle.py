"""A shuffled run has every row of the run once, with its provenance, in an order that is uniformly random."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sample_runs import TAPS, finished_run

from pod_job.checking.verify import verify
from pod_job.commands.shuffle import main
from pod_job.errors import JobError
from pod_job.finishing.merge import merge
from pod_job.finishing.shuffle import batch_order, part_order, part_sizes, segment_sizes, shuffle
from pod_job.formats.rows_table import COLUMNS
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.commit import commit_batch
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

pytestmark = pytest.mark.slow

COUNTS = [20, 0, 33, 7]
ROW_BYTES = 2 * 16 * 2 + 4 * 4 + 3


def content(url: str) -> dict[tuple, bytes]:
    """Every row's vectors of both taps by its provenance, in order; fails where a row is there twice."""
    datasets = [ActivationDataset(url, tap) for tap in TAPS]
    rows = datasets[0].rows(slice(None))
    keys = list(zip(*(rows[name].tolist() for name in COLUMNS), strict=True))
    assert len(set(keys)) == len(keys) == len(datasets[1])
    return {key: b"".join(dataset[i].tobytes() for dataset in datasets) for i, key in enumerate(keys)}


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    run = open_folder(tmp_path / "run")
    finished_run(run, [5])
    run.create(layout.TOKENIZER, [b"a tokenizer"])
    shuffle(tmp_path / "run", tmp_path / "shuffled")
    assert open_folder(tmp_path / "shuffled").read(layout.TOKENIZER) == b"a tokenizer"


def test_every_row_is_there_once_elsewhere(new_folder: Callable[[], Folder]) -> None:
    run, out = new_folder(), new_folder()
    finished_run(run, COUNTS)
    described = shuffle(run.url, out.url, seed=3, part_bytes=13 * ROW_BYTES)
    assert (described.rows, described.total_batches, described.complete) == (60, 5, True)
    before, after = content(run.url), content(out.url)
    assert before == after
    assert list(before) != list(after)
    assert verify(out.url).sound
    assert out.names(layout.SPILL) == []


def test_hosts_share_the_work_and_the_order_is_the_seeds(new_folder: Callable[[], Folder]) -> None:
    run, alone, shared, other = (new_folder() for _ in range(4))
    finished_run(run, COUNTS)
    shuffle(run.url, alone.url, seed=1, part_bytes=13 * ROW_BYTES)
    shuffle(run.url, other.url, seed=2, part_bytes=13 * ROW_BYTES)
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(shuffle, run.url, shared.url, 1, shard=(host, 3), part_bytes=13 * ROW_BYTES)
            for host in range(3)
        ]
        assert any(job.result().complete for job in jobs)
    assert list(content(shared.url)) == list(content(alone.url)) != list(content(other.url))


def test_it_goes_on_where_it_stopped(new_folder: Callable[[], Folder], monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = new_folder(), new_folder()
    finished_run(run, COUNTS)
    left = [2]

    def dies(*arguments, **named):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return commit_batch(*arguments, **named)

    monkeypatch.setattr("pod_job.finishing.shuffle.commit_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        shuffle(run.url, out.url, part_bytes=13 * ROW_BYTES)
    left[0] = 3  # parts that are left
    assert shuffle(run.url, out.url, part_bytes=13 * ROW_BYTES).complete
    assert content(out.url) == content(run.url)
    left[0] = 0
    assert shuffle(run.url, out.url, part_bytes=13 * ROW_BYTES).complete


def test_every_order_is_equally_likely() -> None:
    """Chi-squared of where each row lands, and of which row follows which, over many seeds."""
    sizes, part_rows, seeds = [3, 1, 4], 3, 4000
    rows = sum(sizes)
    starts = np.cumsum([0, *sizes])
    landed, follows = np.zeros((2, rows, rows))
    for seed in range(seeds):
        parts = part_sizes(rows, part_rows)
        gathered: list[list[int]] = [[] for _ in parts]
        for number, counts in enumerate(segment_sizes(sizes, parts, seed)):
            rows_left = iter(starts[number] + batch_order(number, sizes[number], seed))
            for part, count in enumerate(counts):
                gathered[part] += [next(rows_left) for _ in range(count)]
        order = np.concatenate([np.array(g)[part_order(p, len(g), seed)] for p, g in enumerate(gathered, 1)])
        landed[np.arange(rows), order] += 1
        follows[order[:-1], order[1:]] += 1
    off_diagonal = follows[~np.eye(rows, dtype=bool)]
    for counts, freedom in ((landed, (rows - 1) ** 2), (off_diagonal, rows * (rows - 1) - 1)):
        statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_bad_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = open_folder(tmp_path / "run")
    finished_run(run, [5, 5])
    assert main([run.url, run.url]) == 2
    assert "is the run itself" in capsys.readouterr().err
    for name in (layout.commit_file(1), layout.METADATA):
        (tmp_path / "run" / name).unlink()
    merge(run)
    assert main([run.url, str(tmp_path / "out")]) == 2
    assert "unfinished" in capsys.readouterr().err
    assert main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    finished_run(open_folder(tmp_path / "a"), [5])
    shuffle(tmp_path / "a", tmp_path / "b", seed=0)
    with pytest.raises(JobError, match="belongs to another run"):
        shuffle(tmp_path / "a", tmp_path / "b", seed=1)


def test_a_host_that_never_comes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run(open_folder(tmp_path / "run"), [5, 5, 5, 5])
    monkeypatch.setattr("pod_job.finishing.shuffle.POLL_S", 0.01)
    monkeypatch.setattr("pod_job.finishing.shuffle.PEERS_TIMEOUT_S", 0.05)
    with pytest.raises(JobError, match=r"no spill file has come for 0\.05 s, and 3 are missing, of host 1, 2, 3 of 4"):
        shuffle(tmp_path / "run", tmp_path / "out", shard=(0, 4))
    assert capsys.readouterr().err == "note: waiting for 3 spill files, of host 1, 2, 3 of 4\n"
