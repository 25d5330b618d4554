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
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pod_job.config.generate import GenerateConfig, cache_slots, call_tokens
from pod_job.config.schema import ExtractConfig, Positions
from pod_job.extraction.quantize import as_stored
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.generation.completions import Ending
from pod_job.models.cache import Cache, empty_cache
from pod_job.models.decoder import Decoder, Output

Extended = tuple[Output, Cache]

FREE = -1
"""In `forced`: the model chooses this token."""


class Progress(NamedTuple):
    """Where all rows are. `token` is the last one chosen, at `position`; the model has not read it yet."""

    cache: Cache
    token: Int[Array, " B"]
    position: Int[Array, " B"]
    number: Int[Array, " B"]  # of the row's sample among all samples of the run
    done: Bool[Array, " B"]  # its last token was read
    read: Int[Array, ""]  # new tokens, by the model


@dataclass(frozen=True)
class Programs:
    """Compiled for one shape.

    `prefill(params, token_ids, segment_ids, positions, number, forced [B], more [B])` gives (progress, taps of the
    prompts, first tokens [B], whether any `more` was true). `decode(params, progress, stopped [B], forced [B, T])`
    gives (progress, taps of the tokens read [B, T, width], tokens chosen after each [B, T], whether any row goes on).
    """

    prefill: Callable[..., tuple[Progress, dict[str, Array], Array, Array]]
    decode: Callable[..., tuple[Progress, dict[str, Array], Array, Array]]
    call_tokens: int


def compile_generation(
    model: Decoder,
    params: Any,
    mesh: Mesh,
    rows: NamedSharding,
    global_rows: int,
    extract: ExtractConfig,
    ending: Ending,
) -> Programs:
    """Both programs for `global_rows` rows of `extract.seq_len` tokens at most, split by `rows`."""
    S, T = extract.seq_len, call_tokens(ending.generate.max_new_tokens)
    everywhere = NamedSharding(mesh, PartitionSpec())
    of_cache = NamedSharding(mesh, PartitionSpec(None, model.placement.rows, None, model.placement.heads))
    progress = Progress(Cache(of_cache, of_cache, rows, everywhere), rows, rows, rows, rows, everywhere)  # type: ignore[arg-type]
    outputs = (progress, {tap.name: rows for tap in model.taps}, rows, everywhere)
    prompt_taps = {tap.name: rows for tap in model.taps if extract.positions is not Positions.generated}

    def argument(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((global_rows, *shape), dtype, sharding=rows)

    begin = prefill_function(model, extract, ending.generate)
    arguments = (params, argument(S), argument(S), argument(S), argument(), argument(), argument())
    prefill = jax.jit(begin, out_shardings=(progress, prompt_taps, rows, everywhere)).lower(*arguments)
    shapes = jax.tree.map(
        lambda value, sharding: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding),
        prefill.out_info[0],
        progress,
    )
    further = decode_function(model, extract, ending)
    decode = jax.jit(further, donate_argnums=1, out_shardings=outputs).lower(
        params, shapes, argument(dtype=bool), argument(T)
    )
    options = model.placement.compiler_options
    return Programs(prefill.compile(options), decode.compile(options), T)


def prefill_function(model: Decoder, extract: ExtractConfig, generate: GenerateConfig) -> Callable[..., Any]:
    slots = cache_slots(extract.seq_len, generate.max_new_tokens)
    dtype = DTYPE_OF[extract.dtype.value]

    def prefill(
        params: Any,
        token_ids: Int[Array, "B S"],
        segment_ids: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        number: Int[Array, " B"],
        forced: Int[Array, " B"],
        more: Int[Array, " B"],
    ) -> tuple[Progress, dict[str, Array], Array, Array]:
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
        return progress, {name: as_stored(value, dtype) for name, value in activations.items()}, token, jnp.max(more)

    return prefill


def decode_function(model: Decoder, extract: ExtractConfig, ending: Ending) -> Callable[..., Any]:
    generate, dtype = ending.generate, DTYPE_OF[extract.dtype.value]
    T, end_tokens = call_tokens(generate.max_new_tokens), jnp.array(ending.end_tokens, jnp.int32)

    def decode(
        params: Any, progress: Progress, stopped: Bool[Array, " B"], forced: Int[Array, "B T"]
    ) -> tuple[Progress, dict[str, Array], Array, Array]:
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
        return progress, taps, tokens.T, jnp.any(~progress.done)

    return decode


def choose(
    logits: Float[Array, "B V"],
    number: Int[Array, " B"],
    count: Int[Array, ""],
    forced: Int[Array, " B"],
    generate: GenerateConfig,
) -> Int[Array, " B"]:
    """The next token of every row: the one it is forced to, else the likeliest, else a draw at `temperature`.

    A draw depends on the seed, the sample's number and the token's only, so it is the same on any mesh.
    """
    if generate.temperature == 0:
        free = jnp.argmax(logits, axis=-1)
    else:
        key = jax.random.key(generate.seed)
        keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.fold_in(key, number), count))(number)
        free = jax.vmap(jax.random.categorical)(keys, logits / generate.temperature)
    return jnp.where(forced == FREE, free, forced).astype(jnp.int32)
