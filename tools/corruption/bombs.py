"""Small files that claim, or expand to, far more than they hold; by the ending of the file that they replace."""

import io
import json
import pickle
import random
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 150_000_000
Bomb = Callable[[bytes, random.Random], bytes]


def parquet(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd", **options)  # type: ignore[arg-type]
    return file.getvalue()


def rows_table(columns: dict[str, object], rows: int) -> bytes:
    """Returns a rows table of constant columns, with those given instead."""
    constant = dict.fromkeys(("sample_idx", "position", "token_id"), np.zeros(rows, np.int32))
    constant |= dict.fromkeys(("special", "sink", "nonfinite"), np.zeros(rows, bool))
    constant |= {name: repeated("x", rows) for name in ("task_id", "timestamp")}
    return parquet(pa.table(constant | columns))


def repeated(text: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [text])


def many_rows(_: bytes, rng: random.Random) -> bytes:
    """Returns a rows table of a few kilobytes that has millions of rows."""
    return rows_table({}, rng.choice((ROWS // 50, ROWS // 10)))


def large_dictionary(_: bytes, rng: random.Random) -> bytes:
    """Returns a rows table whose only task name has a hundred million characters."""
    rows = rng.choice((7, 13, 14, 20, 21))
    return rows_table({"task_id": repeated("x" * 100_000_000, rows)}, rows)


def nested(_: bytes, rng: random.Random) -> bytes:
    """Returns a rows table with lists in place of task names."""
    rows = rng.choice((7, 13, 14, 20, 21))
    deep = pa.array([["x"] * 3] * rows)
    return rows_table({"task_id": deep}, rows)


def wide(_: bytes, rng: random.Random) -> bytes:
    """Returns a rows table with thousands of other columns, or others of the same name."""
    names = [f"c{number}" for number in range(3000)] if rng.random() < 0.5 else ["task_id", "task_id", "position"]
    return parquet(pa.Table.from_arrays([pa.array([1])] * len(names), names=names))


def claim_in_footer(data: bytes, rng: random.Random) -> bytes:
    """Returns the table with other bytes in its footer, which holds all counts, sizes and offsets."""
    footer = int.from_bytes(data[-8:-4], "little") if len(data) > 12 else 0
    start = max(0, len(data) - 8 - footer)
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        changed[rng.randrange(start, max(start + 1, len(data) - 8))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(changed)


def page_header(data: bytes, rng: random.Random) -> bytes:
    """Returns the table with other bytes at the beginning of a page, where its sizes and counts are."""
    changed = bytearray(data)
    starts = [4, *(at for at in range(4, len(data) - 4) if data[at : at + 1] == b"\x15")]
    at = rng.choice(starts)
    claim = rng.choice((b"\x15\x04\x15\xfe\xff\xff\xff\x0f", b"\x15\xfe\xff\xff\xff\x0f", b"\x15\x80\x80\x80\x80\x08"))
    changed[at : at + len(claim)] = claim
    return bytes(changed)


def safetensors_header(data: bytes, rng: random.Random) -> bytes:
    """Returns the file behind another header: of a false length, or with false shapes and offsets."""
    size = int.from_bytes(data[:8], "little")
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1, 99_999_999)).to_bytes(8, "little") + data[8:]
    if kind == 1:
        header = b'{"activations":{"dtype":"BF16","shape":[%d,0],"data_offsets":[0,0]}}' % rng.choice((0, 20, 2**60))
        return len(header).to_bytes(8, "little") + header
    if kind == 2:
        text = b"[" * 100_000 if rng.random() < 0.5 else b'{"a":' + b"9" * 100_000 + b"}"
        return len(text).to_bytes(8, "little") + text
    try:
        header = json.loads(data[8 : 8 + size])
    except ValueError:
        return b""
    for tensor in header.values():
        if "shape" in tensor:
            tensor["shape"] = rng.choice(([2**40, 2**20], [0] * 64, [-1, -20], [True, 16], [20, 16, 1], []))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def memo_bomb(_: bytes, rng: random.Random) -> bytes:
    """Returns a pickle that stores one value at a number in the billions of the unpickler's table."""
    return b"\x80\x04Nr" + rng.choice((2**31 - 1, 2**27)).to_bytes(4, "little") + b"."


def doubled(_: bytes, rng: random.Random) -> bytes:
    """Returns a pickle of lists that hold each other twice, thirty levels deep: a walk would visit 2**30."""
    value: object = []
    for _level in range(30):
        value = [value, value]
    return pickle.dumps({"layer": 0, "activations": value}, protocol=4)


def claimed_length(_: bytes, rng: random.Random) -> bytes:
    """Returns a pickle whose string, bytes or frame claims to be as long as a disk."""
    code, width = rng.choice(((b"B", 4), (b"\x8e", 8), (b"X", 4), (b"\x8d", 8), (b"\x95", 8), (b"\x96", 8)))
    return b"\x80\x05" + code + (2 ** (8 * width - 1) - 1).to_bytes(width, "little") + b"xxxx."


def repeated_array(_: bytes, rng: random.Random) -> bytes:
    """Returns a pickle with one activation of a megabyte, ten thousand times."""
    item = {"task_id": "a", "sample_idx": 0, "activation": np.zeros(1 << 17), "timestamp": "t"}
    return pickle.dumps({"layer": 0, "activations": [item] * 10_000}, protocol=4)


def large_integer(_: bytes, rng: random.Random) -> bytes:
    """Returns a pickle whose layer is an integer of 100,000 digits."""
    return pickle.dumps({"layer": 10**100_000, "activations": []}, protocol=4)


def deep_pickle(_: bytes, rng: random.Random) -> bytes:
    """Returns a pickle of lists nested 100,000 deep."""
    return b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b"."


def array_header(data: bytes, rng: random.Random) -> bytes:
    """Returns a .npy file that claims another shape or dtype."""
    shape = rng.choice(("(10**12, 4)", "(4, -1)", "(" * 500, "(9" * 400, f"({2**62}, {2**62})", "(3, 5), " * 3, "()"))
    kind = rng.choice(("<i4", "|O", "<U1000000000", "V1000000000", "<i8"))
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + min(len(header), 65535).to_bytes(2, "little") + header[:65535] + data[128:]


BOMBS: dict[str, dict[str, Bomb]] = {
    ".parquet": {
        "many rows": many_rows,
        "large dictionary": large_dictionary,
        "nested": nested,
        "wide": wide,
        "claims in the footer": claim_in_footer,
        "claims in a page": page_header,
    },
    ".safetensors": {"header": safetensors_header},
    ".pkl": {
        "memo": memo_bomb,
        "doubled lists": doubled,
        "claimed length": claimed_length,
        "repeated array": repeated_array,
        "large integer": large_integer,
        "deep": deep_pickle,
    },
    ".npy": {"header": array_header},
}
