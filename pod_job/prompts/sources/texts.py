"""Plain text: every file is one document."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from pod_job.prompts.sources.blocks import Counted, FileReader
from pod_job.prompts.sources.compressed import CODECS, pieces_of
from pod_job.prompts.sources.sample import BrokenTask, Reason, Sample, checked
from pod_job.storage.checksums import RunningChecksum

SUFFIX = ".txt"


class TextReader(FileReader):
    """A document; its task_id is the file's name without the ending."""

    def count(self) -> Counted:
        checksum = RunningChecksum()
        for _ in pieces_of(self.file, self.entry.size, checksum):
            pass
        return Counted(1, b"", f"crc32c:{checksum.stored.crc32c}")

    def block_starts(self) -> Int64[np.ndarray, " n"]:
        return np.array([0, 1], np.int64)

    def stream(self, block: int, stop: int) -> Iterator[bytes]:
        yield b"".join(pieces_of(self.file, self.entry.size))

    def sample(self, block: bytes, index: int, row: int) -> Sample:
        try:
            text = block.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            raise BrokenTask(f"{self.where} is not readable UTF-8 text ({error})") from error
        if not text:
            raise BrokenTask(f"{self.where} is empty", Reason.blank)
        return checked(self.where, Sample(document_name(self.entry.name), 0, text))

    def head(self, count: int) -> Iterator[Sample | BrokenTask]:
        yield self.read(b"".join(pieces_of(self.file, self.entry.size)), 0, 0)


def document_name(name: str) -> str:
    """Returns the name of a file without its endings."""
    for suffix in (*CODECS, SUFFIX):
        name = name.removesuffix(suffix)
    return name
