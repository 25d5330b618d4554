"""Prompt: the tokens of one forward pass, which of them get a row, and where in a document they come from. No jax."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Shaped

from pod_job.config.extract import ExtractConfig, Positions, TooLong
from pod_job.config.schema import JobConfig
from pod_job.config.tasks import OnBroken, Separator
from pod_job.prompts.chat import ChatSettings
from pod_job.prompts.sources.sample import BrokenTask, Sample

PROMPT_COLUMNS = ("window", "window_position", "role")
"""Columns of the rows table that only some runs have and that follow from prompts alone."""


@dataclass(frozen=True)
class Origin:
    """Place of a prompt's tokens in their document.

    Attributes:
        window: number of the prompt among those of its sample, from 0.
        positions: of each token, its place in the document as tokenized whole; 0 is the begin token, where it has one.
        repeated: places in the prompt of tokens that an earlier window has too, as context.
        samples: with tasks.concat=true, the samples that the prompt has tokens of, and `sample_of` which of them each
            token is of.
    """

    window: int
    positions: Int32[np.ndarray, " length"]
    repeated: range = range(0)
    samples: tuple[Sample, ...] = ()
    sample_of: Int32[np.ndarray, " length"] | None = None


@dataclass(frozen=True)
class Prompt:
    """Tokens that one forward pass reads.

    Attributes:
        dropped: tokens of the sample that no prompt has.
        doubled_bos: the text had the tokenizer's begin (or end) token itself, and keeps one of the two.
        special: True where a token is no part of the text; None: nowhere.
        rows: places of the tokens that have a row, ascending, or with positions=mean of those that the mean is of;
            None: all.
        origin: None: the tokens are the sample's first ones.
        roles: of the message that each token is of, "" of none; None: not asked for.
    """

    sample: Sample
    token_ids: Int32[np.ndarray, " length"]
    dropped: int = 0
    doubled_bos: bool = False
    special: Bool[np.ndarray, " length"] | None = None
    rows: Int32[np.ndarray, " rows"] | None = None
    origin: Origin | None = None
    roles: Shaped[np.ndarray, " length"] | None = None

    @property
    def places(self) -> Int32[np.ndarray, " rows"]:
        """Places of the tokens that have a row."""
        return np.arange(len(self.token_ids), dtype=np.int32) if self.rows is None else self.rows

    @property
    def window(self) -> int:
        return 0 if self.origin is None else self.origin.window

    @property
    def special_marks(self) -> Bool[np.ndarray, " length"]:
        return np.zeros(len(self.token_ids), bool) if self.special is None else self.special

    @property
    def positions(self) -> Int32[np.ndarray, " length"]:
        """Places of the tokens in their document."""
        return np.arange(len(self.token_ids), dtype=np.int32) if self.origin is None else self.origin.positions


@dataclass(frozen=True)
class PromptRules:
    """Rules by which samples become prompts, the same on every host and at every start of a run.

    Attributes:
        seq_len: most tokens of a prompt; `too_long` tells what becomes of a longer one.
        vocab: rows of the model's embedding, which every id must be one of; None: not known.
        on_broken: whether a prompt that cannot be used is refused or left out.
        template_date: the day that a chat template takes for today; None: the present one.
        extract: which tokens have rows, and the overlap of windows.
        system, template_values: as in ChatSettings.
        concat: the separator of documents that are joined into full rows; None: they are not joined.
    """

    seq_len: int
    too_long: TooLong
    vocab: int | None = None
    on_broken: OnBroken = OnBroken.refuse
    template_date: date | None = None
    extract: ExtractConfig = field(default_factory=lambda: ExtractConfig(positions=Positions.all))
    system: str | None = None
    template_values: Mapping[str, Any] = field(default_factory=dict)
    concat: Separator | None = None

    @staticmethod
    def of(config: JobConfig, vocab: int | None = None, template_date: date | None = None) -> "PromptRules":
        extract, tasks = config.extract, config.tasks
        return PromptRules(
            extract.seq_len,
            extract.too_long,
            vocab,
            tasks.on_broken,
            template_date,
            extract,
            tasks.system,
            tasks.template_values,
            tasks.separator if tasks.concat else None,
        )

    @property
    def chat_settings(self) -> ChatSettings:
        return ChatSettings(self.template_date, self.system, self.template_values, self.extract.wants_roles)

    @property
    def drops(self) -> bool:
        """Whether tokens of samples may be in no prompt."""
        return self.too_long.drops or self.concat is not None

    @property
    def windowed(self) -> bool:
        """Whether a token's place in its prompt can differ from that in its document."""
        return self.too_long in (TooLong.tail, TooLong.split) or self.concat is not None

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of PROMPT_COLUMNS that the rows table has."""
        windows, role = PROMPT_COLUMNS[:2], PROMPT_COLUMNS[2:]
        return (windows if self.windowed else ()) + (role if self.extract.wants_roles else ())


@dataclass(frozen=True)
class ConcatRules:
    """How documents are joined: the begin token of each row and the separator between documents, where there are."""

    kind: Separator
    begin: int | None
    separator: int | None
    extract: ExtractConfig


@dataclass(frozen=True)
class Tokenized:
    """Prompts, in the order of their samples, and what is wrong with the samples that were left out.

    Attributes:
        samples: how many samples the prompts are of.
        drops, columns: those of the rules.
        concat: the prompts are documents, still to be joined; None: they are not, or no longer.
        remainder: tokens of documents that did not fill a row.
    """

    prompts: list[Prompt]
    skipped: list[BrokenTask]
    samples: int = 0
    drops: bool = False
    columns: tuple[str, ...] = ()
    concat: ConcatRules | None = None
    remainder: int = 0

    @property
    def dropped_tokens(self) -> int:
        """Tokens of the samples that no prompt has."""
        return self.remainder + sum(prompt.dropped for prompt in self.prompts)
