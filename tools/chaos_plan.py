"""What is done to pods in tools/chaos.py: their shapes, the faults that befall them, scenarios of several starts."""

import itertools
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from tools.chaos_host import STEPS, Fault


@dataclass(frozen=True)
class Shape:
    """A pod: hosts of so many devices, and the mesh over them."""

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
OF_ONE_HOST = tuple(shape for shape in SHAPES if shape.hosts == 1)


@dataclass(frozen=True)
class Start:
    """One start of a pod. `fault` befalls `host`; or all hosts are killed after `kill_after_s`; or neither."""

    shape: Shape
    host: int = 0
    fault: Fault | None = None
    kill_after_s: float | None = None


@dataclass(frozen=True)
class Scenario:
    """Disturbed starts, one after the other; then those that may finish, all at the same time."""

    disturbed: tuple[Start, ...]
    last: tuple[Start, ...]


def scenarios(seed: int) -> Iterator[Scenario]:
    """Scenarios without end; the named steps are gone through in turn.

    A process that is stopped, and wakes up when others have finished its work, is alone on its pod: jax ends a host
    that wakes up without its peers before it can do any harm.
    """
    rng = random.Random(seed)
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
        yield Scenario(tuple(disturbed), tuple(Start(shape) for shape in last))
