"""Generated completions of a batch, as one JSON-lines file in outputs/."""

from collections.abc import Sequence

import msgspec

from pod_job.errors import JobError
from pod_job.formats.records import Count, Record, decode, encode, read_bounded
from pod_job.run_folder import layout
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import Folder, NameTaken

MOST_OUTPUT_BYTES = 1 << 30
REPAIR = "copy the file again, or remove it and start the run again"


class Completion(Record, frozen=True, omit_defaults=True):
    """New tokens of one sample; `ended` is why there are no more: `end_token`, `stop` or `length`.

    `text` is without special tokens, and ends before the stop text. `crc32c` is that of the line without it, "" where
    it is not recorded: a batch that is started again goes on from these tokens, so they must be as they were.
    """

    task_id: str
    sample_idx: int
    prompt_tokens: Count
    token_ids: list[int]
    text: str
    ended: str
    crc32c: str = ""


def store_completions(folder: Folder, batch: int, completions: Sequence[Completion]) -> None:
    """Writes a batch's file, or confirms that it is there.

    Raises:
        JobError: another host stored other completions of this batch in the meantime.
    """
    name = layout.outputs_file(batch)
    try:
        folder.create(name, [b"".join(encode(_with_checksum(completion)) + b"\n" for completion in completions)])
    except NameTaken:
        if read_completions(folder, batch) != list(completions):
            raise JobError(
                f"{folder.url}/{name}: another host stored other completions of batch {batch} meanwhile; "
                "start the run again, it goes on from those"
            ) from None


def read_completions(folder: Folder, batch: int) -> list[Completion]:
    """Returns the completions of a batch in the order of its samples; none where the file is not there yet.

    Raises:
        JobError: the file is damaged.
    """
    name = layout.outputs_file(batch)
    try:
        lines = read_bounded(folder, name, MOST_OUTPUT_BYTES).splitlines()
    except FileNotFoundError:
        return []
    return [_checked(line, f"{folder.url}/{name}, line {number}") for number, line in enumerate(lines, 1)]


def _with_checksum(completion: Completion) -> Completion:
    return msgspec.structs.replace(completion, crc32c=checksum([encode(completion)]).crc32c)


def _checked(line: bytes, where: str) -> Completion:
    """Returns the completion in a line, without its checksum. JobError where that is not of the line."""
    stored = decode(line, Completion, where, REPAIR)
    completion = msgspec.structs.replace(stored, crc32c="")
    if stored.crc32c and _with_checksum(completion) != stored:
        raise JobError(f"{where}: damaged: its crc32c is not that of its content; {REPAIR}")
    return completion
