"""Scenarios: starts and compactions with the faults that disturb them."""

import itertools
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tools.chaos.fault import STEPS, STEPS_OF_COMPACTING, Fault


@dataclass(frozen=True)
class Shape:
    """Shape of a pod: its hosts, the devices of a host, and the mesh."""

    hosts: int
    devices: int
    data: int
    model: int
    sharding: str


SHAPES = (
    Shape(1, 1, 1, 1, "replicated"),
    Shape(1, 4, 4, 1, "replicated"),
    Shape(1, 4, 2, 2, "fsdp"),
    Shape(1, 2, 1, 2, "tensor"),
    Shape(2, 1, 2, 1, "replicated"),
    Shape(2, 2, 2, 2, "fsdp"),
)
MAX_BYTES = (5_000, 200_000, 1 << 30)
"""Largest sizes of a joined file: few files of these datasets fit into the first, some into the second, all into the
last."""
OF_ONE_HOST = tuple(shape for shape in SHAPES if shape.hosts == 1)


@dataclass(frozen=True)
class Start:
    """Start of a pod: `host` gets `fault`, or all hosts are killed after `kill_after_s`, or neither."""

    shape: Shape
    host: int = 0
    fault: Fault | None = None
    kill_after_s: float | None = None


@dataclass(frozen=True)
class Compaction:
    """Run of `merge --compact`; a `patient` one starts again while the job is not finished."""

    max_bytes: int
    fault: Fault | None = None
    kill_after_s: float | None = None
    patient: bool = False


@dataclass(frozen=True)
class Scenario:
    """Disturbed starts, one after the other; then those that may finish, all at the same time; then compactions.

    Attributes:
        beside: runs while the last starts do.
        waking_late: stopped processes resume after the compactions, not after the last starts.
    """

    disturbed: tuple[Start, ...]
    last: tuple[Start, ...]
    beside: Compaction | None = None
    compactions: tuple[Compaction, ...] = ()
    waking_late: bool = False


def scenarios(seed: int) -> Iterator[Scenario]:
    """Yields an endless sequence of scenarios, in which the steps take turns.

    A process that is stopped, and resumes when others have finished its work, is the only host of its pod: jax ends a
    host that resumes without its peers before it can write.
    """
    rng = random.Random(seed)
    compactions = disturbed_compactions(random.Random(f"{seed} compactions"))
    turn = itertools.cycle(rng.sample(STEPS, len(STEPS)))
    while True:
        disturbed = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            if rng.random() < 0.2:
                disturbed.append(Start(rng.choice(SHAPES), kill_after_s=rng.uniform(0.2, 4.0)))
                continue
            signum = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP))
            shape = rng.choice(OF_ONE_HOST if signum == signal.SIGSTOP else SHAPES)
            fault = Fault(next(turn), rng.choice((1, 1, 2)), signum)
            disturbed.append(Start(shape, rng.randrange(shape.hosts), fault))
        last = rng.sample(OF_ONE_HOST, 2) if rng.random() < 0.3 else [rng.choice(SHAPES)]
        beside = replace(next(compactions), patient=True) if rng.random() < 0.3 else None
        after = tuple(itertools.islice(compactions, rng.choice((0, 1, 1, 2))))
        yield Scenario(tuple(disturbed), tuple(map(Start, last)), beside, after, rng.random() < 0.5)


def disturbed_compactions(rng: random.Random) -> Iterator[Compaction]:
    """Yields an endless sequence of compactions, in which the steps take turns."""
    turn = itertools.cycle(rng.sample(STEPS_OF_COMPACTING, len(STEPS_OF_COMPACTING)))
    while True:
        max_bytes = rng.choice(MAX_BYTES)
        if rng.random() < 0.2:
            yield Compaction(max_bytes, kill_after_s=rng.uniform(0.05, 0.5))
            continue
        signum = rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP))
        yield Compaction(max_bytes, Fault(next(turn), rng.choice((1, 1, 2)), signum))
