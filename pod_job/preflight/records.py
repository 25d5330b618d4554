"""The preflight's report: every number that `pod-job preflight --json` prints. No jax."""

import msgspec

from pod_job.config.generate import Mode
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.training_forecast import TrainingForecast
from pod_job.units import GB


class Change(Forecast, frozen=True, kw_only=True):
    """Overrides that may help, with the forecast of the job that they make."""

    change: str


STORAGE_USD_GB_MONTH = 0.020
"""Standard storage in us-central1; other regions and classes differ."""


class StartTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from a READY pod, from which on it is paid, to its first step.

    Attributes:
        prepare_s: making the environment on the hosts, assumed.
        weights_s: reading the weights, at the bucket's rate.
        compile_s: as compiling took here; a job whose program is in its compile cache has none.
    """

    prepare_s: float
    weights_s: float
    compile_s: float

    @property
    def seconds(self) -> float:
        return self.prepare_s + self.weights_s + self.compile_s


class WholeRun(msgspec.Struct, frozen=True, kw_only=True):
    """Size, time and cost of the whole run.

    Attributes:
        samples: 0 with mode=train, which ends after its steps.
        tokens: of prompts; with mode=train the rows of all steps.
        new_tokens: tokens generated after them if every completion is as long as it may be.
        rows: vectors per tap.
        bytes: vectors of all taps.
        hours: of all steps, with all `slices` at work; `start` are those before them for which the pod is paid too.
        usd_list, usd_spot: dollars of both at the list price and at the price of spot; None where that is not known.
        zone: of which the prices are; empty: of the region that PRICES_FROM names.
    """

    samples: int
    tokens: int
    new_tokens: int
    rows: int
    bytes: int
    steps: int
    hours: float
    usd_list: float | None = None
    usd_spot: float | None = None
    slices: int = 1
    start: StartTimes | None = None
    zone: str = ""

    @property
    def cost(self) -> str:
        """The cost in words."""
        if self.usd_list is None or self.usd_spot is None:
            return "unknown, the price of this chip is not public; give cloud.price_per_chip_hour"
        where = f" in {self.zone}" if self.zone else ""
        return f"${self.usd_list:,.2f} at list price, about ${self.usd_spot:,.2f} on spot{where}"

    @property
    def storage(self) -> str:
        """The cost of keeping the vectors in a bucket, in words."""
        month = self.bytes / GB * STORAGE_USD_GB_MONTH
        return f"${month:,.2f} a month in a bucket, at ${STORAGE_USD_GB_MONTH} per GB (Standard in US regions, assumed)"


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A predicted time and the measured one, in seconds. `ratio` is measured over predicted: above 1, slower."""

    predicted_s: float
    measured_s: float
    ratio: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Times of a run that its hosts measured in their last attempt, against the forecasts.

    Attributes:
        device: kind of device that the run computed on; empty where no host recorded it.
        step: of a step, or of a prefill with mode=generate.
        token: of one more token of every row, with mode=generate.
        differs: fields in which the run was started with another value.
    """

    run_dir: str
    attempt: str
    hosts: int
    device: str
    steps: int
    step: Comparison
    token: Comparison | None
    differs: list[str]


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """GB/s from a chip to its host and from a host to the bucket.

    Attributes:
        assumed: those that the configuration leaves open and nobody has measured.
        bucket_origin: who has measured the bucket's rate and when; "" where it was not measured.
    """

    host_gb_s: float
    bucket_gb_s: float
    assumed: list[str]
    bucket_origin: str = ""


class PreflightReport(msgspec.Struct, frozen=True, kw_only=True):
    """Memory, time and cost of a job on its pod.

    Attributes:
        pod: accelerator type, such as v5litepod-64.
        weights: how they are split over the mesh, in words.
        fits: whether every program fits.
        cached: whether the forecasts are of an earlier compilation.
        step: the program of a step; with mode=generate the prefill; with mode=train the forward pass, or where rows
            are read from a run the trainer.
        decode: with mode=generate, the call that adds `tokens_in_turn` tokens to every row.
        trainer: with mode=train and a forward pass, the trainer's step; its memory is that of both.
        training: with mode=train, how the programs go together.
        tokens_per_s: prompt tokens that the pod computes; with mode=generate new tokens, prefill included; with
            mode=train rows that are trained on.
        changes: what to change where a program does not fit, or waits for its results to leave; in the order tried.
        run: None where a program does not fit.
        prices: where the prices are from.
    """

    model: str
    mode: Mode
    pod: str
    hosts: int
    weights: str
    fits: bool
    cached: bool
    step: Forecast
    decode: Forecast | None
    tokens_per_s: float
    changes: list[Change]
    run: WholeRun | None
    measured: Measured | None
    rates: Rates
    prices: str
    trainer: Forecast | None = None
    training: TrainingForecast | None = None

    @property
    def programs(self) -> list[Forecast]:
        """One, or two with mode=generate, and with mode=train where there is a forward pass."""
        return [program for program in (self.step, self.decode, self.trainer) if program is not None]

    @property
    def bottleneck(self) -> str:
        """Cause or part that takes the longest."""
        return self.programs[-1].bottleneck if self.training is None else self.training.longest
