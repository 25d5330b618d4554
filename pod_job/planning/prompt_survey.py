"""Looks at prompts before anything is computed: how long they are, which cannot be used, and which give no row."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from typing import TypeVar

from msgspec import Struct, field

from pod_job.checkpoints.locate import find_model
from pod_job.config.extract import ExtractConfig, Positions
from pod_job.config.generate import Mode
from pod_job.config.schema import JobConfig
from pod_job.config.tasks import OnBroken
from pod_job.errors import JobError
from pod_job.planning.batches import assign_batches
from pod_job.planning.inputs import Inputs, Outline, check_tokenizer
from pod_job.planning.template_date import start_date
from pod_job.prompts.prompt import PromptRules, Tokenized
from pod_job.prompts.samples import ALL_UP_TO, without_broken
from pod_job.prompts.sources.estimate import DEVIATIONS
from pod_job.prompts.sources.sample import BrokenTask, Reason
from pod_job.prompts.tokenizer import Tokenizer, TokenizerFolder, has_vocabulary
from pod_job.prompts.tokens import refusal, usable_prompts

T = TypeVar("T")

log = logging.getLogger("pod_job")

CHUNK = 100
BATCHES = 8
"""Batches of a host's share that are looked at at least; more where they are small."""
MOST_TOKENS = 5_000_000
"""Tokens after which no more prompts of a sample are looked at: some seconds of work."""
NAMED = 20


class PromptSurvey(Struct):
    """Counts of the prompts looked at.

    Attributes:
        prompts: those that can be used.
        skipped: those that cannot, by Reason.
        tokens: tokens of all, and `longest` of one.
        without_rows: prompts of which every row is excluded.
        doubled_bos: texts that have the tokenizer's begin token themselves.
        dropped_tokens: tokens of samples longer than a row that no prompt has.
        samples: all that were looked at, and `all_looked_at` whether these are all of the run.
        squares: sum of the squares of the tokens of a sample.
    """

    prompts: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    longest: int = 0
    without_rows: int = 0
    doubled_bos: int = 0
    dropped_tokens: int = 0
    samples: int = 0
    all_looked_at: bool = True
    squares: float = 0.0

    @property
    def tokens_per_sample(self) -> float:
        """Tokens of a sample on average, of broken ones too."""
        return self.tokens / max(1, self.samples)

    def tokens_of(self, samples: int) -> float:
        """Returns the tokens that so many samples have at least, about."""
        return self.tokens_per_sample * samples * (1 - self.tokens_error)

    @property
    def tokens_error(self) -> float:
        """The part of `tokens_per_sample` by which the run's may differ, with 95% certainty."""
        if self.all_looked_at or not self.tokens:
            return 0.0
        mean = self.tokens_per_sample
        variance = max(0.0, self.squares / self.samples - mean**2)
        return min(1.0, DEVIATIONS * math.sqrt(variance / self.samples) / mean)

    @property
    def has_rows(self) -> bool:
        return self.prompts > self.without_rows

    def add(self, tokenized: Tokenized, config: JobConfig) -> int:
        """Counts prompts; returns the tokens of these."""
        for broken in tokenized.skipped:
            if sum(self.skipped.values()) < NAMED:
                log.warning("skipped: %s", broken)
            self.skipped[broken.reason.value] = self.skipped.get(broken.reason.value, 0) + 1
        lengths = [len(prompt.token_ids) for prompt in tokenized.prompts]
        self.prompts += len(lengths)
        of_sample = Counter[int]()
        for prompt, length in zip(tokenized.prompts, lengths, strict=True):
            of_sample[id(prompt.sample)] += length
        self.samples += len(of_sample) + len(tokenized.skipped)
        self.squares += sum(tokens**2 for tokens in of_sample.values())
        self.tokens += sum(lengths)
        self.longest = max([self.longest, *lengths])
        if config.mode is not Mode.generate:  # with mode=generate rows depend on what is generated
            self.without_rows += sum(not len(prompt.places) for prompt in tokenized.prompts)
        self.doubled_bos += sum(prompt.doubled_bos for prompt in tokenized.prompts)
        self.dropped_tokens += tokenized.dropped_tokens
        return sum(lengths)

    def __str__(self) -> str:
        notes = [f"{count} skipped as {reason}" for reason, count in sorted(self.skipped.items())]
        if self.without_rows:
            notes.append(f"{self.without_rows} without a row that is not excluded")
        if self.dropped_tokens:
            share = self.dropped_tokens / (self.tokens + self.dropped_tokens)
            notes.append(f"{share:.1%} of all tokens dropped, which are past extract.seq_len")
        if self.doubled_bos:
            notes.append(f"{self.doubled_bos} with a begin token of their own, which is kept once")
        mean = self.tokens / max(1, self.prompts)
        within = f" (+-{self.tokens_error:.0%})" if self.tokens_error else ""
        used = self.samples - sum(self.skipped.values())
        words = [] if self.prompts == used else [f"windows of {used:,} samples"]
        words += [] if self.all_looked_at else ["looked at"]
        counted = f"{self.prompts:,} {' '.join(words)}," if words else f"{self.prompts:,}"
        return "; ".join([f"{counted} of {mean:,.0f}{within} tokens on average, {self.longest:,} at most", *notes])


def survey_run(run: Inputs | Outline) -> PromptSurvey | None:
    """Looks at a sample of a run's prompts, as `survey_sample`; None for a model without weights or a tokenizer."""
    if isinstance(run, Inputs):
        return survey_sample(run, run.tokenizer, run.template_date)
    model = TokenizerFolder(find_model(run.config.model.path, run.config.model.revision).directory)
    if not has_vocabulary(model.path):
        return None
    check_tokenizer(run, model)
    return survey_sample(run, model.tokenizer, start_date())


def survey_sample(run: Outline, tokenizer: Tokenizer, template_date: date, seed: int = 0) -> PromptSurvey:
    """Looks at a sample of the run's prompts, at all of them where they are few.

    Raises:
        JobError: what a host would refuse: a prompt that cannot be used, or none with a row.
    """
    survey, looked_at, too_long = PromptSurvey(), run.tasks.samples.survey(seed), list[BrokenTask]()
    rules = PromptRules.of(run.config, run.arch.vocab, template_date)
    for start in range(0, len(looked_at), CHUNK):
        part, broken = without_broken(looked_at[start : start + CHUNK])
        tokenized = usable_prompts(tokenizer, part, replace(rules, on_broken=OnBroken.skip))
        skipped = [*broken, *tokenized.skipped]
        if rules.on_broken is OnBroken.refuse:
            too_long += refused_at_once(skipped)
            skipped = []
        survey.add(replace(tokenized, skipped=skipped), run.config)
        if survey.tokens > MOST_TOKENS:
            break
    survey.all_looked_at = survey.samples == len(run.tasks.samples)
    if too_long:
        longest, seen = max(broken.tokens for broken in too_long), survey.samples + len(too_long)
        of = f"of {seen:,} samples" if seen == len(run.tasks.samples) else f"of {seen:,} samples looked at"
        raise JobError(f"{refusal(too_long[0])}; {len(too_long):,} {of} are longer, the longest has {longest:,} tokens")
    check_rows(survey, run.config)
    return survey


def refused_at_once(broken: Sequence[BrokenTask]) -> Sequence[BrokenTask]:
    """Returns tasks that are too long, which are counted first. JobError for one that cannot be used otherwise."""
    for task in broken:
        if task.reason is not Reason.too_long:
            raise refusal(task)
    return broken


def survey_share(inputs: Inputs, host: int, hosts: int) -> list[int]:
    """Returns the tokens of some batches of a host's share; where the share is small, of all.

    So most of what is wrong is said before any weight is loaded. Of a large batch some prompts are looked at, and its
    tokens estimated. Where none of them gives a row, the whole run is looked at until one does: all hosts come to one
    conclusion. Of an indexed source all hosts look at the same prompts, where they cost little to reach.

    Raises:
        JobError: a prompt that cannot be used, or none of the whole run with a row.
    """
    if not inputs.tasks.whole:
        survey = survey_sample(inputs, inputs.tokenizer, inputs.template_date)
        tokens = [round(survey.tokens_of(len(inputs.tasks.samples)) / inputs.total_batches)]
    else:
        share = assign_batches(range(1, inputs.total_batches + 1), hosts)[host]
        survey, tokens = survey_batches(inputs, share)
    log.info("prompts that were looked at: %s", survey)
    if survey.without_rows:
        log.warning("%d prompts give no row: extract.exclude leaves all of them out", survey.without_rows)
    return tokens


def survey_batches(inputs: Inputs, share: Sequence[int]) -> tuple[PromptSurvey, list[int]]:
    """Looks at prompts of some batches of a share; returns the tokens of these batches. JobError as `survey_share`."""
    survey, tokens = PromptSurvey(), []
    batches = spread(share, max(BATCHES, ALL_UP_TO // inputs.config.extract.save_every_n_samples))
    for batch in batches:
        samples = inputs.samples(batch)
        chosen = spread(samples, -(-ALL_UP_TO // len(batches)))
        seen = sum(
            survey.add(inputs.tokenize(chosen[start : start + CHUNK]), inputs.config)
            for start in range(0, len(chosen), CHUNK)
        )
        tokens.append(round(seen * len(samples) / max(1, len(chosen))))
        if survey.tokens > MOST_TOKENS:
            break
    if not survey.has_rows:
        survey = survey_until_a_row(inputs)
    check_rows(survey, inputs.config)
    return survey, tokens


def spread(items: Sequence[T], most: int) -> list[T]:
    """Returns at most so many items, evenly spaced, the first and (of two or more) the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // max(1, most - 1)] for i in range(most)]


def survey_until_a_row(inputs: Inputs) -> PromptSurvey:
    """Looks at the run's batches, in order, until a prompt gives a row."""
    survey = PromptSurvey()
    for batch in range(1, inputs.total_batches + 1):
        survey.add(inputs.prompts(batch), inputs.config)
        if survey.has_rows:
            break
    return survey


def check_rows(survey: PromptSurvey, config: JobConfig) -> None:
    """Raises JobError where none of the prompts looked at gives a row."""
    extract = config.extract
    if survey.has_rows and config.tasks.concat:
        tokens = survey.tokens / survey.prompts * extract.save_every_n_samples
        if tokens < extract.seq_len:
            raise JobError(
                f"tasks.concat=true: a batch of {extract.save_every_n_samples} samples has {tokens:,.0f} tokens on "
                f"average, which fill no row of extract.seq_len={extract.seq_len}; raise extract.save_every_n_samples"
            )
    if survey.has_rows:
        return
    if survey.prompts:
        raise JobError(no_rows(survey.prompts, extract))
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(survey.skipped).most_common())
    raise JobError(
        f"tasks.path={config.tasks.path}: none of the prompts can be used ({reasons}); tasks.on_broken=refuse says "
        "what is wrong with the first"
    )


def no_rows(prompts: int, extract: ExtractConfig) -> str:
    """Returns why none of so many prompts gives a row."""
    if extract.roles and not extract.exclude:
        roles = ",".join(extract.roles)
        return f"extract.roles=[{roles}]: none of {prompts} chats has a message of that role; name others"
    wanted = "[" + ",".join(kind.value for kind in extract.exclude) + "]"
    if extract.positions in (Positions.last, Positions.first):
        which, fix = f"the {extract.positions.value} token", "use extract.exclude=[], or extract.positions=all"
    elif extract.positions in (Positions.every, Positions.sample):
        which, fix = "every token that extract.positions chooses", "use extract.positions=all"
    else:
        which, fix = "every token", "use extract.exclude=[]"
    return f"extract.exclude={wanted}: {which} of all {prompts} prompts is special; {fix}"
