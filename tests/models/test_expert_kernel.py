"""The kernel of small experts adds up each token's experts as they are, wherever a chunk or tile ends."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float

from pod_job.models import expert_kernel
from pod_job.models.arch import read_arch
from pod_job.models.expert_kernel import StreamNorm, chunk_tokens, kernel_fits, mixture_by_kernel
from tools.tiny_model import TinyModel

EXPERTS, OF_TOKEN, D, F = 4, 2, 2048, 128
TOKENS = 70  # two chunks and a part of one
CHOICES = {
    "any": lambda rng, T: np.stack([rng.permutation(EXPERTS)[:OF_TOKEN] for _ in range(T)]),
    "all the same": lambda rng, T: np.tile([2, 0], (T, 1)),
    "of other devices too": lambda rng, T: np.stack([rng.permutation(EXPERTS + 1)[:OF_TOKEN] for _ in range(T)]),
    "of other devices alone": lambda rng, T: np.full((T, OF_TOKEN), EXPERTS),
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"gate": (D, F), "up": (D, F), "down": (F, D)}
    drawn = {name: rng.normal(size=(EXPERTS, *shape)) * 0.05 for name, shape in shapes.items()}
    return {name: jnp.asarray(array, jnp.bfloat16) for name, array in drawn.items()}


def wide(x: Any) -> Float[np.ndarray, "..."]:
    return np.asarray(x).astype(np.float32)


def expected(weights: dict[str, Any], x: Any, chosen: np.ndarray, shares: np.ndarray) -> Float[np.ndarray, "T D"]:
    out = np.zeros(x.shape, np.float32)
    for expert in range(EXPERTS):
        share = (shares * (chosen == expert)).sum(1, keepdims=True)
        gate, up = (wide(x) @ wide(weights[name])[expert] for name in ("gate", "up"))
        out += share * ((gate / (1 + np.exp(-gate)) * up) @ wide(weights["down"])[expert])
    return out


def compiled(weights: dict[str, Any], norm: StreamNorm | None) -> Any:
    """The kernel with tiles and chunks so small that few tokens have many of them."""
    of_token = (
        jax.ShapeDtypeStruct((TOKENS, OF_TOKEN), jnp.int32),
        jax.ShapeDtypeStruct((TOKENS, OF_TOKEN), jnp.float32),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"TILE": 16, "STAGE": 32, "GROUP": 4}.items():
            patch.setattr(expert_kernel, name, value)
        patch.setattr(expert_kernel, "chunk_tokens", lambda T, D, F: 32)
        jitted = jax.jit(functools.partial(mixture_by_kernel, norm=norm, interpret=True))
        return jitted.lower(weights, jax.ShapeDtypeStruct((TOKENS, D), jnp.bfloat16), *of_token).compile()


@pytest.fixture(scope="module")
def kernel(weights: dict[str, Any]) -> Any:
    return compiled(weights, None)


@pytest.mark.parametrize("choice", CHOICES)
def test_each_token_is_the_sum_of_its_experts(choice: str, kernel: Any, weights: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(TOKENS, D)), jnp.bfloat16)
    chosen, shares = CHOICES[choice](rng, len(x)), rng.random((len(x), OF_TOKEN)).astype(np.float32)
    found = wide(kernel(weights, x, jnp.asarray(chosen, jnp.int32), jnp.asarray(shares)))
    truth = expected(weights, x, chosen, shares)
    assert (np.linalg.norm(found - truth, axis=1) <= 0.01 * np.linalg.norm(truth, axis=1)).all()


def test_the_residual_stream_is_read_through_its_norm_and_is_in_the_sum(weights: dict[str, Any]) -> None:
    rng, eps = np.random.default_rng(2), 0.005
    stream = jnp.asarray(rng.normal(size=(TOKENS, D)) * rng.uniform(0.05, 0.2, (TOKENS, 1)), jnp.bfloat16)
    scale = rng.uniform(0.5, 1.5, D).astype(np.float32)
    lengths = np.sqrt((wide(stream) ** 2).mean(1, keepdims=True) + eps)
    read = jnp.asarray(wide(stream) / lengths * scale, jnp.bfloat16)
    chosen, shares = CHOICES["any"](rng, TOKENS), rng.random((TOKENS, OF_TOKEN)).astype(np.float32)
    kernel = compiled(weights, StreamNorm(jnp.asarray(scale), eps))
    added = wide(kernel(weights, stream, jnp.asarray(chosen, jnp.int32), jnp.asarray(shares))) - wide(stream)
    truth = expected(weights, read, chosen, shares)
    assert (np.linalg.norm(added - truth, axis=1) <= 0.01 * np.linalg.norm(truth, axis=1)).all()


def test_a_chunk_fits_the_core_and_all_tokens_fit_the_chunks() -> None:
    for T in (256, 300, 8192, 65_536, 70_001):
        C = chunk_tokens(T, 2048, 768)
        assert C % expert_kernel.STAGE == 0
        assert 6 * C * 2048 + 12 * 2048 * 768 <= expert_kernel.KERNEL_MEMORY
        chunks = -(-T // C)
        assert chunks * C - T < chunks * expert_kernel.STAGE
    assert chunk_tokens(255, 2048, 768) == 0
    assert chunk_tokens(65_536, 2880, 768) == 0  # a token's vector is not of whole registers
    assert chunk_tokens(65_536, 4096, 14_336) == 0  # one of Mixtral's experts has 352 MB


def test_only_cores_with_room_and_plain_experts_take_the_kernel() -> None:
    arch = read_arch(TinyModel("qwen3_moe", hidden=2048, mlp=128).config())
    assert kernel_fits(arch, "TPU v6 lite", 512, jnp.bfloat16)
    assert not kernel_fits(arch, "TPU v4", 512, jnp.bfloat16)
    assert not kernel_fits(arch, "cpu", 512, jnp.bfloat16)
    assert not kernel_fits(arch, "TPU v6 lite", 512, jnp.float32)
    clamped = read_arch(TinyModel("gpt_oss", hidden=2048, mlp=128).config())
    assert not kernel_fits(clamped, "TPU v6 lite", 512, jnp.bfloat16)
