"""Forecasts for tests that need no compiler."""

from typing import Any

from pod_job.preflight.forecast import Forecast


def step_values(**changes: Any) -> dict[str, Any]:
    """Returns the fields of the forecast of a small step that fits, with `changes`."""
    sizes = {"chips": 4, "fits": True, "compile_s": 1.0, "hbm": {"total": 1 << 30}, "hbm_available": 63 << 28}
    return {"program": "step", "topology": "v5e:2x2", **sizes, **changes}


def step_forecast(**changes: Any) -> Forecast:
    return Forecast(**step_values(**changes))
