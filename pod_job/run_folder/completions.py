"""Generated completions of a batch, as one JSON-lines file in outputs/."""

from collections.abc import Sequence

from pod_job.errors import JobError
from pod_job.formats.records import Count, Record, decode, encode, read_bounded
from pod_job.run_folder import layout
from pod_job.storage.folder import Folder, NameTaken

MOST_OUTPUT_BYTES = 1 << 30


class Completion(Record, frozen=True):
    """New tokens of one sample; `ended` is why there are no more: `end_token`, `stop` or `length`.

    `text` is without special tokens, and ends before the stop text.
    """

    task_id: str
    sample_idx: int
    prompt_tokens: Count
    token_ids: list[int]
    text: str
    ended: str


def store_completions(folder: Folder, batch: int, completions: Sequence[Completion]) -> None:
    """Writes a batch's file, or confirms that it is there.

    Raises:
        JobError: another host stored other completions of this batch in the meantime.
    """
    name = layout.outputs_file(batch)
    try:
        folder.create(name, [b"".join(encode(completion) + b"\n" for completion in completions)])
    except NameTaken:
        if read_completions(folder, batch) != list(completions):
            raise JobError(
                f"{folder.url}/{name}: another host stored other completions of batch {batch} meanwhile; "
                "start the run again, it goes on from those"
            ) from None


def read_completions(folder: Folder, batch: int) -> list[Completion]:
    """Returns the completions of a batch in the order of its samples; none where the file is not there yet."""
    name = layout.outputs_file(batch)
    try:
        lines = read_bounded(folder, name, MOST_OUTPUT_BYTES).splitlines()
    except FileNotFoundError:
        return []
    return [decode(line, Completion, f"{folder.url}/{name}, line {i}") for i, line in enumerate(lines, 1)]
