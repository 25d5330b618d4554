"""Sizes that a record batch of an Arrow file claims for its compressed buffers: so much is allocated to read them.

Source: Arrow's Message.fbs, and the columnar format's section on IPC, where a compressed buffer begins with its size.
"""

import struct

import pyarrow as pa

from pod_job.errors import JobError

MOST_CLAIMED, MOST_EXPANDED = 1 << 30, 64
"""Bytes of a batch's content that are taken, or times the size of its compressed buffers, if that is more."""
HEADER, BUFFERS, COMPRESSION = 2, 2, 3
"""Numbers of fields: of a message its header, of a record batch its buffers and their compression."""
NOT_COMPRESSED = -1


def check_claims(message: pa.Message, url: str) -> None:
    """Raises JobError for a record batch that claims to expand to many times its size."""
    data, body = message.metadata.to_pybytes(), message.body
    if body is None or (batch := field_of(data, number_at(data, 0, "<I"), HEADER)) is None:
        return
    batch += number_at(data, batch, "<I")
    buffers, compression = field_of(data, batch, BUFFERS), field_of(data, batch, COMPRESSION)
    if buffers is None or compression is None:
        return
    buffers += number_at(data, buffers, "<I")
    count, claimed = number_at(data, buffers, "<I"), 0
    for start, size in struct.iter_unpack("<qq", data[buffers + 4 : buffers + 4 + 16 * count]):
        if 8 <= size <= body.size - start and start >= 0:  # others are refused by the library
            claimed += max(0, number_at(body, start, "<q"))
    if claimed > max(MOST_CLAIMED, MOST_EXPANDED * body.size):
        raise JobError(
            f"tasks.path={url}: a batch of {body.size:,} bytes claims to expand to {claimed:,}; save it again, in "
            "batches of fewer rows"
        )


def field_of(data: bytes, table: int, number: int) -> int | None:
    """Returns where a field of a flatbuffers table is; None where the table has none."""
    fields = table - number_at(data, table, "<i")
    entry = 4 + 2 * number
    place = number_at(data, fields + entry, "<H") if entry < number_at(data, fields, "<H") else 0
    return table + place if place else None


def number_at(data: bytes | pa.Buffer, place: int, form: str) -> int:
    return struct.unpack_from(form, data, place)[0]
