"""Mutations of a file: damage, or other values behind a checksum that fits them."""

import json
import random
from collections.abc import Callable
from typing import Any

from pod_job.formats.checksummed_json import read_checksummed, with_checksum

EXTREMES = [
    number.to_bytes(size, order)
    for size in (1, 2, 4, 8)
    for number in (1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1)
    for order in ("little", "big")
]
"""Numbers in place of which lengths and counts are most likely to be wrong."""


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Returns another content: bits, cuts, repetitions, garbage, extreme numbers, depth, or other values in JSON."""
    at, length = rng.randrange(len(data)), rng.choice((1, 4, 64, 1024))
    extreme = rng.choice(EXTREMES)
    ways: list[Callable[[], bytes]] = [
        lambda: data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
        lambda: data[:at],
        lambda: data[:at] + data[at + length :],
        lambda: data[:at] + data[at : at + length] + data[at:],
        lambda: data[:at] + rng.randbytes(length) + data[at + length :],
        lambda: data[:at] + bytes(length) + data[at + length :],
        lambda: data + rng.randbytes(length),
        lambda: data[:at] + extreme + data[at + len(extreme) :],
        lambda: data[:at] + rng.choice((b"[", b"(", b'{"a":')) * 5000 + data[at:],
    ]
    try:
        content = json.loads(data)
    except ValueError:
        return rng.choice(ways)()
    return rng.choice([*ways, *[lambda: json.dumps(mutate_json(content, rng)).encode()] * len(ways)])()


def mutate_json(value: Any, rng: random.Random) -> Any:
    """Returns the value with one thing in it changed, removed or put elsewhere."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, changed = rng.choice(keys), value.copy()
        chance = rng.random()
        if chance < 0.1:
            del changed[key]
        elif chance < 0.2:
            changed[key] = value[rng.choice(keys)]
        else:
            changed[key] = mutate_json(value[key], rng)
        return changed
    numbers = (0, 1, -1, 2**31, 2**63, -(2**70), 1e308, 0.5, float("nan"), float("inf"))
    return rng.choice([*numbers, None, True, "", "x", "../../etc/passwd", [], {}, [value], "9" * 5000])


def mutate_behind_checksum(data: bytes, rng: random.Random) -> bytes:
    """Returns a checksummed file whose content is mutated while its checksum fits it."""
    return with_checksum(mutate(read_checksummed(data, ""), rng))
