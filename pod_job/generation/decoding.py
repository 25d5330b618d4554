"""The two programs of generation: prefill, which reads prompts into rows of a cache, and decode, which adds tokens.

Prompts are packed for prefill, as in extraction, and each is then put into a free row of the cache so that it ends
where the next token of every row goes. Decode adds some tokens to every row in a call; between calls the host looks
where completions end, and their rows are free again.

B rows of the cache of all hosts, P rows of prefill, S positions of one, M prompts in one, T tokens of a call, V
vocabulary.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from pod_job.config.generate import GenerateConfig, cache_slots, call_tokens
from pod_job.config.schema import ExtractConfig, Positions
from pod_job.extraction.quantize import as_stored
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.generation.shape import GenerationShape
from pod_job.models.cache import Cache, DeltaStates, Kept, KeyValues, Prefix, empty_cache, no_key_values
from pod_job.models.decoder import Decoder, Output, Params
from pod_job.models.layer_attention import Tokens
from pod_job.models.position_blocks import computes_filled
from pod_job.models.selected_positions import at_positions

FREE = -1
"""In `forced`: the model chooses this token. In `target`: no prompt is here."""


class Rows(NamedTuple):
    """State of all rows of the cache. `token` is the last one chosen, at `position`; the model has not read it yet."""

    cache: Cache
    token: Int[Array, " B"]
    position: Int[Array, " B"]
    number: Int[Array, " B"]  # of the row's sample among all samples of the run
    read: Int[Array, " B"]  # new tokens, by the model


class PackedPrompts(NamedTuple):
    """Prompts to read, P rows of which each device has one. `forced` is FREE, or the first new token.

    Attributes:
        last: position of each prompt's last token in its row of prefill.
        target: row of the cache that takes the prompt, among those of the same device; FREE after the last prompt.
        number: of the prompt's sample among all samples of the run.
        behind: tokens of the shared prefix before those that are here: all, or 0.
    """

    token_ids: Int[Array, "P S"]
    segment_ids: Int[Array, "P S"]
    positions: Int[Array, "P S"]
    last: Int[Array, "P M"]
    target: Int[Array, "P M"]
    number: Int[Array, "P M"]
    forced: Int[Array, "P M"]
    behind: Int[Array, "P M"]


class Generated(NamedTuple):
    """Result of either program on the devices.

    Attributes:
        taps: of prefill [P, S or M, width] of the prompts, of decode [B, T, width] of the tokens read.
        tokens: of prefill [P, M], the first new ones; of decode [B, T], those chosen after each token read.
    """

    rows: Rows
    taps: dict[str, Shaped[Array, "B _ _"]]
    tokens: Int[Array, "B _"]


Prefill = Callable[[Params, Rows, KeyValues | None, PackedPrompts], Generated]
"""Takes the keys and values of the shared prefix, one row of each device; None: the program has none."""
Decode = Callable[[Params, Rows, Int[Array, "B T"], Bool[Array, " B"]], Generated]
"""Takes the forced tokens (or FREE) after each token read, and which rows have a prompt.

The others are computed too, for nothing, as sequences without tokens before: nothing is read from the cache for them.
"""


@dataclass(frozen=True)
class Programs:
    """All programs, compiled for one shape.

    Attributes:
        join: gives weights that decode takes beside the model's own.
        begin: gives rows without prompts.
        call_tokens: tokens that a call of decode adds.
        prefill_length: positions of the row of prefill, one of each device.
        prompts_per_row: most prompts in one of those.
        computes_filled: prefill computes positions up to the last that holds a token of some row; False: all.
        no_prefix: gives the keys and values of a prefix without tokens; None: prefill takes no prefix.
        take_prefix: gives as a prefix what was read into the first row of each device, before any decode.
    """

    join: jax.stages.Compiled
    begin: jax.stages.Compiled
    prefill: jax.stages.Compiled
    decode: jax.stages.Compiled
    call_tokens: int
    prefill_length: int
    prompts_per_row: int
    computes_filled: bool
    no_prefix: jax.stages.Compiled | None = None
    take_prefix: jax.stages.Compiled | None = None

    def decode_params(self, params: Params) -> Params:
        """Returns the weights that decode takes."""
        return with_joined(params, self.join(params))


def with_joined(params: Params, joined: Mapping[str, Array | jax.ShapeDtypeStruct]) -> Params:
    return {"params": {**params["params"], **joined}}


def compile_generation(
    model: Decoder, params: Params, shape: GenerationShape, extract: ExtractConfig, generate: GenerateConfig
) -> Programs:
    """Compiles the programs for prompts of at most `extract.seq_len` tokens."""
    S, T, M = shape.prefill_length, call_tokens(generate.max_new_tokens), shape.prompts_per_row
    split = shape.rows.sharding

    def argument(rows: int, size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, size), jnp.int32, sharding=split)

    slots, shardings = cache_slots(extract.seq_len, generate.max_new_tokens), row_state_shardings(model, split)
    begin = jax.jit(lambda: no_prompts(model, shape.rows.count, slots), out_shardings=shardings).lower()  # type: ignore[arg-type]
    rows = laid_out(begin.out_info, shardings)
    taps = {tap.name: split for tap in model.taps}
    prompt_taps = {} if extract.positions is Positions.generated else taps
    prompts, packed = argument(shape.prefill_rows.count, S), argument(shape.prefill_rows.count, M)
    options = model.placement.compiler_options
    no_prefix = take_prefix = prefix = None
    if shape.prefix:
        of_prefix = shardings.cache.kept.keys
        dtype = model.placement.kept_dtype(model.dtype)
        none = functools.partial(no_key_values, model.arch, shape.prefill_rows.count, shape.prefix, dtype)
        no_prefix = jax.jit(none, out_shardings=of_prefix).lower().compile(options)
        prefix = laid_out(jax.eval_shape(none), of_prefix)
        taking = jax.jit(prefix_function(model, shape.prefix), out_shardings=of_prefix).lower(rows)
        take_prefix = taking.compile(options)
    prefill = jax.jit(
        prefill_function(model, extract, generate),
        donate_argnums=1,
        out_shardings=Generated(shardings, prompt_taps, split),  # type: ignore[arg-type]
    ).lower(params, rows, prefix, PackedPrompts(*[prompts] * 3, *[packed] * 5))  # type: ignore[arg-type]
    joining = jax.jit(model.joined_weights).lower(params)
    join = joining.compile(options)
    joined = laid_out(joining.out_info, join.output_shardings)
    active = jax.ShapeDtypeStruct((shape.rows.count,), jnp.bool_, sharding=split)
    decode = jax.jit(
        decode_function(model, extract, generate),
        donate_argnums=1,
        out_shardings=Generated(shardings, taps, split),  # type: ignore[arg-type]
    ).lower(with_joined(params, joined), rows, argument(shape.rows.count, T), active)  # type: ignore[arg-type]
    return Programs(
        join,
        begin.compile(options),
        prefill.compile(options),
        decode.compile(options),
        T,
        S,
        M,
        computes_filled=computes_filled(model.placement, S),
        no_prefix=no_prefix,
        take_prefix=take_prefix,
    )


def laid_out(shapes: Any, shardings: Any) -> Any:
    """Returns a pytree of shapes with the sharding of each."""
    return jax.tree.map(
        lambda value, sharding: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding), shapes, shardings
    )


def row_state_shardings(model: Decoder, split: NamedSharding) -> Rows:
    """Returns the sharding of each array of Rows, in its place."""
    kept = kept_as(model, lambda spec: NamedSharding(split.mesh, spec))
    cache = Cache(kept, NamedSharding(split.mesh, PartitionSpec()))  # type: ignore[arg-type]
    return Rows(cache, split, split, split, split)  # type: ignore[arg-type]


def kept_as(model: Decoder, of_spec: Callable[[PartitionSpec], Any]) -> Kept:
    """Returns in each array's place what `of_spec` gives for its split: of rows, and with sharding=tensor of heads."""
    placement = model.placement
    keys, states = (
        of_spec(PartitionSpec(None, placement.rows, heads)) for heads in (placement.heads, placement.delta_heads)
    )
    return Kept(KeyValues(keys, keys), None if model.arch.delta is None else DeltaStates(*[states] * 4))


def no_prompts(model: Decoder, rows: int, slots: int) -> Rows:
    """Returns rows without prompts."""
    zeros = jnp.zeros(rows, jnp.int32)
    keys_dtype = model.placement.kept_dtype(model.dtype)
    return Rows(empty_cache(model.arch, rows, slots, model.dtype, keys_dtype), zeros, zeros, zeros, zeros)


def prefill_function(model: Decoder, extract: ExtractConfig, generate: GenerateConfig) -> Prefill:
    """Returns the program that reads prompts into free rows of the cache and chooses the first new tokens."""
    dtype = DTYPE_OF[extract.dtype.value]

    def prefill(params: Params, rows: Rows, prefix: KeyValues | None, prompts: PackedPrompts) -> Generated:
        applied = model.apply(
            params,
            Tokens(prompts.token_ids, prompts.positions, prompts.segment_ids),
            prompts.last,
            max(rows.cache.slots, prompts.token_ids.shape[1]),
            prefix=None if prefix is None else Prefix(prefix, behind_of_positions(prompts)),
            select=prompts.last if extract.positions is Positions.last else None,
            return_activations=extract.positions is not Positions.generated,
            method="read",
        )
        (logits, activations), kept = cast(tuple[Output, Kept], applied)
        assert logits is not None
        token = choose(logits, prompts.number, jnp.zeros_like(prompts.number), prompts.forced, generate)
        taps = {name: as_stored(value, dtype) for name, value in activations.items()}
        return Generated(put_prompts(model, rows, ReadPrompts(prompts, token, kept, prefix)), taps, token)

    return prefill


def behind_of_positions(prompts: PackedPrompts) -> Int[Array, "P S"]:
    """Returns how many tokens of the prefix each position comes after."""
    own = jnp.take_along_axis(prompts.behind, jnp.maximum(prompts.segment_ids - 1, 0), axis=1)
    return jnp.where(prompts.segment_ids > 0, own, 0)


def prefix_function(model: Decoder, slots: int) -> Callable[[Rows], KeyValues]:
    """Returns the program that gives the last slots of the first row of each device."""
    split = kept_as(model, lambda spec: spec).keys

    def take(rows: Rows) -> KeyValues:
        return jax.shard_map(
            lambda keys: jax.tree.map(lambda x: x[:, :1, ..., -slots:], keys),
            mesh=model.placement.mesh,
            in_specs=(split,),
            out_specs=split,
            check_vma=False,
        )(rows.cache.kept.keys)

    return take


class ReadPrompts(NamedTuple):
    """Prompts with the first new token of each, what is kept of them, and the prefix that they share, if any."""

    prompts: PackedPrompts
    token: Int[Array, "P M"]
    kept: Kept
    prefix: KeyValues | None


def put_prompts(model: Decoder, rows: Rows, read: ReadPrompts) -> Rows:
    """Returns the rows with every prompt in its target, its last token in the slot before the next one."""
    placement = model.placement

    def put(rows: Rows, read: ReadPrompts) -> Rows:
        slot, slots = rows.cache.slot, rows.cache.slots
        prompts, token, kept, prefix = read
        position = at_positions(prompts.positions, prompts.last) + 1

        def put_one(m: Array, caches: Kept) -> Kept:
            target, last = prompts.target[0, m], prompts.last[0, m]
            own = position[0, m] - prompts.behind[0, m]

            def replaced(cache: Array, row: Array) -> Array:
                if every:
                    earlier = jax.lax.dynamic_slice_in_dim(cache, target, 1, axis=1)
                    row = jnp.where(target == FREE, earlier, row)
                return jax.lax.dynamic_update_slice_in_dim(cache, row, target, axis=1)

            def turned(cache: Array, new: Array, ahead: Array | None = None) -> Array:
                # A row of prefill may be longer than one of the cache, but no prompt is.
                start = jnp.clip(last + 1 - slots, 0, new.shape[-1] - slots)
                row = jax.lax.dynamic_slice_in_dim(new, start, slots, axis=-1)
                row = jnp.roll(row, slot - 1 - (last - start), axis=-1)
                return replaced(cache, row if ahead is None else after_prefix(row, ahead, slot, own))

            def copied(cache: Array, new: Array) -> Array:
                return replaced(cache, jax.lax.dynamic_slice_in_dim(new, m, 1, axis=1))

            keys = jax.tree.map(turned, caches.keys, kept.keys, *([] if prefix is None else [prefix]))
            return Kept(keys, jax.tree.map(copied, caches.states, kept.states))

        # A CPU leaves out the places of a row of prefill that have no prompt; a TPU's forecast counts a fixed number.
        every = placement.platform != "cpu"
        count = prompts.target.shape[1] if every else jnp.sum(prompts.target != FREE)
        caches = jax.lax.fori_loop(0, count, put_one, rows.cache.kept)
        target = jnp.where(prompts.target == FREE, len(rows.token), prompts.target)  # past the end: dropped

        def into(old: Array, new: Array | int) -> Array:
            return old.at[target].set(new, mode="drop")

        return Rows(
            Cache(caches, slot),
            into(rows.token, token),
            into(rows.position, position),
            into(rows.number, prompts.number),
            into(rows.read, 0),
        )

    # Every device puts the prompts that it read into rows of its own.
    split = PartitionSpec(placement.rows)
    caches = kept_as(model, lambda spec: spec)
    state = Rows(Cache(caches, PartitionSpec()), *[split] * 4)  # type: ignore[arg-type]
    packed = PackedPrompts(*[split] * len(PackedPrompts._fields))  # type: ignore[arg-type]
    parts = ReadPrompts(packed, split, caches, None if read.prefix is None else caches.keys)  # type: ignore[arg-type]
    return jax.shard_map(put, mesh=placement.mesh, in_specs=(state, parts), out_specs=state, check_vma=False)(
        rows, read
    )


def after_prefix(
    row: Shaped[Array, "L 1 K H C"], prefix: Shaped[Array, "L 1 K H _"], slot: Int[Array, ""], own: Int[Array, ""]
) -> Shaped[Array, "L 1 K H C"]:
    """Returns a row of the cache whose `own` latest tokens, which end before `slot`, come after those of the prefix."""
    slots = row.shape[-1]
    before = jnp.pad(prefix, [(0, 0)] * 4 + [(slots - prefix.shape[-1], 0)])
    back = (slot - 1 - jnp.arange(slots)) % slots
    return jnp.where(back < own, row, jnp.roll(before, slot - own, axis=-1))


def decode_function(model: Decoder, extract: ExtractConfig, generate: GenerateConfig) -> Decode:
    """Returns the program that reads the last token of every row and chooses the next, T times."""
    dtype, T = DTYPE_OF[extract.dtype.value], call_tokens(generate.max_new_tokens)

    def decode(params: Params, rows: Rows, forced: Int[Array, "B T"], active: Bool[Array, " B"]) -> Generated:
        rows = rows._replace(position=jnp.where(active, rows.position, 0))

        def read(rows: Rows, forced: Int[Array, " B"]) -> tuple[Rows, tuple[dict[str, Array], Array]]:
            applied = model.apply(
                params,
                rows.token[:, None],
                rows.cache,
                positions=rows.position[:, None],
                return_activations=True,
                method="extend",
            )
            (logits, activations), cache = cast(tuple[Output, Cache], applied)
            assert logits is not None
            token = choose(logits[:, 0], rows.number, rows.read + 1, forced, generate)
            moved = Rows(cache, token, rows.position + 1, rows.number, rows.read + 1)
            return moved, ({name: as_stored(value[:, 0], dtype) for name, value in activations.items()}, token)

        rows, (taps, tokens) = jax.lax.scan(read, rows, forced.T, length=T)
        return Generated(rows, {name: value.swapaxes(0, 1) for name, value in taps.items()}, tokens.T)

    return decode


def choose(
    logits: Float[Array, "*B V"],
    number: Int[Array, "*B"],
    count: Int[Array, "*B"],
    forced: Int[Array, "*B"],
    generate: GenerateConfig,
) -> Int[Array, "*B"]:
    """Returns the next token of every row: the one it is forced to, else the likeliest, else a draw at `temperature`.

    A draw depends on the seed, the sample's number and the token's only, so it is the same on any mesh, in any row.
    """
    if generate.temperature == 0:
        free = jnp.argmax(logits, axis=-1)
    else:
        key = jax.random.key(generate.seed)

        def draw(logits: Array, number: Array, count: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(key, number), count)
            return jax.random.categorical(own, logits / generate.temperature)

        vocabulary = logits.shape[-1]
        drawn = jax.vmap(draw)(logits.reshape(-1, vocabulary), number.reshape(-1), count.reshape(-1))
        free = drawn.reshape(number.shape)
    return jnp.where(forced == FREE, free, forced).astype(jnp.int32)
