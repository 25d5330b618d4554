"""Typed records as JSON: one encoder, and one decoder that names the file and the field that is wrong."""

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar, get_args

import msgspec

from pod_job.errors import JobError

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
"""A number of bytes, rows or batches; what is larger is damage, and would overflow sums of 64 bits."""
DAMAGED = "the file is damaged, or another version wrote it"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the records in a run folder: a field that this version does not know is an error."""


def now() -> str:
    """Returns the time as records hold it: UTC in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def encode(record: msgspec.Struct, indent: int | None = None) -> bytes:
    """Returns the record as JSON: one line, or one line per value where `indent` is given.

    Infinity and NaN are written as `json.dumps` writes them; msgspec would write null.
    """
    separators = (",", ":") if indent is None else None
    return json.dumps(msgspec.to_builtins(record), indent=indent, separators=separators).encode()


def decode(data: bytes | str, record_type: type[T], name: str, advice: str = DAMAGED) -> T:
    """Returns the record that `data`, the content of the file `name`, holds as JSON.

    Raises:
        JobError: `data` is not JSON, is of a format version that `record_type` does not read, or has a field that is
            missing, unknown, or of another type than `record_type` gives it. `advice` ends the message.
    """
    try:
        return msgspec.json.decode(data, type=record_type)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        reason: Exception | str = error
        try:
            content = json.loads(data)
            json.dumps(content, ensure_ascii=False).encode()  # ValueError for half a surrogate pair
            if not isinstance(error, msgspec.ValidationError):  # Infinity or NaN, which only `json` reads
                return convert(content, record_type, name, advice)
            reason = _version(content, record_type) or error
        except (ValueError, RecursionError):
            pass
        raise JobError(f"{name}: {_reason(reason)}; {advice}") from error


def convert(content: Any, record_type: type[T], name: str, advice: str = DAMAGED) -> T:
    """Returns the record that plain values hold. JobError as `decode` raises it."""
    try:
        return msgspec.convert(content, record_type)
    except msgspec.ValidationError as error:
        raise JobError(f"{name}: {_reason(_version(content, record_type) or error)}; {advice}") from error


def _version(content: Any, record_type: Any) -> str:
    """Returns what is wrong with the format version of a record; "" where nothing is, or where it has none."""
    known = get_args(getattr(record_type, "__annotations__", {}).get("format"))
    version = content.get("format") if isinstance(content, dict) else None
    return f"format {version!r}, this version reads {known[0]}" if known and version not in (*known, None) else ""


def _reason(error: Exception | str) -> str:
    """Returns msgspec's message with the field in front: "rows: expected `int`, got `str`"."""
    message, _, path = str(error).partition(" - at `$")
    field = path.strip("`.")
    if missing := re.fullmatch(r"Object missing required field `(.+)`", message):
        return f"{f'{field}.' if field else ''}{missing[1]} is missing"
    return f"{field}: {message[0].lower()}{message[1:]}" if field else message
