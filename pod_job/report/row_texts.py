"""The text around rows: their tokens and the neighbours of these, decoded by the run's tokenizer.

Neighbours come from the rows tables where all positions are stored, else from the prompts the run was made of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pod_job.checking.recompute import row_prompts
from pod_job.checkpoints.locate import find_model
from pod_job.config.load import from_json
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.planning.inputs import token_counter
from pod_job.prompts.tasks import read_tasks
from pod_job.prompts.tokens import TokenizerFolder, load_tokenizer
from pod_job.reading.dataset import ActivationDataset
from pod_job.report.overview import Overview

WIDTH = 24
"""Tokens shown on either side."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class RowText:
    """A row's token, and what is before and after it in its sample."""

    before: str
    token: str
    after: str


def row_texts(
    overview: Overview, dataset: ActivationDataset, index: np.ndarray, overrides: Sequence[str] = ()
) -> tuple[list[RowText], str | None]:
    """The text around each row, and where there is no more of it than the rows tables hold, why."""
    decode, reason = open_decoder(overview, overrides)
    texts = [text_of(dataset, int(row), decode) for row in index]
    if reason is None and len(index) and overview.identity.positions != "all":
        try:
            return texts_from_prompts(overview, dataset, index, overrides), None
        except JobError as error:
            reason = str(error)
    return texts, reason


def open_decoder(overview: Overview, overrides: Sequence[str] = ()) -> tuple[Decode, str | None]:
    """Token ids to text; where the tokenizer cannot be had, to their numbers, with the reason."""
    try:
        config = recorded(overview, overrides)
        tokenizer = load_tokenizer(find_model(config.model.path, config.model.revision).directory)
    except JobError as error:
        return by_numbers, str(error)
    return decoder(tokenizer), None


def decoder(tokenizer: Any) -> Decode:
    return lambda ids: tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def by_numbers(ids: Sequence[int]) -> str:
    return "".join(f"[{number}]" for number in ids)


def recorded(overview: Overview, overrides: Sequence[str] = ()) -> JobConfig:
    """How the run was started, with `overrides` for what was moved since. JobError where it does not tell."""
    if not overview.config:
        raise JobError(f"{overview.folder.url}/run.json does not tell how the run was started: no tokenizer")
    return from_json(overview.config, overrides)


def text_of(dataset: ActivationDataset, row: int, decode: Decode, width: int = WIDTH) -> RowText:
    """From the rows tables alone: neighbours that are not stored are not in it."""
    start, stop = max(0, row - width), min(len(dataset), row + width + 1)
    near = dataset.rows(slice(start, stop))
    here = row - start
    offsets = np.arange(stop - start) - here
    same = (near["task_id"] == near["task_id"][here]) & (near["sample_idx"] == near["sample_idx"][here])
    same &= near["position"] - near["position"][here] == offsets
    tokens, place = near["token_id"][same], int(np.flatnonzero(offsets[same] == 0)[0])
    return cut_text(tokens, place, decode, width)


def texts_from_prompts(
    overview: Overview, dataset: ActivationDataset, rows: np.ndarray, overrides: Sequence[str] = ()
) -> list[RowText]:
    """From the prompts of the run, read again. JobError where they cannot be had, or are no longer the run's."""
    config = recorded(overview, overrides)
    folder = TokenizerFolder(find_model(config.model.path, config.model.revision).directory)
    samples = read_tasks(config.tasks, count_tokens=token_counter(config, folder)).samples
    tokenizer = folder.tokenizer
    decode = decoder(tokenizer)
    return [cut_text(ids, at, decode) for ids, at in row_prompts(config, samples, tokenizer, dataset, rows)]


def cut_text(tokens: np.ndarray, place: int, decode: Decode, width: int = WIDTH) -> RowText:
    before, after = tokens[max(0, place - width) : place], tokens[place + 1 : place + 1 + width]
    return RowText(decode(before.tolist()), decode([int(tokens[place])]), decode(after.tolist()))
