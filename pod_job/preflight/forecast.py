"""Forecast: the cost of one program of a job on the pod, as the compiler and the chip's figures give it. No jax."""

import msgspec
from msgspec.structs import force_setattr

from pod_job.preflight.compiled_text import Collective


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """Cost of one run of one program on the pod; where the program does not fit, times and rates are 0.

    Attributes:
        program: `step`; with mode=generate `prefill` and `decode`, or `generation` where one of them does not fit; with
            mode=train `forward` and `trainer`.
        topology: the compiler's name of the slice, such as v5e:8x8.
        compile_s: wall time in seconds that compiling took on this machine.
        hbm: bytes of a chip's memory by kind, and `total`.
        hbm_available: bytes that a program may use of a chip's memory.
        seconds: by cause. `compute`: the compiler's estimates of its own operations, and the kernels'; `hbm`: reading
            weights and cache once per token position in turn, writing results; `network`: all collectives, as if
            nothing hid them, but of the trainer those that do not go on beside a product; `host`: results to the host's
            memory; `bucket`: results to storage, both not with mode=train. They overlap, so the program takes the
            longest of them.
        kernel_s: part of `seconds["compute"]` that custom kernels take, which the compiler does not state; of decode,
            with all slots of all rows filled.
        kernel_origin: `bundles`, where the attention kernel's instructions were counted; `FLOPs` or of decode `bytes`,
            where they could not be read; "" without a kernel, and in forecasts of older versions.
        ideal_s: model FLOPs of a run at the chips' peak.
        tokens: token positions computed, on all chips.
        tokens_in_turn: 1; of decode, how many tokens one run adds to each row.
        stored_bytes: results of a run, from all chips.
        cache_bytes: keys and values that stay on a chip between runs.

    Derived, so that the JSON has them:
        step_s: longest of `seconds`.
        bottleneck: cause of `step_s`; `memory` where the program does not fit.
        mfu: model FLOPs of a run over what the chips could do in `step_s`.
        compute_mfu: `mfu` as if only compute took time: the quality of the compiled program.
        tokens_per_s: `tokens` over `step_s`.
    """

    program: str
    topology: str
    chips: int
    fits: bool
    compile_s: float
    hbm: dict[str, int]
    hbm_available: int
    seconds: dict[str, float] = {}
    kernel_s: float = 0.0
    kernel_origin: str = ""
    ideal_s: float = 0.0
    tokens: int = 0
    tokens_in_turn: int = 1
    collectives: list[Collective] = []
    stored_bytes: int = 0
    cache_bytes: int = 0
    step_s: float = 0.0
    bottleneck: str = ""
    mfu: float = 0.0
    compute_mfu: float = 0.0
    tokens_per_s: float = 0.0

    def __post_init__(self) -> None:
        step_s = max(self.seconds.values(), default=0.0)
        force_setattr(self, "step_s", step_s)
        force_setattr(self, "bottleneck", max(self.seconds, key=lambda cause: self.seconds[cause], default="memory"))
        force_setattr(self, "mfu", self.ideal_s / step_s if step_s else 0.0)
        force_setattr(self, "compute_mfu", self.ideal_s / self.seconds["compute"] if self.seconds else 0.0)
        force_setattr(self, "tokens_per_s", self.tokens / step_s if step_s else 0.0)
