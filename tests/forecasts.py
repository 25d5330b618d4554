"""Forecasts for tests that need no compiler."""

from typing import Any

from pod_job.config.generate import Mode
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.records import Change, PreflightReport, Rates


def step_values(**changes: Any) -> dict[str, Any]:
    """Returns the fields of the forecast of a small step that fits, with `changes`."""
    sizes = {"chips": 4, "fits": True, "compile_s": 1.0, "hbm": {"total": 1 << 30}, "hbm_available": 63 << 28}
    return {"program": "step", "topology": "v5e:2x2", **sizes, **changes}


def step_forecast(**changes: Any) -> Forecast:
    return Forecast(**step_values(**changes))


def preflight_report(step: dict[str, Any], decode: dict[str, Any] | None, *changes: Change) -> PreflightReport:
    """Returns the report on a job of these programs."""
    return PreflightReport(
        model="m",
        mode=Mode.generate if decode else Mode.prefill,
        pod="v5litepod-4",
        hosts=1,
        weights="",
        fits=step["fits"],
        cached=False,
        step=Forecast(**step),
        decode=Forecast(**decode) if decode else None,
        tokens_per_s=0.0,
        changes=list(changes),
        run=None,
        measured=None,
        rates=Rates(host_gb_s=1.0, bucket_gb_s=1.0, assumed=[]),
        prices="",
    )
