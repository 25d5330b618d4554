"""Thrift structs in the compact protocol, as Parquet files hold them, read without trusting any length in them.

Protocol: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md. Every value that is
returned takes at least one byte of the data, so memory follows the data and not what it claims.
"""

MOST_NESTED = 12
STOP, TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
INTEGERS = (4, 5, 6)
LONG_LIST = 15
"""Length in the first byte of a list that says: the length follows."""

Struct = dict[int, "int | bytes | list | dict"]
"""Fields of a struct by number; flags are numbers."""


def read_struct(data: bytes, at: int = 0, depth: int = MOST_NESTED) -> tuple[Struct, int]:
    """Returns the struct that begins at this byte, and the place after it. ValueError where it is none."""
    fields: Struct = {}
    field = 0
    while (head := _byte(data, at)) != STOP:
        at += 1
        if head >> 4:
            field += head >> 4
        else:
            field, at = _zigzag(data, at)
        kind = head & 15
        if kind in (TRUE, FALSE):
            fields[field] = int(kind == TRUE)
        else:
            fields[field], at = _value(data, at, kind, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[int | bytes | list | dict, int]:
    if not depth:
        raise ValueError("a struct is nested too deep")
    if kind in INTEGERS:
        return _zigzag(data, at)
    if kind == STRUCT:
        return read_struct(data, at, depth - 1)
    if kind in (TRUE, FALSE, BYTE):
        return _byte(data, at), at + 1
    if kind == DOUBLE:
        return _bytes(data, at, 8)
    if kind == BINARY:
        length, at = _varint(data, at)
        return _bytes(data, at, length)
    if kind in (LIST, SET):
        head, at = _byte(data, at), at + 1
        length = head >> 4
        if length == LONG_LIST:
            length, at = _varint(data, at)
        if length > len(data) - at:
            raise ValueError(f"a list of {length} values has {len(data) - at} bytes")
        values = []
        for _ in range(length):
            value, at = _value(data, at, head & 15, depth - 1)
            values.append(value)
        return values, at
    raise ValueError(f"a field is of type {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(data, at)
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than 64 bits")


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _bytes(data: bytes, at: int, length: int) -> tuple[bytes, int]:
    if length > len(data) - at:
        raise ValueError(f"a text of {length} bytes has {len(data) - at}")
    return data[at : at + length], at + length


def _byte(data: bytes, at: int) -> int:
    if at >= len(data):
        raise ValueError("a struct is cut")
    return data[at]
