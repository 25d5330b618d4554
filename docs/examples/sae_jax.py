"""Trains a top-k sparse autoencoder in JAX: `python docs/examples/sae_jax.py RUN_DIR --layer 12`."""

import argparse

import jax
import jax.numpy as jnp
import optax

from pod_job.dataset import ActivationDataset, endless, scaling


def initial(key, width, latents):
    """Returns random parameters: unit decoder rows [latents, width], and the encoder as their transpose."""
    decoder = jax.random.normal(key, (latents, width))
    decoder /= jnp.linalg.norm(decoder, axis=1, keepdims=True)
    return {"encoder": decoder.T, "threshold": jnp.zeros(latents), "decoder": decoder, "bias": jnp.zeros(width)}


def reconstruct(sae, vectors, k):
    """Returns the reconstruction of vectors [batch, width] from the k largest latents of each."""
    codes = jax.nn.relu((vectors - sae["bias"]) @ sae["encoder"] + sae["threshold"])
    strongest, which = jax.lax.top_k(codes, k)
    rows = jnp.arange(len(vectors))[:, None]
    codes = jnp.zeros_like(codes).at[rows, which].set(strongest)
    return codes @ sae["decoder"] + sae["bias"]


def unexplained(sae, vectors, k):
    """Returns the loss: the share of the variance that the reconstruction does not explain, 0 at best."""
    residual = vectors - reconstruct(sae, vectors, k)
    return jnp.sum(residual**2) / jnp.sum((vectors - vectors.mean(0)) ** 2)


def train(run_dir, layer, steps=500, batch_size=1024, latents=2048, k=32, learning_rate=1e-3):
    """Returns the autoencoder and the variance that it explains of a held-out batch, before and after training."""
    # Attention sinks have a hundred times the norm of other rows and share one direction; they would dominate the loss.
    dataset = ActivationDataset(run_dir, layer, exclude=["sink"])
    scaled = scaling(dataset, centre=True)
    batches = endless(dataset, batch_size, seed=0, scaled=scaled, as_="jax")
    held_out = scaled(next(dataset.batches(batch_size, seed=1, as_="jax")))
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    sae = initial(jax.random.key(0), dataset.shape[1], latents)
    state = optimizer.init(sae)

    @jax.jit
    def step(sae, state, vectors):
        loss, gradient = jax.value_and_grad(unexplained)(sae, vectors, k)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(sae, update), state, loss

    before = 1 - unexplained(sae, held_out, k)
    for number, vectors in zip(range(steps), batches, strict=False):
        sae, state, loss = step(sae, state, vectors)
        if number % 100 == 0:
            print(f"step {number}: {1 - loss:.3f} of the variance explained")
    return sae, float(before), float(1 - unexplained(sae, held_out, k))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    _, before, after = train(options.run_dir, options.layer, options.steps)
    print(f"explained variance of {before:.3f} before training, {after:.3f} after {options.steps} steps")
