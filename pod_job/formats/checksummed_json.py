"""JSON that carries its own checksum: a file of which one byte was altered is refused, whatever its values say."""

from pod_job.errors import JobError
from pod_job.storage.checksums import checksum

KEY = "crc32c"


def with_checksum(text: bytes) -> bytes:
    """Returns the text of a JSON object with one more key, the last: the CRC-32C of every byte before it."""
    body = text.rstrip().removesuffix(b"}").rstrip()
    return body + _ending(body)


def read_checksummed(data: bytes, name: str, advice: str = "") -> bytes:
    """Returns the text of the object without its checksum.

    Raises:
        JobError: the file (`name`) has no checksum, or another content; `advice` ends the message.
    """
    body, ending = data[:-_ENDING_BYTES], data[-_ENDING_BYTES:]
    if not ending.startswith(_ENDING_START):
        raise JobError(f"{name}: damaged: it does not end with its {KEY}, so it was cut or altered{advice}")
    if ending != _ending(body):
        raise JobError(f"{name}: damaged: its {KEY} is not that of its content, so it was altered{advice}")
    return body + b"}"


def _ending(body: bytes) -> bytes:
    return f',\n"{KEY}":"{checksum([body]).crc32c}"}}\n'.encode()


_ENDING_BYTES = len(_ending(b""))
_ENDING_START = f',\n"{KEY}":"'.encode()
