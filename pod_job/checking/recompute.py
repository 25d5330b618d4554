"""Computes rows of a run again, from the recorded prompts with the recorded model, and compares them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from pod_job.checking.consent import MODEL, NO_CONSENT, TASKS, Consent, config_to_read
from pod_job.checking.limits import RowRounding, excess, limits, mean_row, stored_rounding, summary
from pod_job.checking.reference import find_reference
from pod_job.config.extract import Positions
from pod_job.config.schema import JobConfig, MeshConfig, PodConfig, Sharding
from pod_job.errors import JobError
from pod_job.formats.relative_errors import tap_errors
from pod_job.formats.rows_table import COMPUTED
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.planning.batches import batch_samples
from pod_job.planning.inputs import Inputs, read_inputs
from pod_job.planning.template_date import template_date
from pod_job.prompts.concat import joined
from pod_job.prompts.prompt import PromptRules
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tasks import Samples
from pod_job.prompts.tokens import usable_prompts
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder.completions import read_completions
from pod_job.run_folder.identity import find_run, read_run
from pod_job.run_folder.parity import TapErrors, read_all_parity
from pod_job.run_folder.start import read_start
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder


@dataclass(frozen=True)
class Deviation:
    """Errors of one tap's or column's rows against the float32 reference; rounding explains at most `limit`.

    `median_limit`: for their median, where there is one; reports of older versions have none. `unused_limit`:
    `parity.limit` of the run's own configuration, which does not count here.
    """

    reference: str
    rows: int
    median: float
    largest: float
    limit: float
    median_limit: float | None = None
    unused_limit: float | None = None
    usual: float | None = None

    @property
    def too_far(self) -> bool:
        limit = TapErrors(np.inf if self.median_limit is None else self.median_limit, self.limit)
        return self.rows > 0 and excess(TapErrors(self.median, self.largest, self.usual), limit) > 1

    def __str__(self) -> str:
        unused = self.unused_limit
        note = "" if unused is None else f"; parity.limit={unused:g} of the run is not used, add it to use it"
        return (
            f"{self.rows} rows computed again: error {self.median:.2g} (median), "
            f"{self.largest:.2g} (largest), limit {self.limit:.2g}; {self.reference}{note}"
        )


def recompute(run_dir: str | Path, count: int, seed: int = 0, consent: Consent = NO_CONSENT) -> dict[str, Deviation]:
    """Returns the deviation of `count` random rows, by tap, and by column of those that the model computes.

    Args:
        consent: whether the recorded model and tasks are opened, and where they are now; its `parity.limit`, where
            there is one, is the limit. The run's own is not: whoever wrote the run chose it.
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
    for token_ids, of_row in row_prompts(config, inputs.tasks.samples, inputs.tokenizer, first, chosen):
        prompts.setdefault(token_ids.tobytes(), token_ids)
        places.append((token_ids.tobytes(), of_row))
    if not places:
        return {tap: Deviation("", 0, 0.0, 0.0, 0.0) for tap in datasets}
    longest = {prompt: max(int(at[-1]) for key, at in places if key == prompt) + 1 for prompt in prompts}
    reference = find_reference(inputs, [prompts[prompt][: longest[prompt]] for prompt in prompts])
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    at = [reference.rows(numbers[prompt], range(1)).start + of_row for prompt, of_row in places]
    recorded, deviations = recorded_limits(inputs), {}
    unused = limit_on_record(inputs.folder) if config.parity.limit is None else None
    stored = {tap: dataset[chosen] for tap, dataset in datasets.items()}
    stored |= {name: first.rows(chosen)[name][:, None] for name in config.extract.token_facts}
    for tap, vectors in stored.items():
        pairs = [(reference.truths[tap][rows], reference.errors[tap][rows]) for rows in at]
        means = pairs if tap in COMPUTED else [mean_row(*pair) for pair in pairs]
        truth, computed = (np.concatenate(values) for values in zip(*means, strict=True))
        rounding = stored_rounding(truth, DTYPE_OF[config.extract.dtype.value], tap)
        limit = wider(limits(RowRounding(truth, computed, rounding, tap)), recorded.get(tap))
        if config.parity.limit is not None:
            limit = TapErrors(config.parity.limit, config.parity.limit)
        errors = summary(tap_errors(tap, vectors, truth))
        deviations[tap] = Deviation(
            *(reference.name, len(chosen), errors.median, errors.largest, limit.largest, limit.median, unused),
            usual=errors.usual if config.parity.limit is None else None,
        )
    return deviations


def recorded_config(folder: Folder, consent: Consent) -> JobConfig:
    """Returns the configuration of the run, with one process and one device. JobError as `config_to_read`."""
    config = config_to_read(folder, consent, MODEL, TASKS)
    return replace(config, sharding=Sharding.replicated, mesh=MeshConfig(), pod=PodConfig())


def limit_on_record(folder: Folder) -> float | None:
    """Returns `parity.limit` of the run's configuration; None where it set none."""
    recorded = read_start(folder) or read_run(folder).config or {}
    section = recorded.get("parity")
    limit = section.get("limit") if isinstance(section, dict) else None
    return float(limit) if isinstance(limit, int | float) and not isinstance(limit, bool) else None


def recorded_limits(inputs: Inputs) -> dict[str, TapErrors]:
    """Returns the largest limits, by tap, that the run's starts had to keep; none of old runs, or without the gate."""
    found: dict[str, TapErrors] = {}
    for record in read_all_parity(inputs.folder):
        for tap, limit in (record.limits or {}).items() if record.passed else ():
            earlier = found.get(tap, limit)
            found[tap] = TapErrors(max(limit.median, earlier.median), max(limit.largest, earlier.largest))
    return found


def wider(limit: TapErrors, recorded: TapErrors | None) -> TapErrors:
    """Returns a measured limit, up to doubled where the run had to keep a larger one: random rows can be rounded less.

    No further, as the record is whatever the run's writer put there.
    """
    if recorded is None:
        return limit
    median, largest = (
        max(value, min(own, 2 * value))
        for value, own in ((limit.median, recorded.median), (limit.largest, recorded.largest))
    )
    return TapErrors(median=median, largest=largest)


def row_prompts(
    config: JobConfig, samples: Samples, tokenizer: Any, dataset: ActivationDataset, chosen: np.ndarray
) -> Iterator[tuple[Int32[np.ndarray, "_"], Int32[np.ndarray, "_"]]]:
    """Yields for each row the token ids of its prompt and completion, and the row's places in them.

    A row has one place, or all those that it is the mean of.
    """
    rows, rules = dataset.rows(chosen), PromptRules.of(config, template_date=template_date(find_run(dataset.folder)))
    for i, batch in enumerate(dataset.batch_of(chosen).tolist()):
        key = (rows["task_id"][i], int(rows["sample_idx"][i]))
        numbers = batch_samples(batch, len(samples), config.extract.save_every_n_samples)
        read = [sample for sample in samples.load(numbers) if isinstance(sample, Sample)]
        by_key = {(sample.task_id, sample.sample_idx): sample for sample in read}
        row = f"{dataset.folder.url}: row {chosen[i]} of batch {batch}"
        if key not in by_key:
            raise JobError(f"{row} is of task {key[0]}, sample {key[1]}, which is not in that batch")
        together = read if config.tasks.concat else [by_key[key]]
        tokenized = joined([usable_prompts(tokenizer, together, rules)])
        prompts = {prompt.window: prompt for prompt in tokenized.prompts}
        completed = {
            (text.task_id, text.sample_idx): text.token_ids for text in read_completions(dataset.folder, batch)
        }
        prompt = prompts.get(int(rows["window"][i]) if "window" in rows else 0)
        if prompt is None:
            raise JobError(f"{row} is of window {rows['window'][i]}, which its sample does not have")
        token_ids = np.concatenate([prompt.token_ids, np.array(completed.get(key, []), np.int32)])
        if config.extract.positions is Positions.mean:
            yield token_ids, prompt.places
            continue
        place, token = int(rows["window_position" if "window_position" in rows else "position"][i]), rows["token_id"][i]
        if not 0 <= place < len(token_ids) or token_ids[place] != token:
            raise JobError(f"{row} has token {token} at position {place}, where its prompt has another")
        yield token_ids, np.array([place], np.int32)
