"""TrainingForecast: the cost of training on the pod, from the forecasts of its forward pass and its trainer. No jax."""

import math

import msgspec
from msgspec.structs import force_setattr, replace

from pod_job.preflight.forecast import Forecast
from pod_job.units import GB

SAES, OPTIMIZER, BUFFER, ROWS = "SAEs", "optimizer", "shuffle buffer", "rows and counters"
"""Kinds of memory that the trainer's state and input take."""
VECTORS_HELD = 3
"""Copies of the vectors of a step: as the forward pass gives them, as batches, and those that running steps hold."""
OVERLAPPING = ("compute", "hbm", "network")


class TrainingForecast(msgspec.Struct, frozen=True, kw_only=True):
    """Time of a training step on the pod, its parts in turn, but for reading.

    Attributes:
        rows: of a step.
        forward_passes: that give the rows of one step, below 1 where one pass gives those of several steps; 0 where
            rows are read from a run.
        seconds: of a step by part. `forward`: the passes that feed it; `trainer`: computing; `network`: the trainer's
            collectives that do not go on beside a product; `reading`: rows from the run, ahead of the step and beside
            it.
        read_bytes: that each host reads for a step; 0 with a forward pass.
        read_gb_s: rate at which each host is taken to read.
        read_assumed: whether nobody has given or measured that rate.

    Derived, so that the JSON has them:
        step_s: sum of `seconds`, or the time of reading where that is longer.
        longest: part that takes the longest.
        tokens_per_s: `rows` over `step_s`.
        of_forward_alone: that speed as a share of the speed of the forward pass alone; 0 without one.
    """

    rows: int
    forward_passes: float
    seconds: dict[str, float]
    read_bytes: int = 0
    read_gb_s: float = 0.0
    read_assumed: bool = False
    step_s: float = 0.0
    longest: str = ""
    tokens_per_s: float = 0.0
    of_forward_alone: float = 0.0

    def __post_init__(self) -> None:
        reading_s = self.seconds.get("reading", 0.0)
        computing_s = sum(seconds for part, seconds in self.seconds.items() if part != "reading")
        step_s = max(computing_s, reading_s)
        parts = {"reading": reading_s} if reading_s > computing_s else self.seconds
        force_setattr(self, "step_s", step_s)
        force_setattr(self, "longest", max(parts, key=lambda part: parts[part], default="memory"))
        force_setattr(self, "tokens_per_s", self.rows / step_s if step_s else 0.0)
        force_setattr(self, "of_forward_alone", self.seconds.get("forward", 0.0) / step_s if step_s else 0.0)


def training_forecast(trainer: Forecast, forward: Forecast | None) -> TrainingForecast:
    """Returns the time of a step; `forward` is the pass that feeds it, None where rows are read, at no time here."""
    seconds, passes = {}, 0.0
    if forward is not None:
        passes = trainer.tokens / forward.tokens
        # Where the vectors go: to the trainer, also where the pass is that of an extraction.
        seconds["forward"] = passes * max(forward.seconds[cause] for cause in OVERLAPPING)
    seconds["trainer"] = max(trainer.seconds["compute"], trainer.seconds["hbm"])
    seconds["network"] = trainer.seconds["network"]
    return TrainingForecast(rows=trainer.tokens, forward_passes=passes, seconds=seconds)


def with_reading(training: TrainingForecast, read_bytes: int, read_gb_s: float, assumed: bool) -> TrainingForecast:
    """Returns the forecast where each host reads so many bytes for a step."""
    seconds = training.seconds | {"reading": read_bytes / (read_gb_s * GB)}
    return replace(training, seconds=seconds, read_bytes=read_bytes, read_gb_s=read_gb_s, read_assumed=assumed)


def beside_model(trainer: Forecast, forward: Forecast) -> Forecast:
    """Returns the trainer's forecast with the memory of both programs, of which one runs at a time."""
    if len(trainer.hbm) == 1 or len(forward.hbm) == 1:  # one was refused, with its total alone
        return trainer
    turns = max(1, math.ceil(trainer.tokens / forward.tokens))
    hbm = {
        "model": forward.hbm["weights and inputs"],
        "vectors": VECTORS_HELD * turns * (forward.hbm["results"] // 2),
        **trainer.hbm,
        "temporaries": max(forward.hbm["temporaries"], trainer.hbm["temporaries"]),
        "program": forward.hbm["program"] + trainer.hbm["program"],
    }
    hbm["total"] = sum(size for kind, size in hbm.items() if kind != "total")
    return replace(trainer, hbm=hbm, fits=hbm["total"] <= trainer.hbm_available)


def smaller_buffer(trainer: Forecast, buffer_rows: int) -> int | None:
    """Returns the rows of a shuffle buffer with which the programs fit, in whole batches; None where none does."""
    buffer = trainer.hbm.get(BUFFER, 0)
    left = trainer.hbm_available - (trainer.hbm["total"] - buffer)
    fits = left * buffer_rows // buffer // trainer.tokens * trainer.tokens if buffer else 0
    return fits if fits >= trainer.tokens else None
