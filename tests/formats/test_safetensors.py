"""Tensor files agree with the safetensors library both ways; a damaged file is refused and crashes nothing."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pod_job.errors import JobError
from pod_job.formats.safetensors import DTYPES, Header, map_tensors, read_header, view_tensor, write_parts


def _file(tensors: dict[str, np.ndarray], **options) -> bytes:
    return b"".join(write_parts(tensors, **options))


def _header(data: bytes) -> Header:
    return read_header(lambda start, size: data[start : start + size], "the file", len(data))


def _with_header(entries: object, data: bytes = b"", raw: bytes | None = None) -> bytes:
    text = json.dumps(entries).encode() if raw is None else raw
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("code", DTYPES)
def test_the_library_reads_our_files(code: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(DTYPES[code])
    ((name, tensor),) = safetensors.deserialize(_file({"x": array}, metadata={"tap": "layer_6"}))
    assert (name, tensor["dtype"], tensor["shape"], bytes(tensor["data"])) == ("x", code, [3, 4], array.tobytes())


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(3, np.int64),
        "c": np.zeros((0, 5), np.float16),
        "d": np.array([True, False, True]),
    }
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, path, {"format": "np"})
    mapped = map_tensors(path)
    assert mapped.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (mapped[name].dtype, mapped[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(mapped[name], array)


def test_data_begins_on_a_page_and_is_not_copied(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((7, 5)).astype(ml_dtypes.bfloat16)
    flags = np.array([1, 2, 3], np.uint8)
    header, first, second = write_parts({"flags": flags, "vectors": vectors})
    assert len(header) == 4096
    assert np.shares_memory(np.frombuffer(first, np.uint8), vectors)
    (tmp_path / "x").write_bytes(header + first + second)
    mapped = map_tensors(tmp_path / "x")
    np.testing.assert_array_equal(mapped["vectors"], vectors)
    np.testing.assert_array_equal(mapped["flags"], flags)
    assert mapped["vectors"].flags.aligned


def test_strided_and_big_endian_arrays_are_stored_by_value() -> None:
    array = np.arange(24, dtype=">f4").reshape(4, 6)[:, ::2]
    data = _file({"x": array})
    np.testing.assert_array_equal(view_tensor(np.frombuffer(data, np.uint8), _header(data).tensors["x"]), array)


def test_unstorable_types_are_refused() -> None:
    with pytest.raises(TypeError, match="x: safetensors has no object"):
        write_parts({"x": np.array([None])})


def _entry(dtype: object = "U8", shape: object = (2,), offsets: object = (0, 2)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "only 0 bytes long"),
        (b"1234567", "only 7 bytes long"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "header would be"),
        ((50).to_bytes(8, "little") + b"{}", "header would be 50 bytes"),
        (_with_header(None, raw=b"{nonsense}"), "not JSON"),
        (_with_header(None, raw=b"\xff\xfe{}"), "not JSON"),
        (_with_header(None, raw=b"[" * 100_000), "not JSON"),
        (_with_header(None, raw=b'{"a": NaN}'), "not JSON"),
        (_with_header(None, raw=b'{"a": 1, "a": 1}'), "twice"),
        (_with_header([1]), "not a JSON object"),
        (_with_header({"__metadata__": {"a": 1}}), "table of strings"),
        (_with_header({"x": {"dtype": "U8"}}), "needs exactly"),
        (_with_header({"x": _entry("F128")}, b"12"), "unknown dtype 'F128'"),
        (_with_header({"x": _entry(["U8"])}, b"12"), "unknown dtype"),
        (_with_header({"x": _entry(shape=[-2], offsets=[2, 0])}, b"12"), "lists of sizes"),
        (_with_header({"x": _entry(shape=[True, 2])}, b"12"), "lists of sizes"),
        (_with_header({"x": _entry(shape=[2.0])}, b"12"), "lists of sizes"),
        (_with_header({"x": _entry(shape=[3])}, b"12"), "takes 3 bytes"),
        (_with_header({"x": _entry(shape=[1 << 61, 8], offsets=[0, 0])}), "takes"),
        (_with_header({"x": _entry(offsets=[1, 3])}, b"123"), "a gap or an overlap"),
        (_with_header({"x": _entry(), "y": _entry(offsets=[1, 3])}, b"123"), "a gap or an overlap"),
        (_with_header({"x": _entry()}, b"1"), "truncated: .* long"),
        (_with_header({"x": _entry()}, b"123"), "bytes no tensor owns"),
    ],
)
def test_damage_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(JobError, match=rf"bad\.safetensors: not a usable safetensors file: .*{reason}"):
        map_tensors(path)


def test_every_cut_is_noticed() -> None:
    data = _file({"x": np.arange(5, dtype=np.float32)}, pad_to=8)
    for length in range(len(data)):
        with pytest.raises(JobError, match="the file: not a usable safetensors file"):
            _header(data[:length])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"none\.safetensors: cannot be read \(No such file"):
        map_tensors(tmp_path / "none.safetensors")


_SOUND = _file({"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.arange(3, dtype=np.uint8)}, pad_to=8)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(_SOUND) - 1), st.integers(0, 255)), max_size=6), st.binary(max_size=4))
@example([(0, 255)], b"")
def test_fuzzed_files_are_refused_or_sound(changes: list[tuple[int, int]], tail: bytes) -> None:
    data = bytearray(_SOUND + tail)
    for place, value in changes:
        data[place] = value
    try:
        header = _header(bytes(data))
    except JobError:
        return
    raw = np.frombuffer(bytes(data), np.uint8)
    views = [view_tensor(raw, spec) for spec in header.tensors.values()]
    assert sum(view.nbytes for view in views) == len(data) - header.data_start
