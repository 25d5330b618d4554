"""Mixtures of experts: every choice of experts, split among devices or not; what cannot be is refused by name."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.config.schema import MeshConfig, Sharding
from pod_job.errors import JobError
from pod_job.models.arch import Arch, read_arch
from pod_job.models.experts import by_blocks, by_ragged_products
from pod_job.models.sharding import check_divides, sharding_line
from pod_job.models.taps import check_exact, resolve
from pod_job.models.weight_table import weight_table
from pod_job.planning.model_cost import layer_flops
from tools.tiny_model import TinyModel

EXPERTS, TOKENS, WIDTH, SIZE = 4, 6, 8, 12
CHOICES = {
    "all of one expert": [[2, 1]] * TOKENS,
    "each once": [[n % 4, (n + 1) % 4] for n in range(TOKENS)],
    "none of some": [[0, 3], [3, 0]] * (TOKENS // 2),
    "of other devices too": [[4, 1], [4, 4], [2, 4], [3, 2], [4, 0], [1, 4]],  # 4: not an expert of this device
}


def mixture(**fields: Any) -> Arch:
    return read_arch(TinyModel("qwen3_moe", **fields).config())


@pytest.fixture(scope="module")
def weights() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = {"gate": (WIDTH, SIZE), "up": (WIDTH, SIZE), "down": (SIZE, WIDTH)}
    drawn = {name: rng.normal(size=(EXPERTS, *shape)) for name, shape in shapes.items()}
    drawn |= {f"{name}_bias": rng.normal(size=(EXPERTS, shape[1])) for name, shape in shapes.items()}
    return {name: jnp.asarray(array, jnp.float32) for name, array in drawn.items()}


@functools.cache
def compiled(way: Any, arch: Arch) -> Any:
    return jax.jit(functools.partial(way, arch))


@pytest.mark.parametrize("way", [by_blocks, by_ragged_products], ids=lambda way: way.__name__)
@pytest.mark.parametrize("choice", CHOICES)
def test_each_pair_is_computed_by_its_expert(way: Any, choice: str, weights: dict[str, jax.Array]) -> None:
    arch, expert = mixture(), np.array(CHOICES[choice])
    x = np.random.default_rng(1).normal(size=(TOKENS, WIDTH)).astype(np.float32)
    done, places = compiled(way, arch)(weights, x, expert.T.ravel())
    found = np.asarray(done)[np.asarray(places)]
    w = {name: np.asarray(weight) for name, weight in weights.items()}
    for pair, at in enumerate(expert.T.ravel()):
        if at < EXPERTS:
            gate, up = (x[pair % TOKENS] @ w[name][at] + w[f"{name}_bias"][at] for name in ("gate", "up"))
            expected = (gate / (1 + np.exp(-gate)) * up) @ w["down"][at] + w["down_bias"][at]
            np.testing.assert_allclose(found[pair], expected, rtol=1e-5, atol=1e-5)


def test_experts_that_the_mesh_does_not_divide_are_refused_with_the_meshes_that_do() -> None:
    table = weight_table(mixture(hidden=48, heads=6, kv_heads=6))
    with pytest.raises(JobError, match=r"mesh.model=6 does not .* \(experts 8\); use 1, 2, 4, or sharding=fsdp"):
        check_divides(table, MeshConfig(data=1, model=6), Sharding.tensor)
    check_divides(table, MeshConfig(data=1, model=6), Sharding.fsdp)
    check_divides(table, MeshConfig(data=1, model=8), Sharding.tensor)
    line = sharding_line(table, MeshConfig(data=1, model=2), Sharding.tensor)
    assert line.endswith("query heads 6, key/value heads 6, experts 8, vocabulary 320")


def test_expert_sites_are_of_mixtures_alone_and_the_other_way_round() -> None:
    one_mlp = read_arch(TinyModel("qwen3").config())
    with pytest.raises(JobError, match="is of mixtures of experts, and qwen3 has one mlp a layer"):
        resolve(None, ["layer_*.expert_ids"], one_mlp)
    with pytest.raises(JobError, match="qwen3_moe has 8 experts; use router_logits, expert_ids and mlp_out"):
        resolve(None, ["layer_1.mlp_act"], mixture())
    taps = resolve(None, ["layer_0.router_logits", "layer_0.expert_ids"], mixture())
    assert [tap.width(mixture()) for tap in taps] == [8, 3]


@pytest.mark.parametrize(
    ("experts", "dtype", "averaged", "says"),
    [
        (256, "bfloat16", False, None),
        (512, "bfloat16", False, "extract.dtype=bfloat16 rounds the numbers of 512 experts"),
        (512, "float16", False, None),
        (8, "int8", False, "extract.dtype=int8 rounds the numbers of 8 experts"),
        (8, "float32", True, "extract.positions=mean: expert_ids are numbers of experts"),
    ],
)
def test_numbers_of_experts_are_stored_exactly_or_refused(
    experts: int, dtype: str, averaged: bool, says: str | None
) -> None:
    arch = dataclasses.replace(mixture(), experts=experts)
    check_exact(resolve([0], ["layer_0.router_logits"], arch), arch, dtype, averaged)
    taps = resolve(None, ["layer_0.expert_ids"], arch)
    if says is None:
        return check_exact(taps, arch, dtype, averaged)
    with pytest.raises(JobError, match=says):
        check_exact(taps, arch, dtype, averaged)
    return None


def test_flops_are_those_of_the_chosen_experts() -> None:
    arch = mixture()
    more = dataclasses.replace(arch, experts_per_token=arch.experts_per_token + 1)
    assert layer_flops(more) - layer_flops(arch) == 2 * 3 * arch.hidden * arch.mlp
