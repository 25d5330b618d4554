"""Generated completions of a batch, as one JSON-lines file in outputs/."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pod_job.errors import JobError
from pod_job.run_folder import layout
from pod_job.storage.folder import Folder, NameTaken


@dataclass(frozen=True)
class Completion:
    """New tokens of one sample; `ended` is why there are no more: `end_token`, `stop` or `length`.

    `text` is without special tokens, and ends before the stop text.
    """

    task_id: str
    sample_idx: int
    prompt_tokens: int
    token_ids: list[int]
    text: str
    ended: str


def store_completions(folder: Folder, batch: int, completions: Sequence[Completion]) -> None:
    """Writes a batch's file, or confirms that it is there.

    Raises:
        JobError: another host stored other completions of this batch in the meantime.
    """
    name = layout.outputs_file(batch)
    data = "".join(json.dumps(asdict(completion)) + "\n" for completion in completions).encode()
    try:
        folder.create(name, [data])
    except NameTaken:
        if folder.read(name) != data:
            raise JobError(
                f"{folder.url}/{name}: another host stored other completions of batch {batch} meanwhile; "
                "start the run again, it goes on from those"
            ) from None


def read_completions(folder: Folder, batch: int) -> list[Completion]:
    """The completions of a batch in the order of its samples; none where the file is not there yet."""
    name = layout.outputs_file(batch)
    try:
        lines = folder.read(name).decode().splitlines()
        return [Completion(**json.loads(line)) for line in lines]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise JobError(f"{folder.url}/{name}: not a file of completions ({error})") from error
