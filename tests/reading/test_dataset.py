"""The dataset gives what was committed: by index, with provenance, and as epochs that miss and double nothing."""

import itertools
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_runs import TAPS, WIDTH, batch, finished_run, identity, joined, rewrite

from pod_job.errors import JobError
from pod_job.finishing.merge import merge
from pod_job.formats.rows_table import to_parquet
from pod_job.reading.dataset import ActivationDataset
from pod_job.reading.epoch import Order
from pod_job.run_folder import layout
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.identity import claim
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

COUNTS = [700, 900, 0, 1500, 13]  # blocks cross files, and one file is empty


@pytest.fixture(scope="module")
def run(new_folder: Callable[[], Folder]) -> tuple[Folder, list[Batch]]:
    folder = new_folder()
    return folder, finished_run(folder, COUNTS)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    finished_run(open_folder(tmp_path), [20, 30])
    return tmp_path


def test_indexing_is_that_of_the_array(run: tuple[Folder, list[Batch]]) -> None:
    folder, batches = run
    full, data = joined(batches, "layer_6"), ActivationDataset(folder.url, layer=6)
    assert (len(data), data.shape, data.dtype) == (len(full), full.shape, ml_dtypes.bfloat16)
    some = np.random.default_rng(0).integers(-len(full), len(full), 100)
    for index in (
        0,
        -1,
        1599,
        np.int32(5),
        slice(None),
        slice(690, 1610),
        slice(0, -1, 101),
        slice(9, 2, -2),
        slice(5, 2),
    ):
        np.testing.assert_array_equal(data[index], full[index], err_msg=str(index))
    for index in (some, some.tolist(), [], np.array([], int), np.arange(len(full)) % 97 == 3):
        np.testing.assert_array_equal(data[index], full[index])
    for wrong in (len(full), -len(full) - 1, [0, len(full)], 1.5, "x", [[0]], np.array([True])):
        with pytest.raises(IndexError):
            data[wrong]


def test_rows_have_the_provenance_of_vectors(run: tuple[Folder, list[Batch]]) -> None:
    folder, batches = run
    data = ActivationDataset(folder.url, layer="layer_30_norm")
    index = np.random.default_rng(1).permutation(len(data))[:500]
    columns = data.rows(index)
    for column in ("task_id", "sample_idx", "position", "token_id"):
        np.testing.assert_array_equal(
            columns[column], np.concatenate([getattr(b.rows, column) for b in batches])[index]
        )
    assert data.rows(705)["task_id"] == batches[1].rows.task_id[5]
    assert data.rows(slice(-3, None))["position"].tolist() == [10, 11, 12]


def test_an_epoch_is_a_permutation(run: tuple[Folder, list[Batch]]) -> None:
    folder, batches = run
    full, data = joined(batches, "layer_6"), ActivationDataset(folder.url, layer=6)
    iterator = data.batches(100, seed=3, buffer_rows=2048, block_rows=700, with_index=True)
    assert len(iterator) == 32
    indices = []
    for vectors, index in iterator:
        np.testing.assert_array_equal(vectors, full[index])
        indices.append(index)
    assert sorted(np.concatenate(indices).tolist()) == list(range(len(full)))
    assert [len(index) for index in indices] == [100] * 31 + [13]
    assert not np.array_equal(np.concatenate(indices), np.arange(len(full)))


def test_unshuffled_batches_are_in_order(run: tuple[Folder, list[Batch]]) -> None:
    folder, batches = run
    ordered = list(ActivationDataset(folder.url, layer=6).batches(1000, shuffle=False, drop_last=True))
    np.testing.assert_array_equal(np.concatenate(ordered), joined(batches, "layer_6")[:3000])


_ORDERS = st.builds(
    Order,
    rows=st.integers(0, 20_000),
    batch_size=st.integers(1, 5_000),
    shuffle=st.booleans(),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
    shard=st.integers(1, 5).map(lambda count: (0, count)),
    buffer_rows=st.integers(1, 9_000),
    drop_last=st.booleans(),
    block_rows=st.sampled_from([1, 100, 1024, 4096]),
)


@settings(max_examples=100, deadline=None)
@given(_ORDERS)
def test_shards_partition_the_rows(order: Order) -> None:
    count = order.shard[1]
    shards = [Order(**{**vars(order), "shard": (index, count)}) for index in range(count)]
    blocks = np.concatenate([shard.blocks for shard in shards])
    assert sorted(blocks.tolist()) == list(range(-(-order.rows // order.block_rows)))
    assert sum(int(shard.starts[-1]) for shard in shards) == order.rows
    for shard in shards:
        assert [block for window in shard.windows for block in window] == shard.blocks.tolist()
        for window in range(len(shard.windows)):
            permutation = shard.permutation(window)
            assert sorted(permutation.tolist()) == list(range(shard.starts[window + 1] - shard.starts[window]))


@settings(max_examples=100, deadline=None)
@given(_ORDERS)
def test_processes_take_equally_many_steps_where_remainders_are_dropped(order: Order) -> None:
    count = order.shard[1]
    shards = [Order(**{**vars(order), "shard": (index, count), "drop_last": True}) for index in range(count)]
    assert len({shard.batches for shard in shards}) == 1
    rows = min(int(shard.starts[-1]) for shard in shards)
    assert 0 <= rows - shards[0].batches * order.batch_size < order.batch_size


def test_every_seed_and_epoch_shuffles_blocks_and_rows_within_a_window() -> None:
    orders = [Order(100_000, 1, True, seed, epoch, (0, 1), 9_000, False) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert order.blocks.tolist() != sorted(order.blocks.tolist())
    assert len({tuple(order.blocks) for order in orders}) == 4
    windows = [tuple(order.permutation(window)) for order in orders for window in range(3)]
    assert len(set(windows)) == 12


def test_processes_share_an_epoch(small: Path) -> None:
    data = ActivationDataset(small, layer=6)
    indices = [index for n in range(3) for _, index in data.batches(7, shard=(n, 3), with_index=True)]
    assert sorted(np.concatenate(indices).tolist()) == list(range(50))


def test_the_order_depends_on_seed_and_epoch_alone(run: tuple[Folder, list[Batch]]) -> None:
    data = ActivationDataset(run[0].url, layer=6)

    def order(**settings: int) -> list[int]:
        return np.concatenate([index for _, index in data.batches(99, with_index=True, **settings)]).tolist()

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert len({tuple(order(seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_resuming_continues_with_the_next_batch(run: tuple[Folder, list[Batch]]) -> None:
    data = ActivationDataset(run[0].url, layer=6)
    settings = {"seed": 5, "shard": (1, 2), "buffer_rows": 1024, "block_rows": 512, "with_index": True}
    full = [index.tolist() for _, index in data.batches(64, epoch=4, **settings)]
    for taken in (0, 1, 7, len(full)):
        first = data.batches(64, epoch=4, **settings)
        for _ in itertools.islice(first, taken):
            pass
        state = json.loads(json.dumps(first.state_dict()))
        second = data.batches(64, **settings)
        next(second)
        second.load_state_dict(state)
        assert [index.tolist() for _, index in second] == full[taken:]


def test_a_state_of_another_order_is_refused(small: Path) -> None:
    data = ActivationDataset(small, layer=6)
    state = data.batches(7, seed=1, shard=(0, 2)).state_dict()
    with pytest.raises(JobError, match=r"batch_size was 7, is 8; seed was 1, is 0; shard was \[0, 2\], is \[0, 1\]"):
        data.batches(8).load_state_dict(state)


@pytest.mark.parametrize("wrong", [{"shard": (2, 2)}, {"buffer_rows": 0}, {"block_rows": 0}, {"batch_size": 0}])
def test_impossible_orders_are_refused(small: Path, wrong: dict) -> None:
    with pytest.raises(JobError, match=f"{next(iter(wrong))}=.*must be"):
        ActivationDataset(small, layer=6).batches(**{"batch_size": 8, **wrong})


def test_jax_batches(small: Path) -> None:
    (batch_,) = ActivationDataset(small, layer=6).batches(50, shuffle=False, as_="jax")
    assert (type(batch_).__module__.split(".")[0], str(batch_.dtype)) == ("jaxlib", "bfloat16")
    np.testing.assert_array_equal(np.asarray(batch_), ActivationDataset(small, layer=6)[:])


def test_torch_batches_and_loader(small: Path, torch_there: None) -> None:
    import torch

    plain, data = ActivationDataset(small, layer=6), ActivationDataset(small, layer=6, as_="torch")
    assert data[3].dtype == torch.bfloat16
    (batch_,) = data.batches(50, shuffle=False)
    np.testing.assert_array_equal(batch_.float().numpy(), plain[:].astype(np.float32))
    loader = torch.utils.data.DataLoader(data, batch_size=8, num_workers=0)
    np.testing.assert_array_equal(torch.cat(list(loader)).float().numpy(), plain[:].astype(np.float32))


def test_it_can_be_sent_to_another_process(run: tuple[Folder, list[Batch]]) -> None:
    data = ActivationDataset(run[0].url, layer=6)
    before = data[[5, 2000]]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data))[[5, 2000]], before)


def test_a_rows_table_that_is_too_short_is_named(small: Path) -> None:
    (small / layout.rows_file(2)).write_bytes(to_parquet(batch(2, 29).rows))
    with pytest.raises(JobError, match=r"rows_batch_000002\.parquet: its content is not what was stored"):
        ActivationDataset(small, layer=6).rows(slice(None))


def test_statistics_scale_the_vectors(run: tuple[Folder, list[Batch]]) -> None:
    folder, batches = run
    data = ActivationDataset(folder.url, layer=6)
    scaled = joined(batches, "layer_6").astype(np.float64) * data.statistics["scale"]
    assert (scaled**2).sum(1).mean() == pytest.approx(WIDTH)


def test_a_missing_layer_is_named(small: Path) -> None:
    with pytest.raises(JobError, match=r"Layer not found in activations: layer=7; .* has layer_6, layer_30_norm"):
        ActivationDataset(small, layer=7)


def test_a_missing_layer_or_position_is_refused_with_the_way_to_get_it(small: Path) -> None:
    with pytest.raises(JobError, match=r"run the job with extract\.layers=\[7\] and a storage\.run_dir of its own"):
        ActivationDataset(small, layer=7)
    with pytest.raises(JobError, match=r"run the job with extract\.taps=\[layer_6\.q\]"):
        ActivationDataset(small, layer="layer_6.q")
    assert len(ActivationDataset(small, layer=6, positions="all")) == 50
    with pytest.raises(JobError) as refused:
        ActivationDataset(small, layer=6, positions="last")
    message = str(refused.value)
    assert "Activations shape mismatch: positions=last, but" in message
    assert "kept all: 50 rows of 16 samples; extract with extract.positions=last" in message
    assert "\n" not in message


def test_an_unmerged_run_says_how_to_merge(tmp_path: Path) -> None:
    finished_run(open_folder(tmp_path), [5, 3])
    (tmp_path / layout.METADATA).unlink()
    with pytest.raises(JobError, match=r"metadata\.json: missing; run `pod-job merge"):
        ActivationDataset(tmp_path, layer=6)


def test_a_folder_without_a_run_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"holds no run: run\.json is missing"):
        ActivationDataset(tmp_path, layer=6)


@pytest.mark.parametrize("committed", [[], [2]])
def test_an_unfinished_run_opens_with_a_warning(tmp_path: Path, committed: list[int]) -> None:
    folder = open_folder(tmp_path)
    claim(folder, identity(16))
    for number in committed:
        commit_batch(folder, batch(number, 10), host=0)
    merge(folder)
    with pytest.warns(UserWarning, match=f"unfinished run, {2 - len(committed)} of 2 batches are missing"):
        data = ActivationDataset(tmp_path, layer=6)
    assert len(data) == len(data[:]) == 10 * len(committed)
    assert len(list(data.batches(4))) == -(-10 * len(committed) // 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 3}, "format 3, this version reads 2"),
        ({"batches": [{}]}, r"batches\[0\]\.batch_id is missing"),
        ({"batches": []}, "batches of layer_6 do not match rows_files"),
        ({"rows_files": [{"file": 1}]}, r"rows_files\[0\]\.file: expected `str`, got `int`"),
        ({"dtype": "float32"}, "does not fit its rows and width"),
        ({"dtype": "x"}, "unknown dtype 'x'"),
        ({"taps": None}, "taps: expected `array`, got `null`"),
        ({"widths": {"layer_6": 16}}, "does not fit"),
    ],
)
def test_damaged_metadata_is_named(small: Path, change: dict, reason: str) -> None:
    rewrite(small / layout.METADATA, lambda metadata: metadata.update(change))
    with pytest.raises(JobError, match=rf"metadata\.json: (damaged: )?.*{reason}.* run `pod-job merge"):
        ActivationDataset(small, layer=6)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}'])
def test_metadata_without_its_checksum_is_named(small: Path, content: bytes) -> None:
    (small / layout.METADATA).write_bytes(content)
    with pytest.raises(JobError, match=r"metadata\.json: damaged: it does not end with its crc32c.*pod-job merge"):
        ActivationDataset(small, layer=6)


def test_an_altered_digit_of_metadata_is_refused(small: Path) -> None:
    content = (small / layout.METADATA).read_bytes()
    at = content.index(b'"mean_norm": ') + len(b'"mean_norm": ')
    digit = b"2" if content[at : at + 1] == b"1" else b"1"
    (small / layout.METADATA).write_bytes(content[:at] + digit + content[at + 1 :])
    with pytest.raises(JobError, match=r"metadata\.json: damaged: its crc32c is not that of its content"):
        ActivationDataset(small, layer=6)


@pytest.mark.parametrize("use", [lambda data: data[:], lambda data: data[[25]], lambda data: next(data.batches(5))])
def test_missing_and_cut_files_are_named(small: Path, use: Callable) -> None:
    path = small / layout.activations_file("layer_6", 2)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(JobError, match=r"layer_6_batch_000002\.safetensors: (ends 1 bytes too early|has \d+ bytes)"):
        use(ActivationDataset(small, layer=6))
    path.unlink()
    with pytest.raises(JobError, match=r"layer_6_batch_000002\.safetensors: is missing"):
        use(ActivationDataset(small, layer=6))


def test_a_short_rows_table_is_named(small: Path) -> None:
    table = small / layout.rows_file(2)
    table.write_bytes((small / layout.rows_file(1)).read_bytes())
    with pytest.raises(JobError, match=r"rows_batch_000002\.parquet: its content is not what was stored"):
        ActivationDataset(small, layer=6).rows(40)
    table.unlink()
    with pytest.raises(JobError, match=r"rows_batch_000002\.parquet: missing"):
        ActivationDataset(small, layer=6).rows(40)


def test_taps_are_aligned(small: Path) -> None:
    first, second = (ActivationDataset(small, layer=tap) for tap in TAPS)
    pairs = zip(first.batches(9, with_index=True), second.batches(9, with_index=True), strict=True)
    assert all(np.array_equal(a[1], b[1]) for a, b in pairs)
