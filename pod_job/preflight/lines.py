"""The preflight's report as lines for people."""

from collections.abc import Iterator

from pod_job.preflight.forecast import Forecast
from pod_job.preflight.records import Change, Measured, PreflightReport, WholeRun
from pod_job.preflight.training_forecast import TrainingForecast
from pod_job.units import GB, GIB, MB, size_text

CREATE_S = 300.0
"""Seconds from asking for a pod to READY, where there is capacity: an assumption."""
NAME_WIDTH = 13
Line = tuple[str, str]
"""Name and text; the name is empty where a line continues the one above it."""


def lines(report: PreflightReport) -> Iterator[str]:
    """Yields the report line by line."""
    for name, text in named_lines(report):
        yield f"{name:<{NAME_WIDTH}}{text}"


def named_lines(report: PreflightReport) -> Iterator[Line]:
    step = report.step
    yield "pod", f"{report.pod}: {step.chips} chips, topology {step.topology}"
    yield "weights", report.weights.removeprefix("weights ")
    yield "compiled", f"{'earlier, ' if report.cached else ''}in {step.compile_s:.0f} s"
    for forecast in report.programs:
        yield from program_lines(forecast, report)
    if report.decode:
        yield "generation", f"{report.tokens_per_s:,.0f} new tokens/s on the pod, prefill included"
    if report.training:
        yield from training_lines(report.training)
    for change in report.changes:
        yield "change", change_text(change)
    if report.run:
        yield from run_lines(report.run, report.prices)
    if report.measured:
        yield from measured_lines(report.measured)


def program_lines(forecast: Forecast, report: PreflightReport) -> Iterator[Line]:
    kinds = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in forecast.hbm.items() if kind != "total")
    memory = f"memory {forecast.hbm['total'] / GIB:.2f} of {forecast.hbm_available / GIB:.2f} GiB per chip"
    yield forecast.program, memory + (f": {kinds}" if kinds else "")
    if not forecast.fits:
        yield "", "DOES NOT FIT"
        return
    causes = ", ".join(f"{cause} {1e3 * seconds:.1f}" for cause, seconds in forecast.seconds.items())
    step_ms, turns = 1e3 * forecast.step_s, forecast.tokens_in_turn
    per_token = f" for {turns} tokens of each row, {step_ms / turns:.2f} ms a token" if turns > 1 else ""
    yield "", f"time {step_ms:.1f} ms{per_token}, bound by {forecast.bottleneck} (ms: {causes})"
    if forecast.kernel_s:
        own = 1e3 * (forecast.seconds["compute"] - forecast.kernel_s)
        origin = f", by their {forecast.kernel_origin}" if forecast.kernel_origin else ""
        kernels = f"{1e3 * forecast.kernel_s:.1f} ms ours for kernels{origin}"
        yield "", f"compute {own:.1f} ms estimated by the compiler, {kernels}"
    mfu = f"MFU {forecast.mfu:.1%}, {forecast.compute_mfu:.1%} if only compute took time"
    yield "", f"speed {forecast.tokens_per_s:,.0f} tokens/s on the pod; {mfu}"
    for collective in forecast.collectives:
        yield "", f"collective {collective.count} x {collective.kind} of {collective.bytes:,} bytes"
    if "bucket" in forecast.seconds:
        yield "", results_text(forecast, report)


def training_lines(training: TrainingForecast) -> Iterator[Line]:
    parts = " + ".join(f"{part} {1e3 * seconds:.1f}" for part, seconds in training.seconds.items() if part != "reading")
    passes = f", fed by {training.forward_passes:.3g} forward passes" if training.forward_passes else ""
    alone = f", {training.of_forward_alone:.1%} of the forward pass alone" if training.of_forward_alone else ""
    yield "training", f"a step of {training.rows:,} rows{passes}: {1e3 * training.step_s:.1f} ms"
    yield "", f"(ms: {parts}, as if nothing overlapped)"
    if training.read_bytes:
        assumed = ", assumed" if training.read_assumed else ""
        rate = f"{training.read_bytes / MB:,.1f} MB by each host at {training.read_gb_s:.3g} GB/s{assumed}"
        yield "", f"reading {rate}: {1e3 * training.seconds['reading']:.1f} ms, beside the step"
    yield "", f"{training.tokens_per_s:,.0f} tokens/s on the pod{alone}, bound by {training.longest}"


def results_text(forecast: Forecast, report: PreflightReport) -> str:
    """Returns the size of one run's results and the rates at which they leave the chips and the hosts."""
    rates, size = report.rates, forecast.stored_bytes
    host_note, bucket_note = (", assumed" if name in rates.assumed else "" for name in ("host_gb_s", "bucket_gb_s"))
    bucket_note = f", {rates.bucket_origin}" if rates.bucket_origin else bucket_note
    host = f"{size / forecast.chips / MB:,.1f} MB from each chip at {rates.host_gb_s:g} GB/s{host_note}"
    bucket = f"{size / report.hosts / MB:,.1f} MB from each host at {rates.bucket_gb_s:.3g} GB/s{bucket_note}"
    return f"results {size / GB:.2f} GB from all chips: {host}; {bucket}"


def change_text(change: Change) -> str:
    if not change.fits:
        return f"{change.change}: does not fit either"
    return f"{change.change}: fits, {change.tokens_per_s:,.0f} tokens/s, bound by {change.bottleneck}"


def run_lines(run: WholeRun, prices: str) -> Iterator[Line]:
    if not run.bytes and not run.samples:
        yield "run", f"{run.steps:,} steps, {run.rows:,} rows; no vector is stored"
        yield from cost_lines(run, prices)
        return
    new = f" and at most {run.new_tokens:,} new ones" if run.new_tokens else ""
    yield "run", f"{run.samples:,} samples, about {run.tokens:,} tokens{new}, {run.rows:,} rows per tap,"
    yield "", f"{size_text(run.bytes)} in all; {run.steps:,} steps"
    yield from cost_lines(run, prices)
    yield "storage", run.storage


def cost_lines(run: WholeRun, prices: str) -> Iterator[Line]:
    """Yields what time the pod is paid for, and its price."""
    at_once = f" with {run.slices} slices at work" if run.slices > 1 else ""
    if (start := run.start) is not None:
        parts = f"{start.prepare_s:.0f} s for the hosts' environment (assumed), {start.weights_s:.0f} s for weights"
        yield "time", f"{start.seconds / 60:.1f} minutes to start: {parts}, {start.compile_s:.0f} s to compile;"
        yield (
            "",
            f"then {run.hours:.3f} hours of steps{at_once}. A pod is paid from READY on, with capacity after about",
        )
        yield "", f"{CREATE_S / 60:.0f} minutes (assumed)"
    yield "cost", run.cost
    yield "", f"({prices})"


def measured_lines(measured: Measured) -> Iterator[Line]:
    hosts = f"{measured.hosts} hosts of {measured.device or 'unknown devices'}, {measured.steps:,} steps"
    yield "measured", f"{measured.run_dir}: {hosts}"
    for name, times in (("step", measured.step), ("token", measured.token)):
        if times:
            off = f"{times.ratio - 1:+.0%}" if times.ratio < 10 else f"{times.ratio:,.0f} times that"
            yield "", f"{name} {1e3 * times.measured_s:.2f} ms, predicted {1e3 * times.predicted_s:.2f}: {off}"
    for difference in measured.differs:
        yield "", f"not the same job: {difference}"
