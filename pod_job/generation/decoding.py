"""The two programs of generation: prefill, which reads prompts into a cache, and decode, which adds tokens to it.

Prompts are aligned at their ends, so that every row writes the same slot of the cache and both programs have one
static shape. A call of decode adds some tokens to every row; between calls the host looks for stop strings.

B rows of all hosts, S positions of the longest prompt, T tokens of a call, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from pod_job.config.generate import GenerateConfig, cache_slots, call_tokens
from pod_job.config.schema import ExtractConfig, Positions
from pod_job.extraction.feeding import StepRows
from pod_job.extraction.quantize import as_stored
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.generation.completions import Ending
from pod_job.models.cache import Cache, empty_cache
from pod_job.models.decoder import Decoder, Output, Params

Extended = tuple[Output, Cache]

FREE = -1
"""In `forced`: the model chooses this token."""


class Progress(NamedTuple):
    """State of all rows. `token` is the last one chosen, at `position`; the model has not read it yet."""

    cache: Cache
    token: Int[Array, " B"]
    position: Int[Array, " B"]
    number: Int[Array, " B"]  # of the row's sample among all samples of the run
    done: Bool[Array, " B"]  # its last token was read
    read: Int[Array, ""]  # new tokens, by the model


class PrefillInput(NamedTuple):
    """Prompts, aligned at their ends. `forced` is FREE, or the first new token; `more`: a feeder has another wave."""

    token_ids: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    number: Int[Array, " B"]  # of the row's sample among all samples of the run
    forced: Int[Array, " B"]
    more: Int[Array, " B"]


class Generated(NamedTuple):
    """Result of either program on the devices.

    Attributes:
        taps: of prefill [B, S or 1, width] of the prompts, of decode [B, T, width] of the tokens read.
        tokens: of prefill [B], the first new ones; of decode [B, T], those chosen after each token read.
        going: of prefill whether any `more` was true, of decode whether any row goes on.
    """

    progress: Progress
    taps: dict[str, Shaped[Array, "B _ _"]]
    tokens: Int[Array, "B *T"]
    going: Shaped[Array, ""]


Prefill = Callable[[Params, PrefillInput], Generated]
Decode = Callable[[Params, Progress, Bool[Array, " B"], Int[Array, "B T"]], Generated]
"""Takes the rows that the host has stopped, and the forced tokens (or FREE) after each token read."""


@dataclass(frozen=True)
class Programs:
    """Both programs, compiled for one shape; a call of decode adds `call_tokens` tokens."""

    prefill: jax.stages.Compiled
    decode: jax.stages.Compiled
    call_tokens: int


def compile_generation(
    model: Decoder, params: Params, rows: StepRows, extract: ExtractConfig, ending: Ending
) -> Programs:
    """Compiles both programs for `rows.count` prompts of at most `extract.seq_len` tokens."""
    S, T = extract.seq_len, call_tokens(ending.generate.max_new_tokens)
    split, everywhere = rows.sharding, NamedSharding(rows.sharding.mesh, PartitionSpec())

    def argument(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows.count, *shape), dtype, sharding=split)

    progress = progress_shardings(model, rows)
    prompt_taps = {tap.name: split for tap in model.taps if extract.positions is not Positions.generated}
    prefill = jax.jit(
        prefill_function(model, extract, ending.generate),
        out_shardings=Generated(progress, prompt_taps, split, everywhere),  # type: ignore[arg-type]
    ).lower(params, PrefillInput(argument(S), argument(S), argument(S), argument(), argument(), argument()))  # type: ignore[arg-type]
    shapes = jax.tree.map(
        lambda value, sharding: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding),
        prefill.out_info.progress,
        progress,
    )
    token_taps = {tap.name: split for tap in model.taps}
    decode = jax.jit(
        decode_function(model, extract, ending),
        donate_argnums=1,
        out_shardings=Generated(progress, token_taps, split, everywhere),  # type: ignore[arg-type]
    ).lower(params, shapes, argument(dtype=bool), argument(T))
    options = model.placement.compiler_options
    return Programs(prefill.compile(options), decode.compile(options), T)


def progress_shardings(model: Decoder, rows: StepRows) -> Progress:
    """Returns the sharding of each array of Progress, in its place."""
    mesh, split = rows.sharding.mesh, rows.sharding
    everywhere = NamedSharding(mesh, PartitionSpec())
    keys = NamedSharding(mesh, PartitionSpec(None, model.placement.rows, None, model.placement.heads))
    cache = Cache(keys, keys, split, everywhere)  # type: ignore[arg-type]
    return Progress(cache, split, split, split, split, everywhere)  # type: ignore[arg-type]


def prefill_function(model: Decoder, extract: ExtractConfig, generate: GenerateConfig) -> Prefill:
    """Returns the program that reads prompts into a new cache and chooses the first new tokens."""
    slots = cache_slots(extract.seq_len, generate.max_new_tokens)
    dtype = DTYPE_OF[extract.dtype.value]

    def prefill(params: Params, prompts: PrefillInput) -> Generated:
        token_ids, segment_ids, positions, number, forced, more = prompts
        B, S = token_ids.shape
        applied = model.apply(
            params,
            token_ids,
            empty_cache(model.arch, B, slots, model.dtype),
            positions=positions,
            segment_ids=segment_ids,
            select=jnp.full((B, 1), S - 1) if extract.positions is Positions.last else None,
            return_activations=extract.positions is not Positions.generated,
            method="extend",
        )
        (logits, activations), cache = cast(Extended, applied)
        assert logits is not None
        token = choose(logits[:, 0], number, jnp.int32(0), forced, generate)
        progress = Progress(cache, token, positions[:, -1] + 1, number, segment_ids[:, -1] == 0, jnp.int32(0))
        taps = {name: as_stored(value, dtype) for name, value in activations.items()}
        return Generated(progress, taps, token, jnp.max(more))

    return prefill


def decode_function(model: Decoder, extract: ExtractConfig, ending: Ending) -> Decode:
    """Returns the program that reads the last token of every row and chooses the next, T times."""
    generate, dtype = ending.generate, DTYPE_OF[extract.dtype.value]
    T, end_tokens = call_tokens(generate.max_new_tokens), jnp.array(ending.end_tokens, jnp.int32)

    def decode(params: Params, progress: Progress, stopped: Bool[Array, " B"], forced: Int[Array, "B T"]) -> Generated:
        def read(progress: Progress, forced: Int[Array, " B"]) -> tuple[Progress, tuple[dict[str, Array], Array]]:
            applied = model.apply(
                params,
                progress.token[:, None],
                progress.cache,
                positions=progress.position[:, None],
                return_activations=True,
                method="extend",
            )
            (logits, activations), cache = cast(Extended, applied)
            assert logits is not None
            count = progress.read + 1
            ended = jnp.isin(progress.token, end_tokens) | (count >= generate.max_new_tokens)
            token = choose(logits[:, 0], progress.number, count, forced, generate)
            moved = Progress(cache, token, progress.position + 1, progress.number, progress.done | ended, count)
            return moved, ({name: as_stored(value[:, 0], dtype) for name, value in activations.items()}, token)

        begun = progress._replace(done=progress.done | stopped)
        progress, (taps, tokens) = jax.lax.scan(read, begun, forced.T, length=T)
        taps = {name: value.swapaxes(0, 1) for name, value in taps.items()}
        return Generated(progress, taps, tokens.T, jnp.any(~progress.done))

    return decode


def choose(
    logits: Float[Array, "B V"],
    number: Int[Array, " B"],
    count: Int[Array, ""],
    forced: Int[Array, " B"],
    generate: GenerateConfig,
) -> Int[Array, " B"]:
    """Returns the next token of every row: the one it is forced to, else the likeliest, else a draw at `temperature`.

    A draw depends on the seed, the sample's number and the token's only, so it is the same on any mesh.
    """
    if generate.temperature == 0:
        free = jnp.argmax(logits, axis=-1)
    else:
        key = jax.random.key(generate.seed)
        keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(key, number), count))(number)
        free = jax.vmap(jax.random.categorical)(keys, logits / generate.temperature)
    return jnp.where(forced == FREE, free, forced).astype(jnp.int32)
