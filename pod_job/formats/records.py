"""Typed records as JSON: one encoder, and one decoder that names the file and the field that is wrong."""

import re
from typing import TypeVar

import msgspec

from pod_job.errors import JobError

T = TypeVar("T")


def encode(record: msgspec.Struct) -> bytes:
    """Returns the record as one line of JSON."""
    return msgspec.json.encode(record)


def decode(data: bytes | str, record_type: type[T], name: str) -> T:
    """Returns the record that `data`, the content of the file `name`, holds as JSON.

    Raises:
        JobError: `data` is not JSON, or a field is missing or of another type than `record_type` has.
    """
    try:
        return msgspec.json.decode(data, type=record_type)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise JobError(f"{name}: {_reason(error)}; the file is damaged, or another version wrote it") from error


def _reason(error: Exception) -> str:
    """Returns msgspec's message with the field in front: "rows: expected `int`, got `str`"."""
    message, _, path = str(error).partition(" - at `$")
    field = path.strip("`.")
    if missing := re.fullmatch(r"Object missing required field `(.+)`", message):
        return f"{f'{field}.' if field else ''}{missing[1]} is missing"
    return f"{field}: {message[0].lower()}{message[1:]}" if field else message
