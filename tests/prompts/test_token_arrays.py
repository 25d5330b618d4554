"""Token arrays in .npy and .npz files: what NumPy saves is read as it is, what does not fit together is refused."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pod_job.config.tasks import TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.prompts.tasks import read_tasks

TOKENS = np.arange(12).reshape(3, 4)


def tokens_of(path: Path) -> list[list[int]]:
    """Returns the token ids of every sample of the file."""
    samples = read_tasks(TasksConfig(format=TaskFormat.tokens, path=str(path))).samples
    return [list(map(int, sample.prompt)) for sample in samples]


def npy(array: np.ndarray, **options: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)  # type: ignore[arg-type]
    return file.getvalue()


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin1") + data


def described(descr: str = "'<i8'", order: str = "False", shape: str = "(3, 4)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize("dtype", ["<i8", ">i8", "<i4", ">u2", "u1", "<u8"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_whole_numbers_of_any_width_order_and_version(tmp_path: Path, dtype: str, version: tuple[int, int]) -> None:
    (tmp_path / "a.npy").write_bytes(npy(TOKENS.astype(dtype), version=version))
    assert tokens_of(tmp_path / "a.npy") == TOKENS.tolist()


@pytest.mark.parametrize("key", ["tokens", "input_ids"])
@pytest.mark.parametrize("beside", [{"lengths": [4, 1, 3]}, {"attention_mask": [[1] * 4, [1, 0, 0, 0], [1, 1, 1, 0]]}])
def test_arrays_of_an_npz_end_where_lengths_or_the_mask_say(tmp_path: Path, key: str, beside: dict) -> None:
    np.savez(
        tmp_path / "a.npz", **{key: TOKENS, "other": np.zeros((2, 2)), **{k: np.array(v) for k, v in beside.items()}}
    )
    assert tokens_of(tmp_path / "a.npz") == [[0, 1, 2, 3], [4], [8, 9, 10]]


CODE = "__import__('os').system('true')"
BROKEN = {
    "cut": npy(TOKENS)[:-1],
    "empty": b"",
    "another file": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "floats": npy(TOKENS.astype(np.float32)),
    "booleans": npy(TOKENS > 3),
    "objects": npy(TOKENS.astype(object)),
    "three dimensions": npy(TOKENS[None]),
    "no dimension": npy(np.array(3)),
    "no tokens": npy(TOKENS[:, :0]),
    "order of Fortran": npy(np.asfortranarray(TOKENS)),
    "more rows than bytes": header(described(shape="(1000000000000, 4)"), TOKENS.tobytes()),
    "negative rows": header(described(shape="(-1, 4)"), TOKENS.tobytes()),
    "true rows": header(described(shape="(True, 4)"), TOKENS.tobytes()),
    "rows beyond 64 bits": header(described(shape=f"({2**62}, {2**62})"), TOKENS.tobytes()),
    "rows that wrap to nothing": header(described(shape=f"({2**32}, {2**32})"), TOKENS.tobytes()),
    "code in the header": header(f"{{'descr': {CODE}, 'fortran_order': False, 'shape': (3, 4)}}", TOKENS.tobytes()),
    "code as the shape": header(described(shape=CODE), TOKENS.tobytes()),
    "nested brackets": header("(" * 500),
    "a header without end": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{",
    "half a header": b"\x93NUMPY\x01\x00\x10",
    "keys missing": header("{'descr': '<i8'}\n", TOKENS.tobytes()),
    "fields": header(described(descr="[('a', '<i8')]"), TOKENS.tobytes()),
    "texts": header(described(descr="'<U1000000000'"), TOKENS.tobytes()),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_what_is_no_array_of_tokens_is_refused_in_one_line(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(BROKEN[kind])
    if suffix == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("tokens.npy", BROKEN[kind])
    with pytest.raises(JobError, match=r"tasks\.path=") as refused:
        tokens_of(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_archives_that_do_not_fit_their_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, tokens=TOKENS)
    with pytest.raises(JobError, match=r"is compressed; save it with numpy\.savez"):
        tokens_of(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tokens.npy", npy(TOKENS))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("tokens.npy", npy(TOKENS + 1))
    with pytest.raises(JobError, match="it has 'tokens' twice"):
        tokens_of(path)
    with zipfile.ZipFile(path, "w") as archive:  # its second half would be the bytes of the next member
        archive.writestr("tokens.npy", npy(TOKENS)[: -TOKENS.nbytes // 2])
        archive.writestr("other.npy", npy(TOKENS))
    with pytest.raises(JobError, match="'tokens' is int64"):
        tokens_of(path)
    np.savez(path, other=TOKENS)
    with pytest.raises(JobError, match="has no tensor 'tokens' or 'input_ids'; it has other"):
        tokens_of(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(JobError, match=r"no \.npz file"):
        tokens_of(path)
