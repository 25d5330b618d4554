"""Text around rows: their tokens and the tokens beside them, decoded by the run's tokenizer.

The tokens beside a row come from the rows tables where all positions are stored, else from the run's prompts.
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
from pod_job.planning.template_date import template_date
from pod_job.prompts.tasks import read_tasks
from pod_job.prompts.tokens import TokenizerFolder, load_tokenizer
from pod_job.reading.dataset import ActivationDataset
from pod_job.report.overview import Overview

WIDTH = 24
"""Tokens shown on either side of a row's."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class RowText:
    """A row's token, and the text before and after it in its sample."""

    before: str
    token: str
    after: str


def row_texts(
    overview: Overview, dataset: ActivationDataset, index: np.ndarray, overrides: Sequence[str] = ()
) -> tuple[list[RowText], str | None]:
    """Returns the text around each row, and why it is limited to the rows tables, where it is."""
    decode, reason = open_decoder(overview, overrides)
    texts = [text_of(dataset, int(row), decode) for row in index]
    if reason is None and len(index) and overview.identity.positions != "all":
        try:
            return texts_from_prompts(overview, dataset, index, overrides), None
        except JobError as error:
            reason = str(error)
    return texts, reason


def open_decoder(overview: Overview, overrides: Sequence[str] = ()) -> tuple[Decode, str | None]:
    """Returns a function from token ids to text; where the tokenizer is missing, to their numbers, with the reason."""
    try:
        config = recorded(overview, overrides)
        tokenizer = load_tokenizer(find_model(config.model.path, config.model.revision).directory)
    except JobError as error:
        return as_numbers, str(error)
    return decoder(tokenizer), None


def decoder(tokenizer: Any) -> Decode:
    return lambda ids: tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def as_numbers(ids: Sequence[int]) -> str:
    return "".join(f"[{number}]" for number in ids)


def recorded(overview: Overview, overrides: Sequence[str] = ()) -> JobConfig:
    """Returns the configuration of the run with `overrides` for inputs that were moved; JobError where it has none."""
    if not overview.config:
        raise JobError(f"{overview.folder.url}/run.json does not tell how the run was started: no tokenizer")
    return from_json(overview.config, overrides)


def text_of(dataset: ActivationDataset, row: int, decode: Decode, width: int = WIDTH) -> RowText:
    """Returns the text around a row from the rows tables alone, without the tokens that are not stored."""
    start, stop = max(0, row - width), min(len(dataset), row + width + 1)
    rows, center = dataset.rows(slice(start, stop)), row - start
    offsets = np.arange(stop - start) - center
    same = (rows["task_id"] == rows["task_id"][center]) & (rows["sample_idx"] == rows["sample_idx"][center])
    same &= rows["position"] - rows["position"][center] == offsets
    tokens, place = rows["token_id"][same], int(np.flatnonzero(offsets[same] == 0)[0])
    return cut_text(tokens, place, decode, width)


def texts_from_prompts(
    overview: Overview, dataset: ActivationDataset, rows: np.ndarray, overrides: Sequence[str] = ()
) -> list[RowText]:
    """Returns the text around rows from the run's prompts, read again; JobError where they are missing or changed."""
    config = recorded(overview, overrides)
    folder = TokenizerFolder(find_model(config.model.path, config.model.revision).directory)
    samples = read_tasks(
        config.tasks, count_tokens=token_counter(config, folder, template_date(overview.folder))
    ).samples
    tokenizer = folder.tokenizer
    decode = decoder(tokenizer)
    return [cut_text(ids, at, decode) for ids, at in row_prompts(config, samples, tokenizer, dataset, rows)]


def cut_text(tokens: np.ndarray, place: int, decode: Decode, width: int = WIDTH) -> RowText:
    before, after = tokens[max(0, place - width) : place], tokens[place + 1 : place + 1 + width]
    return RowText(decode(before.tolist()), decode([int(tokens[place])]), decode(after.tolist()))
