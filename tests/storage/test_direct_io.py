"""Direct writes leave the same bytes as plain ones, and give way to them where the file system refuses."""

import errno
import fcntl
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pod_job.storage import direct_io
from pod_job.storage.buffers import LEAST_BYTES, PAGE, Pool, aligned_empty


def part(size: int, aligned: bool) -> memoryview:
    raw = aligned_empty((size + 1,), np.dtype(np.uint8))
    raw[:] = np.random.default_rng(size).integers(0, 256, size + 1)
    return (raw[:size] if aligned else raw[1:]).data


def write_parts(path: Path, parts: list[memoryview]) -> bytes:
    with open(path, "xb", buffering=0) as file:
        direct_io.write_all(file.fileno(), parts)
    return path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 4095, 4096, 8192, 3 * 4096 + 7]), st.booleans()), max_size=5))
def test_any_parts_arrive_joined(tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, bool]]) -> None:
    parts = [part(size, aligned) for size, aligned in sizes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct_io, "LEAST_BYTES", 4096)
        assert write_parts(tmp_path_factory.mktemp("direct") / "x", parts) == b"".join(parts)


@pytest.mark.parametrize("granted", [0, 4096])
def test_a_file_system_that_refuses_direct_writes_gets_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, granted: int
) -> None:
    write, refused = os.write, []

    def strict(descriptor: int, data: memoryview) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & direct_io._O_DIRECT:
            if granted and not refused:
                refused.append(0)
                return write(descriptor, data[:granted])
            refused.append(len(data))
            raise OSError(errno.EINVAL, "refused")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", strict)
    parts = [part(4096, True), part(LEAST_BYTES + 5, True)]
    assert write_parts(tmp_path / "x", parts) == b"".join(parts)
    assert refused or not direct_io._O_DIRECT


def test_aligned_memory_begins_on_a_page() -> None:
    for shape in ((3, 5), (0, 4), (1000, 7)):
        array = aligned_empty(shape, np.dtype(ml_dtypes.bfloat16))
        assert (array.shape, array.dtype) == (shape, ml_dtypes.bfloat16)
        assert array.ctypes.data % PAGE == 0 or not array.size


def test_a_pool_uses_memory_again_once_no_view_of_it_is_left() -> None:
    pool, float32 = Pool(), np.dtype(np.float32)
    first = pool.empty((100, 30), float32)
    address, view = first.ctypes.data, first[3:5].view(np.uint8)
    del first
    second = pool.empty((100, 30), float32)
    assert not np.may_share_memory(second, view)
    del view
    third = pool.empty((90, 30), float32)
    assert third.ctypes.data == address
    assert address % PAGE == 0
    assert (third.shape, third.dtype) == ((90, 30), float32)


def test_a_pool_holds_no_more_than_was_in_use_at_one_time() -> None:
    """Sizes that grow and shrink, two at a time."""
    pool, byte = Pool(), np.dtype(np.uint8)
    for size in (5000, 9000, 20_000, 1000, 30_000, 0, 70_000):
        pair = [pool.empty((size,), byte), pool.empty((size // 2, 2), byte)]
        assert [array.size for array in pair] == [size, size // 2 * 2]
        del pair
    assert len(pool._free) == 2
