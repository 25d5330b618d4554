"""Contexts in which latents are most active: tokens around the rows of the largest values, as arrays in a file.

Of a document a latent has one context, where it is most active. N rows, F latents, k contexts of each, W tokens of a
context.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Int64

from pod_job.errors import JobError
from pod_job.formats.safetensors import write_parts
from pod_job.run_folder.layout import sae_prefix
from pod_job.storage.folder import Folder, Readable
from pod_job.training.layouts.tensors import read_tensors

BEFORE, AFTER = 20, 8
"""Tokens of a context on either side of the one on which the latent is active."""
NO_TOKEN = -1


@dataclass(frozen=True)
class Contexts:
    """Largest values of each latent, 0 where there is none, with their tokens; `density`: share of rows it fires on."""

    values: Float[np.ndarray, "F k"]
    tokens: Int32[np.ndarray, "F k W"]
    density: Float[np.ndarray, "F"]


Numbers = jax.Array | np.ndarray


class Top(NamedTuple):
    """The largest values [F, k] of each latent, one of a document, with their rows and documents; 0 for no value."""

    values: Numbers
    rows: Numbers
    documents: Numbers


def largest_of_documents(values: Float[Array, "N F"], documents: Int[Array, "N"], k: int) -> Top:
    """Returns the k largest of the values, which are not negative, one of a document at most."""

    def take(left: Float[Array, "N F"], _: None) -> tuple[Float[Array, "N F"], Top]:
        row = jnp.argmax(left, axis=0)
        document = documents[row]
        return jnp.where(documents[:, None] == document, 0.0, left), Top(jnp.max(left, axis=0), row, document)

    _, top = jax.lax.scan(take, values, None, length=k)
    return Top(*(array.T for array in top))


def larger(one: Top, other: Top, k: int) -> Top:
    """Returns the k largest values of both, largest first, one of a document at most."""
    both = Top(*(np.concatenate([a, b], axis=1) for a, b in zip(one, other, strict=True)))
    by_document = np.lexsort((-both.values, both.documents), axis=1)
    values, rows, documents = (np.take_along_axis(array, by_document, 1) for array in both)
    values[:, 1:][documents[:, 1:] == documents[:, :-1]] = 0
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return Top(*(np.take_along_axis(array, order, 1) for array in (values, rows, documents)))


class TopRows(NamedTuple):
    """Largest values of each latent, the places of their rows among all tokens, and the latents' densities."""

    values: Float[np.ndarray, "F k"]
    rows: Int64[np.ndarray, "F k"]
    density: Float[np.ndarray, "F"]


def contexts_of(top: TopRows, tokens: Int32[np.ndarray, "..."], segments: Int32[np.ndarray, "..."]) -> Contexts:
    """Returns the contexts of rows; `tokens` and `segments` are of all steps, [..., S].

    A context does not go past its segment.
    """
    values, rows, density = top
    width, flat, of_segment = tokens.shape[-1], tokens.reshape(-1), segments.reshape(-1)
    places = rows[..., None] + np.arange(-BEFORE, AFTER + 1)
    inside = (places // width == rows[..., None] // width) & (places >= 0) & (places < len(flat))
    places = np.where(inside, places, 0)
    inside &= (of_segment[places] == of_segment[rows][..., None]) & (values > 0)[..., None]
    return Contexts(
        values.astype(np.float32), np.where(inside, flat[places], NO_TOKEN).astype(np.int32), density.astype(np.float32)
    )


def contexts_file(sae: str) -> str:
    return f"{sae_prefix(sae)}contexts.safetensors"


def write_contexts(folder: Folder, sae: str, contexts: Contexts) -> None:
    folder.replace(contexts_file(sae), b"".join(write_parts(vars(contexts))))


def read_contexts(folder: Readable, sae: str) -> Contexts | None:
    """Returns the contexts of an SAE; None where it was not evaluated. JobError where the file is not sound."""
    name = contexts_file(sae)
    try:
        folder.read(name, 0, 1)
    except FileNotFoundError:
        return None
    tensors = read_tensors(folder, name)
    values, tokens, density = (tensors.get(key, np.zeros(0)) for key in ("values", "tokens", "density"))
    sound = (
        values.ndim == 2 and tokens.shape == (*values.shape, BEFORE + AFTER + 1) and density.shape == values.shape[:1]
    )
    if not sound or tokens.dtype != np.int32 or {values.dtype, density.dtype} != {np.dtype(np.float32)}:
        raise JobError(f"{folder.url}/{name}: damaged: its arrays do not go together; run `pod-job evaluate` again")
    return Contexts(values, tokens, density)
