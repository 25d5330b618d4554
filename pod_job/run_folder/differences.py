"""Differences of two records, by the path of the field that differs."""

import json
from typing import Any

Difference = tuple[str, Any, Any]
"""Key path, and both JSON values; None for what is absent."""


def differences(a: Any, b: Any, path: str = "") -> list[Difference]:
    """Returns every key path whose JSON values differ, with both; lists of records are compared item by item."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            difference
            for key in sorted(a.keys() | b.keys())
            for difference in differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        ]
    if is_records(a) and is_records(b) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [difference for i, pair in pairs for difference in differences(*pair, f"{path}[{i}]")]
    return [] if a == b and type(a) is type(b) else [(path, a, b)]


def is_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def shown(value: Any) -> str:
    """Returns a value of an identity as one line for people."""
    return value if isinstance(value, str) else "absent" if value is None else json.dumps(value)
