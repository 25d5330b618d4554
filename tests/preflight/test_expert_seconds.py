"""Time of a mixture's products, which the compiler's text lacks, ragged or in the kernel."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from pod_job.models.arch import Arch, read_arch
from pod_job.preflight.model_kernels import STREAM_STAGE_CYCLES, expert_kernel_seconds, ragged_seconds
from pod_job.preflight.tpu_facts import V6E
from tools.tiny_model import TinyModel

TOKENS, BFLOAT16_BYTES = 65536.0, 2


@pytest.fixture(scope="module")
def arch() -> Arch:
    return read_arch(TinyModel("qwen3_moe", hidden=2048, heads=16, mlp=768).config())


def ragged(arch: Arch, split: int = 1) -> float:
    return ragged_seconds(arch, V6E, TOKENS, split, BFLOAT16_BYTES)


def kernel(arch: Arch, split: int = 1) -> float:
    return expert_kernel_seconds(arch, V6E, TOKENS, split)


def stream_kernel(arch: Arch, split: int = 1) -> float:
    return expert_kernel_seconds(arch, V6E, TOKENS, split, STREAM_STAGE_CYCLES)


WAYS = pytest.mark.parametrize("seconds", [ragged, kernel, stream_kernel])


@WAYS
def test_experts_take_at_least_their_flops_at_peak(arch: Arch, seconds: Callable[..., float]) -> None:
    least = 2 * 3 * arch.hidden * arch.mlp * arch.experts_per_token * TOKENS / V6E.peak_flops
    assert least < seconds(arch) < 3 * least


@WAYS
def test_more_devices_take_less_and_more_experts_a_token_more(arch: Arch, seconds: Callable[..., float]) -> None:
    assert seconds(arch, 4) < seconds(arch, 2) < seconds(arch)
    assert seconds(replace(arch, experts_per_token=4)) > seconds(arch)
