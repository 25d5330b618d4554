"""An SAE that was read encodes and decodes rows as they are stored."""

import ml_dtypes
import numpy as np
import pytest

from pod_job.config.train import Architecture
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.saes import TrainedSae, parameter_shapes

D, F, K, N = 6, 16, 3, 10


def random_sae(architecture: Architecture, **changes: object) -> tuple[TrainedSae, np.ndarray]:
    """Returns an SAE with random parameters, and rows for it in bfloat16."""
    random = np.random.default_rng(0)
    shape = SaeShape(architecture=architecture, input_width=D, output_width=D, latents=F, **changes)
    values = {name: random.normal(size=size).astype(np.float32) for name, size in parameter_shapes(shape).items()}
    return TrainedSae(shape, values), random.normal(size=(N, D)).astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("architecture", [Architecture.relu, Architecture.topk, Architecture.jump_relu])
def test_latents_and_reconstructions_are_those_of_the_definition(architecture: Architecture) -> None:
    sae, rows = random_sae(architecture, **({"k": K} if architecture is Architecture.topk else {}))
    p, x = sae.parameters, rows.astype(np.float32)
    values = np.maximum((x - p["decoder_bias"]) @ p["encoder"] + p["encoder_bias"], 0)
    if architecture is Architecture.topk:
        values[values < np.sort(values, axis=1)[:, -K, None]] = 0
    if architecture is Architecture.jump_relu:
        values[values <= sae.thresholds] = 0
    latents = sae.encode(rows)
    np.testing.assert_allclose(latents, values, atol=1e-5)
    np.testing.assert_allclose(sae.decode(latents, rows), values @ p["decoder"] + p["decoder_bias"], atol=1e-5)


def test_a_skip_connection_adds_to_what_is_decoded() -> None:
    sae, rows = random_sae(Architecture.relu, transcoder=True, skip=True)
    without = np.zeros((N, F), np.float32)
    expected = sae.parameters["decoder_bias"] + rows.astype(np.float32) @ sae.parameters["skip"]
    np.testing.assert_allclose(sae.decode(without, rows), expected, atol=1e-5)
