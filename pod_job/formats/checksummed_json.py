"""JSON that carries its own checksum: a file of which one byte was altered is refused, whatever its values say."""

import json
from typing import Any

from pod_job.errors import JobError
from pod_job.storage.checksums import checksum

KEY = "crc32c"


def seal(text: str) -> bytes:
    """The text of a JSON object as a file: its last key is the CRC-32C of every byte before that."""
    body = text.rstrip().removesuffix("}").rstrip().encode()
    return body + _seal_of(body)


def open_sealed(data: bytes, name: str, advice: str = "") -> dict[str, Any]:
    """The object, without the checksum. JobError, naming the file (`name`), where it has none or another content."""
    body, there = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    if not there.startswith(_SEAL_START):
        raise JobError(f"{name}: damaged: it does not end with its {KEY}, so it was cut or altered{advice}")
    if there != _seal_of(body):
        raise JobError(f"{name}: damaged: its {KEY} is not that of its content, so it was altered{advice}")
    try:
        content = json.loads(data)
    except ValueError as error:
        raise JobError(f"{name}: not JSON ({error}){advice}") from error
    del content[KEY]
    return content


def _seal_of(body: bytes) -> bytes:
    return f',\n"{KEY}":"{checksum([body]).crc32c}"}}\n'.encode()


_SEAL_BYTES = len(_seal_of(b""))
_SEAL_START = f',\n"{KEY}":"'.encode()
