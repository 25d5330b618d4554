"""What a prompt was completed with: where a completion ends, its text, and the file that keeps those of a batch.

The file is written before anything else of its batch. A later attempt at the batch repeats the completions in it, so
that vectors which are there already belong to the tokens of whoever comes after.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pod_job.errors import JobError
from pod_job.generation.generate_config import GenerateConfig
from pod_job.run_folder import rundir
from pod_job.storage import Folder, NameTaken


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


@dataclass(frozen=True)
class Ending:
    """When a completion ends, and the tokenizer that tells its text."""

    generate: GenerateConfig
    end_tokens: tuple[int, ...]
    tokenizer: Any


def find_end(tokens: Sequence[int], ending: Ending) -> tuple[int, str] | None:
    """How many of the tokens make the completion, and why it ends there; None where it goes on after them."""
    most = ending.generate.max_new_tokens
    at = next((i for i, token in enumerate(tokens[:most]) if token in ending.end_tokens), None)
    count = min(len(tokens), most) if at is None else at + 1

    def stops(count: int) -> bool:
        text = ending.tokenizer.decode(tokens[:count], skip_special_tokens=True)
        return any(stop in text for stop in ending.generate.stop)

    if ending.generate.stop and stops(count):
        return next(n for n in range(1, count + 1) if stops(n)), "stop"
    if at is not None:
        return count, "end_token"
    return (count, "length") if count == most else None


def completed_text(tokens: Sequence[int], ending: Ending) -> str:
    """Text of the tokens up to the first stop text in it."""
    text = ending.tokenizer.decode(tokens, skip_special_tokens=True)
    return text[: min((text.find(stop) for stop in ending.generate.stop if stop in text), default=len(text))]


def store_completions(folder: Folder, batch: int, completions: Sequence[Completion]) -> None:
    """Writes a batch's file, or confirms that it is there.

    Raises:
        JobError: another host stored other completions of this batch in the meantime.
    """
    name = rundir.outputs_file(batch)
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
    name = rundir.outputs_file(batch)
    try:
        lines = folder.read(name).decode().splitlines()
        return [Completion(**json.loads(line)) for line in lines]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise JobError(f"{folder.url}/{name}: not a file of completions ({error})") from error
