"""What one program of a job takes on the pod: the numbers, what follows from them, and their JSON. No jax."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pod_job.preflight.compiled_text import Collective


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """One run of a program on the pod. Memory in bytes per chip, times in seconds; 0 where it does not fit.

    Attributes:
        program: `step`; with mode=generate `prefill` and `decode`, or `generation` where one of them does not fit.
        seconds: by cause. `compute`: the compiler's estimates of its own operations, and the kernels'; `hbm`: reading
            weights and cache once for each token position in turn, writing results; `network`: all collectives, as if
            nothing hid them; `host`: results to the host's memory; `bucket`: results to storage. They overlap, so the
            program takes the longest of them.
        tokens: token positions computed, on all chips.
        tokens_in_turn: 1; of decode, how many tokens one run adds to each row.
    """

    program: str
    topology: str
    chips: int
    fits: bool
    compile_s: float
    hbm: dict[str, int]
    hbm_available: int
    seconds: dict[str, float] = field(default_factory=dict)
    kernel_s: float = 0.0
    ideal_s: float = 0.0
    tokens: int = 0
    tokens_in_turn: int = 1
    collectives: list[Collective] = field(default_factory=list)
    stored_bytes: int = 0
    cache_bytes: int = 0

    @property
    def step_s(self) -> float:
        return max(self.seconds.values(), default=0.0)

    @property
    def bottleneck(self) -> str:
        return max(self.seconds, key=lambda cause: self.seconds[cause], default="memory")

    @property
    def mfu(self) -> float:
        """Model FLOPs of a step over what the chips could do in its time."""
        return self.ideal_s / self.step_s if self.step_s else 0.0

    @property
    def compute_mfu(self) -> float:
        """The same as if nothing but compute took time: how good the compiled program is."""
        return self.ideal_s / self.seconds["compute"] if self.seconds else 0.0

    def report(self) -> dict[str, Any]:
        """All of it as JSON values, with what follows."""
        return asdict(self) | {
            "step_s": self.step_s,
            "bottleneck": self.bottleneck,
            "mfu": self.mfu,
            "compute_mfu": self.compute_mfu,
            "tokens_per_s": self.tokens / self.step_s if self.step_s else 0.0,
        }


def from_json(values: dict[str, Any]) -> Forecast:
    """The forecast whose `asdict` went through JSON."""
    return Forecast(**{**values, "collectives": [Collective(**each) for each in values["collectives"]]})
