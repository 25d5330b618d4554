"""metadata.json says what the commit records say, says so when something is missing, and is refused where they lie."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from msgspec.structs import replace
from sample_runs import PER_BATCH, TAPS, TIME, WIDTH, batch, finished_run, identity, joined, rewrite

import pod_job.finishing.merge
from pod_job.checking.verify import verify
from pod_job.errors import JobError
from pod_job.finishing.merge import merge
from pod_job.formats import rows_table
from pod_job.interop.pickle_export import export_pickles
from pod_job.interop.pickle_import import import_pickles
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder import metadata as metadata_file
from pod_job.run_folder.commit import Batch, PromptCounts, commit_batch
from pod_job.run_folder.identity import TasksIdentity, claim
from pod_job.storage.checksums import Stored
from pod_job.storage.folder import Folder
from pod_job.storage.local import LocalFolder
from pod_job.storage.open import open_folder


def _metadata(folder: Folder) -> metadata_file.Metadata:
    return metadata_file.read_any(folder)


def test_prompts_left_out_are_counted_by_reason(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "run")
    tasks = TasksIdentity(samples=2 * PER_BATCH, skipped=3, skipped_by_reason={"blank": 2, "broken": 1})
    claim(folder, replace(identity(2 * PER_BATCH), tasks=tasks))
    counts = PromptCounts(skipped={"blank": 1, "too_long": 2}, doubled_bos=4)
    commit_batch(folder, dataclasses.replace(batch(1, 5, n_samples=PER_BATCH - 3), prompts=counts), host=0)
    everything = PromptCounts(skipped={"too_long": PER_BATCH}, doubled_bos=1)
    commit_batch(folder, dataclasses.replace(batch(2, 0, n_samples=0), prompts=everything), host=0)
    metadata = merge(folder)
    assert metadata.complete
    assert metadata.total_samples == PER_BATCH - 3
    assert metadata.prompts == PromptCounts(skipped={"blank": 3, "broken": 1, "too_long": 10}, doubled_bos=5)
    assert _metadata(folder) == metadata
    rewrite(tmp_path / "run" / layout.commit_file(2), lambda record: record["prompts"]["skipped"].update(too_long=7))
    with pytest.raises(JobError, match="has 7 samples, the run's data gives 8"):
        merge(folder)


def test_a_finished_run_has_the_documented_metadata(new_folder: Callable[[], Folder]) -> None:
    folder = new_folder()
    batches = finished_run(folder, [20, 0, 33])
    metadata = _metadata(folder)
    assert (metadata.model_name, metadata.hidden_dim, metadata.total_samples) == ("demo/tiny", WIDTH, 24)
    assert metadata.layers_extracted == [6, 30]
    entries = [(entry.batch_id, entry.layer, entry.file, entry.n_samples) for entry in metadata.batches]
    assert entries == [
        (number, tap, f"{tap}_batch_{number:06d}.safetensors", 8) for number in (1, 2, 3) for tap in TAPS
    ]
    assert (metadata.complete, metadata.missing, metadata.rows) == (True, [], 53)
    assert metadata.provenance == identity(24)
    for entry in metadata.batches:
        assert folder.stat(f"activations/{entry.file}") == Stored(entry.size, entry.crc32c)
    for tap in TAPS:
        vectors = joined(batches, tap).astype(np.float64)
        summary = metadata.statistics[tap]
        assert summary.count == 53
        np.testing.assert_allclose(summary.mean, vectors.mean(0), rtol=1e-9)
        np.testing.assert_allclose(summary.variance, vectors.var(0), rtol=1e-9)


def test_a_run_with_the_embedding_among_its_taps_is_finished_read_and_exported(tmp_path: Path) -> None:
    taps = ("embed", "layer_0", "layer_0.attn_out")
    folder = open_folder(tmp_path / "run")
    batches = finished_run(folder, [4, 5], taps=taps)
    assert _metadata(folder).layers_extracted == [0]
    assert verify(folder.url).sound
    dataset = ActivationDataset(folder.url, layer="embed")
    np.testing.assert_array_equal(dataset[:], joined(batches, "embed"))
    export_pickles(folder.url, tmp_path / "pickles")
    import_pickles(tmp_path / "pickles", str(tmp_path / "again"), dtype="bfloat16")
    np.testing.assert_array_equal(ActivationDataset(str(tmp_path / "again"), layer="embed")[:], dataset[:])


def test_an_unfinished_run_says_what_is_missing(new_folder: Callable[[], Folder]) -> None:
    folder = new_folder()
    claim(folder, identity(40))
    assert merge(folder).missing == [1, 2, 3, 4, 5]
    for number in (2, 5):
        commit_batch(folder, batch(number, 10), host=0)
    metadata = merge(folder)
    assert (metadata.complete, metadata.missing) == (False, [1, 3, 4])
    assert (metadata.total_samples, metadata.total_batches, metadata.rows) == (16, 5, 20)
    assert _metadata(folder) == metadata


def test_merging_again_changes_nothing_but_the_time(new_folder: Callable[[], Folder]) -> None:
    folder = new_folder()
    finished_run(folder, [9, 3, 8, 1])
    before = _metadata(folder)
    assert replace(merge(folder), merged="") == replace(before, merged="")


def test_several_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = open_folder(tmp_path)
    finished_run(folder, [9, 3, 0, 8, 1, 40, 2])
    monkeypatch.setattr(pod_job.finishing.merge, "WINDOW", 2)
    monkeypatch.setattr(pod_job.finishing.merge, "LEAST_WINDOWS", 1)
    assert replace(merge(folder, processes=2), merged="") == replace(merge(folder), merged="")
    assert verify(tmp_path).sound
    rewrite(tmp_path / layout.commit_file(5), lambda record: record.update(n_samples=3))
    with pytest.raises(JobError, match=r"batch_000005\.json: has 3 samples"):
        merge(folder, processes=2)


def test_the_last_batch_may_be_short(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    claim(folder, identity(11))
    commit_batch(folder, batch(1, 5), host=0)
    commit_batch(folder, batch(2, 5, n_samples=3), host=0)
    assert merge(folder).total_samples == 11


def test_a_slow_merge_is_not_the_last_word(tmp_path: Path) -> None:
    """The last batch is committed and merged elsewhere while this merge is about to write."""

    class Slow(LocalFolder):
        overtaken = False

        def replace(self, name: str, data: bytes) -> Stored:
            if not self.overtaken:
                self.overtaken = True
                commit_batch(open_folder(tmp_path), batch(2, 5), host=1)
                assert merge(open_folder(tmp_path)).complete
            return super().replace(name, data)

    folder = Slow(str(tmp_path))
    claim(folder, identity(16))
    commit_batch(folder, batch(1, 5), host=0)
    assert merge(folder).complete
    assert _metadata(folder).complete


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda record: record.update(n_samples=7), "has 7 samples, the run's data gives 8"),
        (lambda record: record["files"].pop(), "has taps"),
        (lambda record: record["files"].append(record["files"][0]), "has taps"),
        (lambda record: record["files"][0].update(file=record["files"][1]["file"]), "is another batch's"),
        (lambda record: record["files"][0].update(rows=21), "has 21 rows, the batch 20"),
        (lambda record: record["files"][0].update(shape=[20, 17]), "has shape"),
        (lambda record: record["files"][0].update(size=1), "has 1 bytes, its shape gives"),
        (lambda record: record["files"][0].update(dtype="float32"), "is float32, the run's dtype is bfloat16"),
        (lambda record: record["files"][0]["statistics"].pop("mean"), r"files\[0\]\.statistics\.mean is missing"),
        (lambda record: record["files"][0]["statistics"].update(norms="AAAA"), "damaged statistics"),
        (lambda record: record["rows_file"].update(file="activations/x"), "rows_file is another batch's"),
        (lambda record: record["rows_file"].update(rows=3), "rows_file has another number of rows"),
    ],
)
def test_a_record_that_lies_is_refused(tmp_path: Path, change: Callable, reason: str) -> None:
    folder = open_folder(tmp_path)
    finished_run(folder, [20, 20])
    before = _metadata(folder)
    rewrite(tmp_path / layout.commit_file(2), change)
    with pytest.raises(JobError, match=rf"batch_000002\.json: .*{reason}"):
        merge(folder)
    assert _metadata(folder) == before


def test_a_record_under_another_number_is_refused(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    finished_run(folder, [20, 20])
    (tmp_path / layout.commit_file(2)).write_bytes(folder.read(layout.commit_file(1)))
    with pytest.raises(JobError, match=r"batch_000002\.json: is the record of batch 1"):
        merge(folder)


def test_a_batch_beyond_the_end_is_refused(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    finished_run(folder, [20])
    commit_batch(folder, batch(2, 20), host=0)
    with pytest.raises(JobError, match="batch 2 is committed, but the run has batches 1 to 1"):
        merge(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"taps": None}, "identity.taps: expected `array`, got `null`"),
        ({"tasks": {}}, "identity.tasks.samples is missing"),
        ({"dtype": "int3"}, "unknown dtype int3"),
        ({"save_every_n_samples": 0}, "identity.save_every_n_samples: expected `int` >= 1"),
        ({"new": 1}, "identity: object contains unknown field `new`"),
        ({"tasks": {"samples": 2**31}}, "2147483648 samples in batches of 8 are more than 1,000,000 batches"),
    ],
)
def test_a_run_without_its_facts_is_refused(tmp_path: Path, change: dict, reason: str) -> None:
    claim(open_folder(tmp_path), identity(8))
    path = tmp_path / layout.RUN
    record = json.loads(path.read_text())
    record["identity"] |= change
    path.write_text(json.dumps(record))
    with pytest.raises(JobError, match=rf"run\.json: .*{reason}"):
        merge(open_folder(tmp_path))


def test_all_but_the_vectors_is_less_than_a_hundredth(tmp_path: Path) -> None:
    prompts, tokens, width = 32, 300, 896
    rng = np.random.default_rng(0)
    columns = {
        "task_id": np.repeat([f"{number:08x}" for number in rng.integers(0, 1 << 32, prompts)], tokens),
        "sample_idx": np.zeros(prompts * tokens),
        "position": np.tile(np.arange(tokens), prompts),
        "token_id": (rng.zipf(1.2, prompts * tokens) % 150_000),
    }
    vectors = rng.standard_normal((prompts * tokens, width)).astype(np.float32).astype(ml_dtypes.bfloat16)
    folder = open_folder(tmp_path)
    claim(folder, identity(prompts, ("layer_6",), per_batch=prompts))
    commit_batch(folder, Batch(1, prompts, rows_table.from_columns(columns, TIME), {"layer_6": vectors}), host=0)
    merge(folder)
    # metadata.json has the run's mean and variance once, however many batches there are.
    sizes = {name: len(folder.read(name)) for name in folder.names("") if name != layout.METADATA}
    assert sum(sizes.values()) - vectors.nbytes < 0.01 * vectors.nbytes, sizes
