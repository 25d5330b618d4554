"""Training of sparse autoencoders: the fields `train.*` of the configuration, and the SAEs that they describe."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from omegaconf import MISSING

from pod_job.errors import JobError, at_least

MOST_SAES = 256


class TrainSource(Enum):
    """Origin of the vectors to train on: `stream`, the forward pass on the same devices, of which nothing is stored;
    `run`, the finished run folder `train.run`."""

    stream = "stream"
    run = "run"


class ComputeDtype(Enum):
    """Dtype of the factors of matrix products of the SAEs, whose weights are float32 always."""

    bfloat16 = "bfloat16"
    float32 = "float32"


class Architecture(Enum):
    """Rule that makes the latents of an SAE sparse; modules of pod_job/training/architectures have these names."""

    relu = "relu"
    gated = "gated"
    topk = "topk"
    batch_topk = "batch_topk"
    jump_relu = "jump_relu"
    matryoshka = "matryoshka"

    @property
    def has_k(self) -> bool:
        """True for architectures that keep the k largest latents; a penalty makes the others sparse."""
        return self in (Architecture.topk, Architecture.batch_topk, Architecture.matryoshka)


@dataclass(kw_only=True)
class SaeGrid:
    """Entry of `train.saes`: fields with lists of values make an SAE for each combination of them."""

    tap: Any = MISSING  # the tap that is encoded: layer_12, or its layer's number
    target: Any = None  # of a transcoder: the tap that is decoded, layer_12.mlp_out for the tap layer_12.mlp_in
    crosscoder: bool = False  # true: one crosscoder over the list `tap`
    architecture: Any = "batch_topk"  # relu, gated, topk, batch_topk, jump_relu or matryoshka
    latents: Any = MISSING  # number of latents
    k: Any = None  # active latents of a row, of topk, batch_topk and matryoshka; of jump_relu the L0 to aim at
    sparsity: Any = None  # coefficient of the sparsity penalty, of relu, gated and jump_relu
    learning_rate: Any = 3e-4  # at its height; 3e-4 is SAELens' default
    seed: Any = 0  # seed of the initial weights
    skip: bool = False  # of a transcoder: with a linear skip connection
    groups: list[int] = field(default_factory=list)  # of matryoshka: latents of each group; empty: a 16th to a half
    width: int | None = None  # size of a vector that the taps must have; null: any

    def specs(self) -> Iterator["SaeSpec"]:
        """Yields the SAEs of the entry. JobError where a value is out of range or does not go with another."""
        values = {item.name: as_list(getattr(self, item.name)) for item in fields(self)}
        if self.crosscoder:
            values["tap"] = [values["tap"]]
        values["groups"] = [tuple(self.groups)]
        for combination in itertools.product(*values.values()):
            yield SaeSpec.of(**dict(zip(values, combination, strict=True)))


def as_list(value: Any) -> list[Any]:
    """Returns the values of a field, which has one or a list of them."""
    return list(value) if isinstance(value, list | tuple) else [value]


@dataclass(frozen=True)
class SaeSpec:
    """An SAE to train; `taps` are encoded, more than one of a crosscoder; `target` is decoded, if another."""

    architecture: Architecture
    taps: tuple[str, ...]
    target: str | None
    latents: int
    k: int | None
    sparsity: float | None
    learning_rate: float
    seed: int
    skip: bool
    groups: tuple[int, ...] = ()
    width: int | None = None

    @classmethod
    def of(cls, tap: Any, architecture: Any, crosscoder: bool, target: Any, **values: Any) -> "SaeSpec":
        """Returns the SAE of single values, as a configuration has them. JobError names the first that is wrong."""
        names = [member.value for member in Architecture]
        for name, least in (("latents", 1), ("seed", 0), ("k", 1)):
            if name != "k" or values["k"] is not None:
                whole(name, values[name], least)
        for name in ("sparsity", "learning_rate"):
            values[name] = positive(name, values[name])
        if architecture not in names:
            raise JobError(f"train.saes: architecture={architecture} is none; use {', '.join(names)}")
        taps = tuple(tap_name(name) for name in (tap if crosscoder else [tap]))
        if crosscoder and (target is not None or len(taps) < 2):
            raise JobError(f"train.saes: crosscoder=true with tap={list(taps)}; give two taps or more, and no target")
        spec = cls(Architecture(architecture), taps, None if target is None else tap_name(target), **values)
        spec.check()
        return spec

    def check(self) -> None:
        """Raises JobError for values out of range, or that do not go with the architecture."""
        kind = self.architecture
        if kind.has_k and self.k is None:
            raise JobError(f"train.saes: architecture={kind.value} needs k, the latents of a row; give k=32")
        if not (kind.has_k or kind is Architecture.jump_relu) and self.k is not None:
            raise JobError(f"train.saes: k={self.k} is not of architecture={kind.value}; give sparsity instead")
        if not kind.has_k and self.sparsity is None:
            raise JobError(
                f"train.saes: architecture={kind.value} needs sparsity, the coefficient of its penalty; sparsity=5 is "
                "usual of relu (Anthropic, April 2024: inputs of mean squared norm D)"
            )
        if kind.has_k and self.sparsity is not None:
            raise JobError(f"train.saes: sparsity={self.sparsity} is not of architecture={kind.value}; give k instead")
        if self.k is not None and self.k > self.latents:
            raise JobError(f"train.saes: k={self.k} is more than latents={self.latents}; use a smaller k")
        self._check_groups()
        if self.target in self.taps:
            raise JobError(
                f"train.saes: target={self.target} is the tap that is encoded, too; leave target out for an SAE, or "
                "give the tap to decode, such as layer_12.mlp_out for the tap layer_12.mlp_in"
            )
        if self.skip and self.target is None:
            raise JobError("train.saes: skip=true is of a transcoder; give target, the tap that is decoded")

    def _check_groups(self) -> None:
        if self.groups and self.architecture is not Architecture.matryoshka:
            raise JobError(f"train.saes: groups={list(self.groups)} are of architecture=matryoshka; leave them out")
        if self.groups and (min(self.groups) < 1 or sum(self.groups) != self.latents):
            raise JobError(
                f"train.saes: groups={list(self.groups)} add up to {sum(self.groups)}, not to latents={self.latents}; "
                "use numbers above 0 that do"
            )

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Latents of the groups of a matryoshka SAE: by default a 16th twice, an 8th, a quarter and half of all."""
        if self.architecture is not Architecture.matryoshka or self.groups:
            return self.groups
        sizes = [self.latents // part for part in (16, 8, 4, 2)]
        return tuple(size for size in (self.latents - sum(sizes), *sizes) if size)

    @property
    def inputs_and_target(self) -> tuple[str, ...]:
        """The taps that the SAE is trained on, each once."""
        return tuple(dict.fromkeys([*self.taps, *([] if self.target is None else [self.target])]))


def taps_of(specs: Sequence[SaeSpec]) -> list[str]:
    """Returns the taps that the SAEs are trained on, each once."""
    return list(dict.fromkeys(name for spec in specs for name in spec.inputs_and_target))


def tap_name(value: Any) -> str:
    """Returns the name of a tap, which may be given by its layer's number."""
    if isinstance(value, str) and value:
        return f"layer_{value}" if value.isdecimal() else value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return f"layer_{value}"
    raise JobError(f"train.saes: tap={value!r:.60} is no tap; use a name such as layer_12 or layer_12.mlp_in")


def whole(name: str, value: Any, least: int) -> None:
    """Raises JobError unless the field of an SAE is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise JobError(f"train.saes: {name}={value!r:.60} is not a whole number; use {least} or more")


def sae_names(specs: Sequence[SaeSpec]) -> list[str]:
    """Returns a name for each SAE, of the fields in which it may differ from the others: layer_12-topk-4096-k32."""

    def varies(attribute: str) -> bool:
        return len({getattr(spec, attribute) for spec in specs}) > 1

    names = []
    for spec in specs:
        parts = ["+".join(spec.taps), *([] if spec.target is None else ["to", spec.target])]
        parts += [spec.architecture.value, str(spec.latents), *([] if spec.k is None else [f"k{spec.k}"])]
        for name, letters in (("sparsity", "s"), ("learning_rate", "lr"), ("seed", "seed")):
            if varies(name):
                parts.append(f"{letters}{getattr(spec, name)}")
        names.append("-".join([*parts, *(["skip"] if spec.skip else [])]))
    return names


def positive(name: str, value: Any) -> float | None:
    """Returns the number of a field of an SAE, None where it has none. JobError where it is no number above 0."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise JobError(f"train.saes: {name}={value!r:.60} is not a number above 0; give one")
    return float(value)


@dataclass(kw_only=True)
class TrainConfig:
    source: TrainSource = TrainSource.stream
    run: str | None = None  # with source=run: the finished run folder, local or at gs://
    saes: list[SaeGrid] = field(default_factory=list)  # SAEs to train, all of one pass over the data
    tokens: int | None = None  # rows to train on, each the vectors of one token; or give steps
    steps: int | None = None  # training steps; with source=run null: as many as one pass over the run has
    epochs: int = 1  # passes over the data at most
    batch_rows: int = 4096  # rows of a training step
    buffer_rows: int = 131072  # rows of the shuffle buffer on the devices, of which steps draw theirs
    warmup_steps: int | None = None  # steps in which the learning rate rises from 0; null: 1000, a tenth of all at most
    decay_steps: int | None = None  # last steps, in which the learning rate falls to 0; null: a fifth of all
    sparsity_warmup_steps: int | None = None  # steps in which the sparsity penalty rises from 0; null: warmup_steps
    statistics_rows: int = 65536  # first rows, of which the mean, the scale and the geometric median are measured
    dtype: ComputeDtype = ComputeDtype.bfloat16
    seed: int = 0  # seed of the order of rows
    checkpoint_s: int = 60  # seconds between checkpoints
    checkpoint_steps: int | None = None  # steps between checkpoints, in place of checkpoint_s
    log_steps: int = 10  # steps between two points of the metrics

    def __post_init__(self) -> None:
        least = {
            "epochs": 1,
            "batch_rows": 1,
            "buffer_rows": 1,
            "statistics_rows": 2,
            "checkpoint_s": 1,
            "log_steps": 1,
        }
        least |= {"tokens": 1, "steps": 1, "warmup_steps": 0, "decay_steps": 0, "sparsity_warmup_steps": 0}
        for name, value in {**least, "checkpoint_steps": 1, "seed": 0}.items():
            if getattr(self, name) is not None:
                at_least(f"train.{name}", getattr(self, name), value)
        if self.tokens is not None and self.steps is not None:
            raise JobError(f"train.tokens={self.tokens} and train.steps={self.steps} are both set; leave one out")
        if self.source is TrainSource.stream and self.run is not None:
            raise JobError(f"train.run={self.run} is read with train.source=run; set it, or leave train.run out")
        if self.buffer_rows < self.batch_rows:
            raise JobError(
                f"train.buffer_rows={self.buffer_rows} holds no batch of train.batch_rows={self.batch_rows}; use "
                f"{16 * self.batch_rows} or more"
            )
        if self.tokens is not None and self.tokens < self.batch_rows:
            raise JobError(
                f"train.tokens={self.tokens} are less than one step of train.batch_rows={self.batch_rows}; raise tokens"
            )

    @property
    def specs(self) -> list[SaeSpec]:
        """The SAEs to train. JobError where there is none, too many, or the same one twice."""
        specs = [spec for grid in self.saes for spec in grid.specs()]
        if not specs:
            raise JobError("train.saes is empty; give train.saes=[{tap:layer_12,latents:4096,k:32}]")
        if len(specs) > MOST_SAES:
            raise JobError(f"train.saes describes {len(specs)} SAEs, a run trains {MOST_SAES} at most; train fewer")
        if twice := next((spec for spec in specs if specs.count(spec) > 1), None):
            raise JobError(f"train.saes describes {sae_names([twice])[0]} twice; change its seed, or leave one out")
        return specs

    def check_required(self) -> None:
        """Raises JobError where mode=train lacks a field."""
        _ = self.specs
        if self.source is TrainSource.run and self.run is None:
            raise JobError("train.run is not set, which train.source=run reads; give train.run=RUN_DIR")
        if self.source is TrainSource.stream and self.tokens is None and self.steps is None:
            raise JobError("train.tokens is not set, and a stream has no end of its own; give train.tokens=500000000")
