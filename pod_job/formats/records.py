"""Typed records as JSON: one encoder, and one decoder that names the file and the field that is wrong."""

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar, get_args

import msgspec

from pod_job.errors import JobError
from pod_job.formats.json_text import MOST_BYTES, parse_json
from pod_job.storage.folder import Readable
from pod_job.terminal import one_line

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
"""A number of bytes, rows or batches; what is larger is damage, and would overflow sums of 64 bits."""
DAMAGED = "the file is damaged, or another version wrote it"


MOST_SHOWN = 300
"""Characters of an error in a message; a field may have a name of megabytes."""


class DamagedRecord(JobError):
    """The content of a file is not the record that it must be."""


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
        DamagedRecord: `data` is not JSON, is of a format version that `record_type` does not read, or has a field that
            is missing, unknown, or of another type than `record_type` gives it. `advice` ends the message.
    """
    try:
        return msgspec.json.decode(data, type=record_type)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        reason: Exception | str = error
        try:
            content = parse_json(data, len(data))
            json.dumps(content, ensure_ascii=False).encode()  # ValueError for half a surrogate pair
            if not isinstance(error, msgspec.ValidationError):  # Infinity or NaN, which only `json` reads
                return convert(content, record_type, name, advice)
            reason = _version(content, record_type) or error
        except (ValueError, RecursionError):
            pass
        raise DamagedRecord(f"{name}: {_reason(reason)}; {advice}") from error


def read_bounded(folder: Readable, name: str, most_bytes: int = MOST_BYTES) -> bytes:
    """Returns the content of a file that holds records, however large the file is.

    Raises:
        FileNotFoundError: nothing has the name.
        DamagedRecord: it is larger than `most_bytes`; no more of it than that is read.
    """
    data = folder.read(name, 0, most_bytes + 1)
    if len(data) > most_bytes:
        size = f"larger than {most_bytes >> 20} MiB"
        raise DamagedRecord(f"{folder.url}/{name}: is {size}, which no such file is; remove it or copy it again")
    return data


def read_file(
    folder: Readable, name: str, record_type: type[T], advice: str = DAMAGED, most_bytes: int = MOST_BYTES
) -> T:
    """Returns the record in a file of a run folder, whose keys are each there once.

    Raises:
        FileNotFoundError: nothing has the name.
        DamagedRecord: as of `read_bounded` and `decode`, or it is nested deeper than any record is.
    """
    data, where = read_bounded(folder, name, most_bytes), f"{folder.url}/{name}"
    record = decode(data, record_type, where, advice)
    try:
        parse_json(data, most_bytes)
    except ValueError as error:
        raise DamagedRecord(f"{where}: {error}; {advice}") from error
    return record


def convert(content: Any, record_type: type[T], name: str, advice: str = DAMAGED) -> T:
    """Returns the record that plain values hold. DamagedRecord as `decode` raises it."""
    try:
        return msgspec.convert(content, record_type)
    except msgspec.ValidationError as error:
        raise DamagedRecord(f"{name}: {_reason(_version(content, record_type) or error)}; {advice}") from error


def _version(content: Any, record_type: Any) -> str:
    """Returns what is wrong with the format version of a record; "" where nothing is, or where it has none."""
    known = get_args(getattr(record_type, "__annotations__", {}).get("format"))
    version = content.get("format") if isinstance(content, dict) else None
    return f"format {version!r:.40}, this version reads {known[0]}" if known and version not in (*known, None) else ""


def _reason(error: Exception | str) -> str:
    """Returns msgspec's message with the field in front: "rows: expected `int`, got `str`"."""
    message, _, path = one_line(str(error)[:MOST_SHOWN]).partition(" - at `$")
    field = path.strip("`.")
    if missing := re.fullmatch(r"Object missing required field `(.+)`", message):
        return f"{f'{field}.' if field else ''}{missing[1]} is missing"
    return f"{field}: {message[0].lower()}{message[1:]}" if field else message
