"""Extraction: the fields `extract.*` of the configuration."""

from dataclasses import dataclass, field
from enum import Enum

from pod_job.errors import JobError, at_least


class StoredDtype(Enum):
    """Dtype of the stored vectors; eight-bit vectors have a scale for every 64 columns of a row."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"
    int8 = "int8"
    float8 = "float8_e4m3fn"


class Positions(Enum):
    """Token positions that are stored.

    `last`: the last position of each forward pass, which with mode=generate is where each new token was chosen;
    `first`: its first position; `all`: every position of the prompt and of the new tokens; `generated`: the positions
    of the new tokens; `mean`: one vector per sample, the mean over all its positions; `every`: each position that
    `extract.every` divides; `sample`: a share `extract.sample` of all positions, chosen by `extract.sample_seed`.
    `every=8` and `sample=0.01` set both fields.
    """

    last = "last"
    first = "first"
    all = "all"
    generated = "generated"
    mean = "mean"
    every = "every"
    sample = "sample"

    @property
    def one_per_prompt(self) -> bool:
        """Whether a prompt has one vector at most, which the device selects."""
        return self in (Positions.last, Positions.first, Positions.mean)


class TooLong(Enum):
    """Treatment of a sample of more than `extract.seq_len` tokens.

    `refuse` the run; keep its `head`, the first tokens; keep its `tail`, the begin token and the last tokens; `split`
    it into consecutive windows, each with the begin token. `cut`, the last tokens without the begin token, is for runs
    that were begun with it.
    """

    refuse = "refuse"
    head = "head"
    tail = "tail"
    split = "split"
    cut = "cut"

    @property
    def drops(self) -> bool:
        """Whether tokens are dropped."""
        return self in (TooLong.head, TooLong.tail, TooLong.cut)


class Exclude(Enum):
    """Rows that are not stored: `special`, those of control tokens, which are not part of the text."""

    special = "special"


class RowColumn(Enum):
    """Further columns of the rows table.

    `logprob`: log probability (nats) that the model gives the row's token after those before it in its prompt, NaN for
    a prompt's first token; `entropy`: entropy (nats) of its distribution over the token after the row's; `role`: of the
    chat's message that the token is of, empty where the template writes it by itself.
    """

    logprob = "logprob"
    entropy = "entropy"
    role = "role"


class OnNonfinite(Enum):
    """Treatment of a vector with a NaN or an infinity: `fail` the run and name it, or store it and `flag` its row."""

    fail = "fail"
    flag = "flag"


@dataclass(kw_only=True)
class ExtractConfig:
    layers: list[int] | None = None  # layers whose resid_post is stored; null: all layers, or none if `taps` is set
    taps: list[str] = field(default_factory=list)  # further taps by name, wildcards allowed: "layer_*.attn_out"
    positions: Positions = Positions.last
    every: int | None = None  # with positions=every: each position that this number divides, counted from 0
    sample: float | None = None  # with positions=sample: the share of positions that is stored
    sample_seed: int = 0  # with positions=sample: another seed chooses other positions
    dtype: StoredDtype = StoredDtype.bfloat16  # dtype of the stored vectors
    save_every_n_samples: int = 512  # samples per batch, the unit that is committed and resumed
    seq_len: int = 1024  # tokens in a row: the longest prompt
    rows_per_device: int = 1  # rows of seq_len tokens per device in one step; 0, with mode=generate: as many as fit
    prompts_per_row: int = 64  # most prompts that are packed into one row
    too_long: TooLong = TooLong.refuse
    overlap: int = (
        0  # with too_long=split: tokens of the window before that a window repeats, without rows of their own
    )
    roles: list[str] = field(default_factory=list)  # of chats: rows only of tokens of these messages: [assistant]
    columns: list[RowColumn] = field(default_factory=list)  # further columns of the rows table
    exclude: list[Exclude] = field(default_factory=list)  # rows that are not stored
    on_nonfinite: OnNonfinite = OnNonfinite.fail

    def __post_init__(self) -> None:
        for name in ("save_every_n_samples", "seq_len", "prompts_per_row"):
            at_least(f"extract.{name}", getattr(self, name), 1)
        at_least("extract.rows_per_device", self.rows_per_device, 0)
        if self.layers is not None and len(set(self.layers)) != len(self.layers):
            raise JobError(f"extract.layers={self.layers} names a layer twice; name each once")
        self._check_positions()
        self._check_overlap()
        if "" in self.roles or len(set(self.roles)) != len(self.roles):
            raise JobError(f"extract.roles={self.roles} must name each role once, such as [assistant]")

    @property
    def token_facts(self) -> list[str]:
        """The columns that need the model's whole forward pass, in the order of the table."""
        return [column.value for column in (RowColumn.logprob, RowColumn.entropy) if column in self.columns]

    @property
    def wants_roles(self) -> bool:
        """Whether the rows table has the column `role`."""
        return bool(self.roles) or RowColumn.role in self.columns

    def _check_positions(self) -> None:
        for kind in (Positions.every, Positions.sample):
            value = getattr(self, kind.value)
            if self.positions is kind and value is None:
                example = "8" if kind is Positions.every else "0.01"
                raise JobError(
                    f"extract.positions={kind.value} needs a number; write extract.positions={kind.value}={example}"
                )
            if self.positions is not kind and value is not None:
                raise JobError(
                    f"extract.{kind.value}={value} does not go with extract.positions={self.positions.value}; "
                    f"write extract.positions={kind.value}={value}"
                )
        if self.every is not None:
            at_least("extract.every", self.every, 1)
        if self.sample is not None and not 0 < self.sample <= 1:
            raise JobError(f"extract.sample={self.sample} is not a share of positions; use one above 0, at most 1")
        if not 0 <= self.sample_seed < 2**32:
            raise JobError(f"extract.sample_seed={self.sample_seed} is out of range; use 0..{2**32 - 1}")
        if self.positions is Positions.mean and self.too_long is TooLong.split:
            raise JobError(
                "extract.positions=mean is one vector per sample, and extract.too_long=split makes several windows of "
                "a long one; use too_long=head or tail"
            )
        if self.positions is Positions.mean and self.columns:
            names = ",".join(column.value for column in self.columns)
            raise JobError(
                f"extract.columns=[{names}] are of single tokens; leave them out with extract.positions=mean"
            )

    def _check_overlap(self) -> None:
        at_least("extract.overlap", self.overlap, 0)
        if self.overlap and self.too_long is not TooLong.split:
            raise JobError(
                f"extract.overlap={self.overlap} is between windows; set extract.too_long=split, or no overlap"
            )
        if self.overlap >= self.seq_len:
            raise JobError(
                f"extract.overlap={self.overlap} leaves no new token in a window of extract.seq_len={self.seq_len}; "
                f"use at most {self.seq_len - 1}"
            )
