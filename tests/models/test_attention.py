"""Attention's implementations are one function; and rotation by projection is rotation."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.models import attention, attention_blocks
from pod_job.models.arch import read_arch
from pod_job.models.attention_settings import AttentionSettings, Heads
from pod_job.models.decoder_layer import LayerInput, attention_mixer, decoder_layer
from pod_job.models.joined import swapped_projections
from pod_job.models.layer_attention import Tokens, WithinRows
from pod_job.models.placement import Placement
from pod_job.models.weight_table import weight_table

ROW = 256  # two blocks of the kernel's smallest size
SEGMENTS = (100, 60, 90)  # and padding


def inputs(heads: int, kv_heads: int, head_dim: int, rows: int = 2, sinks: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    segment_ids = np.repeat([1, 2, 3, 0], [*SEGMENTS, ROW - sum(SEGMENTS)])
    shapes = {"q": heads, "k": kv_heads, "v": kv_heads}
    arrays = {name: rng.normal(size=(rows, ROW, n, head_dim)).astype(np.float32) for name, n in shapes.items()}
    of_sinks = jnp.asarray(rng.normal(size=heads)) if sinks else None
    of_heads = Heads(*(jnp.asarray(arrays[name]) for name in "qkv"), sinks=of_sinks)
    return {"heads": of_heads, "segment_ids": jnp.tile(segment_ids, (rows, 1))}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LARGEST_KERNEL_BLOCK", 128)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "window", "softcap"),
    [(4, 2, 64, None, None), (7, 1, 64, 50, None), (2, 2, 128, 129, 5.0)],
)
@pytest.mark.usefixtures("small_blocks")
def test_the_kernel_equals_xla(
    heads: int, kv_heads: int, head_dim: int, window: int | None, softcap: float | None
) -> None:
    """Packed segments, grouped heads, a window that cuts within and across blocks, soft caps, sinks."""
    arrays = inputs(heads, kv_heads, head_dim, sinks=heads != 7)
    how = {"settings": AttentionSettings(head_dim**-0.5, softcap, window, heads_apart=head_dim == 128)}
    found = jax.jit(functools.partial(attention.attend_splash, interpret=True, **how))(**arrays)
    truth = jax.jit(functools.partial(attention.attend_xla, **how))(**arrays)
    np.testing.assert_allclose(found, truth, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("queries", "keys"), [(100, 100), (128, 256), (255, 64), (256, 256), (512, 512)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "window", "softcap"),
    [(4, 2, None, None), (7, 1, 50, None), (2, 2, 129, 5.0), (3, 1, 1, None)],
)
def test_blocks_equal_xla(
    monkeypatch: pytest.MonkeyPatch,
    heads: int,
    kv_heads: int,
    window: int | None,
    softcap: float | None,
    queries: int,
    keys: int,
) -> None:
    """Blocks that do and do not divide the row, one larger than it; segments that end within and between blocks."""
    monkeypatch.setattr(attention_blocks, "QUERIES", queries)
    monkeypatch.setattr(attention_blocks, "KEYS", keys)
    arrays = inputs(heads, kv_heads, 16, sinks=heads != 7)
    how = {"settings": AttentionSettings(0.25, softcap, window)}
    found = jax.jit(functools.partial(attention_blocks.attend_blocks, **how))(**arrays)
    truth = jax.jit(functools.partial(attention.attend_xla, **how))(**arrays)
    np.testing.assert_allclose(found, truth, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("heads", "kv_heads", "window"), [(4, 2, None), (7, 1, 50), (2, 2, 129), (3, 1, 1)])
def test_what_cudnn_is_asked_for_equals_xla(heads: int, kv_heads: int, window: int | None) -> None:
    """Mask, window and scale mean the same; the kernel is compared where there is a GPU, by tools/bench (large-gpu)."""
    arrays = inputs(heads, kv_heads, 16)
    how = {"settings": AttentionSettings(0.25, None, window)}
    found = jax.jit(functools.partial(attention.attend_cudnn, implementation="xla", **how))(**arrays)
    truth = jax.jit(functools.partial(attention.attend_xla, **how))(**arrays)
    np.testing.assert_allclose(found, truth, rtol=2e-5, atol=2e-5)


def test_each_device_has_its_kernel_and_plain_xla_takes_the_rest() -> None:
    def chosen(platform: str, dtype: str = "bfloat16", softcap: float | None = None, **how: Any) -> Any:
        device = SimpleNamespace(platform=platform, compute_capability=how.get("capability", ""))
        q = jnp.zeros((1, how.get("S", ROW), 4, how.get("head_dim", 64)), dtype)
        return attention.kernel_for(device, Heads(q, q, q, how.get("sinks")), softcap)

    assert chosen("cpu", "float32", 5.0) is attention.attend_blocks
    assert chosen("tpu", "float32", 5.0) is attention.attend_splash
    assert chosen("tpu", S=100) is None
    hopper, ampere, volta, amd = "9.0", "8.6", "7.0", "gfx942"
    assert chosen("gpu", capability=hopper, head_dim=256) is attention.attend_cudnn
    assert chosen("gpu", capability=ampere, head_dim=128) is attention.attend_cudnn
    assert chosen("gpu", capability=ampere, head_dim=256) is None
    assert chosen("gpu", capability=hopper, head_dim=60) is None
    assert chosen("gpu", capability=volta) is chosen("gpu", capability=amd) is None
    assert chosen("gpu", capability=hopper, sinks=jnp.zeros(4)) is None
    assert chosen("gpu", "float32", capability=hopper) is chosen("gpu", softcap=5.0, capability=hopper) is None


def test_a_mesh_of_cpus_attends_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled program holds no scores of whole rows."""
    monkeypatch.setattr(attention_blocks, "QUERIES", 128)
    monkeypatch.setattr(attention_blocks, "KEYS", 128)
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    arrays = inputs(4, 2, 16)
    how = {"settings": AttentionSettings(0.25), "placement": Placement(mesh=mesh, rows=("data", "model"))}
    text = jax.jit(functools.partial(attention.attend, **how)).lower(**arrays).compile().as_text()
    assert "128,128]" in str(text)
    assert f"{ROW},{ROW}]" not in str(text)


@pytest.mark.parametrize("window", [None, 1, 50, 128, 129, 130, 200])
@pytest.mark.usefixtures("small_blocks")
def test_the_kernel_computes_the_blocks_that_are_counted(window: int | None) -> None:
    seen = np.asarray(attention.segment_mask(jnp.ones((1, 2 * ROW), jnp.int32), window)[0])
    blocks = seen.reshape(4, 128, 4, 128).any(axis=(1, 3)).sum()
    assert attention.pairs_computed(2 * ROW, window) == blocks


def test_block_sizes() -> None:
    sizes = {8192: 1024, 2560: 640, 1024: 512, 768: 384, 640: 128, 256: 256, 100: None}
    assert {S: attention.block_size(S, None) for S in sizes} == sizes
    assert attention.block_size(8192, 512) == 512, "a large block computes mostly what a short window hides"


def test_swapped_projections_rotate_alike() -> None:
    """Halves swapped by a projection of their own: the same layer, to rounding."""
    config = {
        "model_type": "qwen2",
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 64,
    }
    arch = read_arch(config)
    rng = np.random.default_rng(1)
    weights = {
        name: jnp.asarray(rng.normal(size=w.shape[1:]) / 8, jnp.float32)
        for name, w in weight_table(arch).items()
        if w.stacked
    }
    positions = jnp.tile(jnp.arange(40), (2, 1))
    tokens = Tokens(jnp.zeros((2, 40), jnp.int32), positions, jnp.ones((2, 40), jnp.int32))
    attend = functools.partial(WithinRows(arch, Placement(), tokens), 0, kept=None)
    x = jnp.asarray(rng.normal(size=(2, 40, 64)), jnp.float32)

    @jax.jit
    def layer(weights: dict[str, jax.Array]) -> jax.Array:
        mixer = functools.partial(attention_mixer, arch, Placement(), weights, attend)
        return decoder_layer(arch, Placement(), weights, LayerInput(x), mixer)[0][0]

    swapped = swapped_projections(arch, weights)
    assert set(swapped) == {"q_swapped", "q_swapped_bias", "k_swapped", "k_swapped_bias"}
    np.testing.assert_allclose(layer(weights | swapped), layer(weights), rtol=1e-5, atol=1e-5)
