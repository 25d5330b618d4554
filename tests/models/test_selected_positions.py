"""A pass of which few positions are wanted gives at these what a pass over all positions gives there."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.checkpoints.checkpoint import read_checkpoint
from pod_job.checkpoints.load import load_params
from pod_job.models.arch import read_arch_file
from pod_job.models.decoder import Decoder, Request
from pod_job.models.taps import resolve
from pod_job.models.weight_table import weight_table
from tools.tiny_model import write_tiny_model

S, SEGMENTS = 40, (22, 18)
SELECT = ((21, 39, 3, 30), (0, 21, 22, 38))
FAMILIES = ("qwen2", "gemma3_text", "gpt_neox", "qwen3_moe")


@pytest.mark.parametrize("taps", [["*"], ["layer_0", "layer_2"], ["layer_1.z", "layer_4_norm"]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tap_at_few_positions_is_that_of_a_pass_over_all(family: str, taps: list[str], tmp_path: Path) -> None:
    """Packed sequences, with windows, norms of heads, a parallel mlp and experts."""
    folder = write_tiny_model(tmp_path / "model", family, layers=4)
    arch = read_arch_file(folder / "config.json")
    here, table = jax.sharding.SingleDeviceSharding(jax.devices()[0]), weight_table(arch)
    params = load_params(read_checkpoint(folder), table, jnp.float32, dict.fromkeys(table, here))
    model = Decoder(arch, resolve([], taps, arch), jnp.float32)
    ids = jnp.asarray(np.random.default_rng(0).integers(1, 250, (2, S)))
    segment_ids = jnp.asarray(np.repeat([1, 2], SEGMENTS)[None].repeat(2, 0))
    positions = jnp.asarray(np.concatenate([np.arange(length) for length in SEGMENTS])[None].repeat(2, 0))
    select = jnp.asarray(SELECT)

    def activations(select: jax.Array | None) -> dict[str, jax.Array]:
        how = {"positions": positions, "segment_ids": segment_ids, "select": select}
        return model.apply(params, ids, return_activations=True, return_logits=False, **how).activations  # type: ignore[union-attr]

    assert Request(model.taps, select, logits=False).last_of_few(arch, S) is not None
    found, every = jax.jit(activations)(select), jax.jit(activations)(None)
    assert found.keys() == every.keys()
    for name, value in every.items():
        expected = np.take_along_axis(np.asarray(value), np.array(SELECT)[..., None], axis=1)
        np.testing.assert_allclose(found[name], expected, rtol=2e-4, atol=2e-5, err_msg=name)
