"""Computes rows of a run again, from the recorded prompts with the recorded model, and compares them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pod_job.checking.consent import MODEL, NO_CONSENT, TASKS, Consent, config_to_read
from pod_job.checking.reference import limit_of, reference_taps, relative_errors
from pod_job.config.schema import JobConfig, MeshConfig, PodConfig, Sharding
from pod_job.errors import JobError
from pod_job.planning.batches import batch_samples
from pod_job.planning.inputs import read_inputs
from pod_job.planning.template_date import template_date
from pod_job.prompts.tasks import Samples
from pod_job.prompts.tokens import tokenize
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder.completions import read_completions
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder


@dataclass(frozen=True)
class Deviation:
    """Relative L2 errors of one tap's rows against the float32 reference; rounding explains at most `limit`."""

    reference: str
    rows: int
    median: float
    largest: float
    limit: float

    @property
    def too_far(self) -> bool:
        return not self.largest <= self.limit

    def __str__(self) -> str:
        return (
            f"{self.rows} rows computed again: relative error {self.median:.2g} (median), "
            f"{self.largest:.2g} (largest), limit {self.limit:.2g}; {self.reference}"
        )


def recompute(run_dir: str | Path, count: int, seed: int = 0, consent: Consent = NO_CONSENT) -> dict[str, Deviation]:
    """Returns the deviation of `count` random rows, by tap.

    Args:
        consent: whether the recorded model and tasks are opened, and where they are now.
    Raises:
        JobError: inputs are missing or no longer those of the run, or a row's token is not its prompt's.
    """
    config = recorded_config(open_folder(run_dir), consent)
    inputs = read_inputs(config)
    datasets = {tap.name: ActivationDataset(run_dir, tap.name) for tap in inputs.taps}
    first = next(iter(datasets.values()))
    chosen = np.sort(np.random.default_rng(seed).choice(len(first), min(count, len(first)), replace=False))
    prompts: dict[bytes, np.ndarray] = {}  # distinct ones, as several rows can be of one prompt
    places = []
    for token_ids, position in row_prompts(config, inputs.tasks.samples, inputs.tokenizer, first, chosen):
        prompts.setdefault(token_ids.tobytes(), token_ids)
        places.append((token_ids.tobytes(), position))
    name, computed = reference_taps(inputs, list(prompts.values())) if prompts else ("", [])
    truths = dict(zip(prompts, computed, strict=True))
    limit, deviations = limit_of(config.model.dtype, config.extract.dtype), {}
    for tap, dataset in datasets.items():
        truth = [truths[prompt][tap][position] for prompt, position in places]
        errors = relative_errors(dataset[chosen], np.stack(truth)) if truth else np.zeros(1)
        deviations[tap] = Deviation(name, len(chosen), float(np.median(errors)), float(errors.max()), limit)
    return deviations


def recorded_config(folder: Folder, consent: Consent) -> JobConfig:
    """Returns the configuration of the run, with one process and one device. JobError as `config_to_read`."""
    config = config_to_read(folder, consent, MODEL, TASKS)
    return replace(config, sharding=Sharding.replicated, mesh=MeshConfig(), pod=PodConfig())


def row_prompts(
    config: JobConfig, samples: Samples, tokenizer: Any, dataset: ActivationDataset, chosen: np.ndarray
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields for each row the token ids of its prompt and completion, and the position of the row's token in them."""
    rows, extract, today = dataset.rows(chosen), config.extract, template_date(dataset.folder)
    for i, batch in enumerate(dataset.batch_of(chosen).tolist()):
        key = (rows["task_id"][i], int(rows["sample_idx"][i]))
        numbers = batch_samples(batch, len(samples), config.extract.save_every_n_samples)
        by_key = {(sample.task_id, sample.sample_idx): sample for sample in (samples[n] for n in numbers)}
        position, token = int(rows["position"][i]), int(rows["token_id"][i])
        row = f"{dataset.folder.url}: row {chosen[i]} of batch {batch}"
        if key not in by_key:
            raise JobError(f"{row} is of task {key[0]}, sample {key[1]}, which is not in that batch")
        [prompt] = tokenize(tokenizer, [by_key[key]], extract.seq_len, extract.too_long, template_date=today)
        completed = {
            (text.task_id, text.sample_idx): text.token_ids for text in read_completions(dataset.folder, batch)
        }
        token_ids = np.concatenate([prompt.token_ids, np.array(completed.get(key, []), np.int32)])
        if position >= len(token_ids) or token_ids[position] != token:
            raise JobError(f"{row} has token {token} at position {position}, where its prompt has another")
        yield token_ids, position
