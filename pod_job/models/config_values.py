"""Typed values of a configuration by key: the value, or one line that names file, key, value and rule."""

from collections.abc import Mapping
from typing import Any

from pod_job.errors import JobError


def required(config: Mapping[str, Any], key: str, source: str) -> Any:
    """Returns the value of `key`; JobError where it is missing or null. `source` names the configuration."""
    if config.get(key) is None:
        raise JobError(f"{source}: {key} is missing; it is needed to size the model")
    return config[key]


def positive(config: Mapping[str, Any], key: str, source: str, default: int | None = None) -> int:
    """Returns a whole number of at least 1, `default` where the key is missing or null; else JobError."""
    value = config.get(key) if default is not None else required(config, key, source)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise JobError(f"{source}: {key}={value!r} is not a positive whole number")
    return value


def number(config: Mapping[str, Any], key: str, source: str, default: float | int | None = None) -> float:
    """Returns a number above 0, `default` where the key is missing or null; else JobError."""
    value = config.get(key) if default is not None else required(config, key, source)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise JobError(f"{source}: {key}={value!r} is not a positive number")
    return float(value)


def optional_number(config: Mapping[str, Any], key: str, source: str) -> float | None:
    """Returns a number above 0, None where the key is missing or null; else JobError."""
    return None if config.get(key) is None else number(config, key, source)
