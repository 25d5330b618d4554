"""Parameters before the first step."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pod_job.config.train import Architecture
from pod_job.training.architectures.parts import Params, decoder_norms
from pod_job.training.architectures.shape import SaeShape

JUMP_THRESHOLD = 0.001
"""First threshold and bandwidth of JumpReLU for rows of mean squared norm 1: Lieberum et al., "Gemma Scope"
(arXiv:2408.05147), section 3.2. Rows here have a mean squared norm of their width D: both are multiplied by sqrt(D)."""


def jump_scale(shape: SaeShape) -> float:
    """Returns JumpReLU's first threshold and bandwidth for rows whose mean squared norm is their width."""
    return JUMP_THRESHOLD * math.sqrt(shape.input_width)


def initial_parameters(shape: SaeShape, key: jax.Array, decoder_bias: Float[Array, "O"] | None = None) -> Params:
    """Returns random decoder rows of norm 1, and biases of 0 except for the decoder's, which comes from the data.

    The encoder of an SAE is the decoder's transpose (Gao et al. 2024; Anthropic, April 2024). That of a transcoder has
    columns of norm 1 of its own. The skip connection starts at 0 (Paulo, Shabalin and Belrose, arXiv:2501.18823).
    """
    F, of_decoder, of_encoder = shape.latents, *jax.random.split(key)
    decoder = jax.random.normal(of_decoder, (F, shape.output_width))
    decoder = decoder / decoder_norms(shape, decoder)[:, None]
    if shape.transcoder:
        encoder = jax.random.normal(of_encoder, (shape.input_width, F))
        encoder = encoder / jnp.linalg.norm(encoder, axis=0)
    else:
        encoder = decoder.T
    bias = jnp.zeros(shape.output_width) if decoder_bias is None else decoder_bias.astype(jnp.float32)
    params = {"encoder": encoder, "encoder_bias": jnp.zeros(F), "decoder": decoder, "decoder_bias": bias}
    if shape.architecture is Architecture.gated:
        params |= {"gate_bias": jnp.zeros(F), "gate_scale": jnp.zeros(F)}
    if shape.architecture is Architecture.jump_relu:
        params |= {"log_threshold": jnp.full(F, math.log(jump_scale(shape)))}
    if shape.architecture in (Architecture.batch_topk, Architecture.matryoshka):
        params |= {"threshold": jnp.zeros(())}
    if shape.skip:
        params |= {"skip": jnp.zeros((shape.input_width, shape.output_width))}
    return params
