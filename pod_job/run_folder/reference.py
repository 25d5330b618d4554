"""The record in reference/: vectors of Hugging Face's model that came with the run, computed where it was started."""

from typing import Literal

from pod_job.formats.records import Count, Record, read_file
from pod_job.run_folder.identity import ModelIdentity
from pod_job.run_folder.layout import REFERENCE
from pod_job.storage.folder import Folder


class ReferenceRecord(Record, frozen=True, kw_only=True):
    """Model, taps and tokens of the vectors, whose file has `size` bytes; `versions` of the packages that made them."""

    format: Literal[1]
    model: ModelIdentity
    taps: list[str]
    token_ids: list[list[Count]]
    versions: dict[str, str]
    size: Count
    crc32c: str
    made: str


def read_reference_record(folder: Folder) -> ReferenceRecord | None:
    """Returns the record; None where the run came without. JobError where it is damaged."""
    try:
        return read_file(folder, REFERENCE, ReferenceRecord)
    except FileNotFoundError:
        return None
