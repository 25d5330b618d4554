"""Text around rows: their tokens and the tokens beside them, decoded by the run's own tokenizer.

The tokens beside a row come from the rows tables where all positions are stored, else from the run's prompts: those,
and the tokenizer of a model, are outside the run folder and opened only where the person who looks says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pod_job.checking.consent import MODEL, NO_CONSENT, TASKS, Consent, config_to_read, fix
from pod_job.checking.recompute import row_prompts
from pod_job.checkpoints.locate import find_model
from pod_job.errors import JobError
from pod_job.planning.inputs import token_counter
from pod_job.planning.task_index import find_tasks
from pod_job.planning.template_date import template_date
from pod_job.prompts.tokenizer import TokenizerFolder, load_tokenizer
from pod_job.reading.dataset import ActivationDataset
from pod_job.report.overview import Overview
from pod_job.run_folder.identity import find_run
from pod_job.run_folder.tokenizer import Decode, read_decoder
from pod_job.storage.folder import Folder

WIDTH = 24
"""Tokens shown on either side of a row's."""


@dataclass(frozen=True)
class RowText:
    """A row's token, and the text before and after it in its sample."""

    before: str
    token: str
    after: str


def row_texts(
    overview: Overview, dataset: ActivationDataset, index: np.ndarray, consent: Consent = NO_CONSENT
) -> tuple[list[RowText], str | None]:
    """Returns the text around each row, and why it is limited to what the run folder has, where it is."""
    decode, reason = open_decoder(overview.folder, consent)
    texts = [text_of(dataset, int(row), decode) for row in index]
    if reason is None and len(index) and overview.identity.positions != "all":
        try:
            return texts_from_prompts(overview.folder, dataset, index, consent), None
        except JobError as error:
            reason = str(error)
    return texts, reason


def open_decoder(folder: Folder, consent: Consent = NO_CONSENT) -> tuple[Decode, str | None]:
    """Returns a function from token ids to text; where there is no tokenizer, to their numbers, with the reason.

    The tokenizer is the run's own, unless the person who looks wants the one of a model.
    """
    try:
        if not consent.covers(MODEL):
            return read_decoder(folder), None
        config = config_to_read(folder, consent, MODEL)
        return decoder(load_tokenizer(find_model(config.model.path, config.model.revision).directory)), None
    except JobError as error:
        return as_numbers, str(error) if consent.covers(MODEL) else f"{error}; {fix(MODEL)}"


def decoder(tokenizer: Any) -> Decode:
    return lambda ids: tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def as_numbers(ids: Sequence[int]) -> str:
    return "".join(f"[{number}]" for number in ids)


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
    run: Folder, dataset: ActivationDataset, rows: np.ndarray, consent: Consent = NO_CONSENT
) -> list[RowText]:
    """Returns the text around rows from the run's prompts, read again.

    Raises:
        JobError: the prompts or the model are missing or changed, or the person who looks has not consented.
    """
    config = config_to_read(run, consent, MODEL, TASKS)
    folder = TokenizerFolder(find_model(config.model.path, config.model.revision).directory)
    counter = token_counter(config, folder, template_date(find_run(run)))
    samples = find_tasks(config.tasks, counter=counter).samples
    tokenizer = folder.tokenizer
    decode = decoder(tokenizer)
    found = row_prompts(config, samples, tokenizer, dataset, rows)
    return [cut_text(ids, int(places[0]), decode) for ids, places in found]


def cut_text(tokens: np.ndarray, place: int, decode: Decode, width: int = WIDTH) -> RowText:
    before, after = tokens[max(0, place - width) : place], tokens[place + 1 : place + 1 + width]
    return RowText(decode(before.tolist()), decode([int(tokens[place])]), decode(after.tolist()))
