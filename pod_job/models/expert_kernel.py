"""Mixture of small experts on a TPU as one kernel: rows are gathered, multiplied, activated and added up on the chip.

Tokens pass through the core's memory in chunks, and with each chunk the weights of every expert, one after the other:
what an expert reads and gives never lies in the chip's memory. Pairs of (token, expert) are sorted by expert before.
While a tile of pairs is multiplied, the vectors of the next one are gathered, and those of the one before added up.

With the norm between them, the kernel takes the residual stream and gives it back with the experts' outputs: a norm and
a sum of their own would take it through the chip's memory several times.

In the core's memory a token's vector is a few whole registers, so that one is moved by its number: as words of 32 bits,
of which each holds column d and column d + D/2 in bfloat16; its sum over experts in float32.

T tokens of a device, C of a chunk, D hidden, E experts, K of them for a token, F size of an expert, W words of a chunk.
"""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pod_job.models.arch import Arch
from pod_job.models.placement import KERNEL_KIND

LANES, SUBLANES = 128, 8
TILE = 128
"""Pairs that are multiplied together: more are more efficient, and leave more places empty at an expert's end."""
STAGE = 256
"""Tokens that go from the chip's memory to the core's, and back, together."""
GROUP = 8
"""Rows that are added together: all are read before the first is written, as the tokens of an expert differ."""
COLUMNS = 256
"""Columns of a product that are computed together."""
KERNEL_MEMORY, SPARE_MEMORY = 120 << 20, 6 << 20
"""Bytes of the core's memory that the kernel asks for, of 128 MiB on v6e, and may take for what it computes."""
KERNEL_NAME, STREAM_KERNEL_NAME = "mixture_of_experts", "stream_with_experts"
"""Names in compiled programs, of the kernel for tokens as experts read them and for the residual stream."""
WORDS_MULTIPLE = 1024
PLACE_BITS = 16
HIGH_HALF = -(1 << 16)
"""Mask of the upper 16 bits of a word."""


class StreamNorm(NamedTuple):
    """RMSNorm of the residual stream that experts read: its weight in float32, and what is added to mean squares."""

    scale: Float[Array, " D"]
    eps: float


def kernel_fits(arch: Arch, device_kind: str | None, T: int, dtype: Any) -> bool:
    """Returns whether the kernel takes a model's experts, and so many tokens of a device."""
    plain = arch.gated and arch.activation in ("silu", "swish") and arch.glu_limit is None and not arch.mlp_bias
    fits = device_kind == KERNEL_KIND and dtype == jnp.bfloat16
    return plain and fits and chunk_tokens(T, arch.hidden, arch.mlp) > 0


def chunk_tokens(T: int, D: int, F: int) -> int:
    """Returns how many tokens a chunk has, a multiple of STAGE; 0 where the kernel does not take such sizes."""
    if D % (2 * LANES * SUBLANES) or F % LANES or T < STAGE:
        return 0
    fixed = 2 * 2 * 3 * D * F + TILE * 2 * (D + F) + TILE * (2 + 4) * D + STAGE * 2 * D + SUBLANES * 4 * D
    most = (KERNEL_MEMORY - fixed) // ((2 + 4) * D) // STAGE * STAGE
    if most <= 0:
        return 0
    chunks = -(-T // min(most, 1 << PLACE_BITS))
    return -(-T // chunks // STAGE) * STAGE


def mixture_by_kernel(
    weights: dict[str, Float[Array, "E ..."]],
    tokens: Float[Array, "T D"],
    experts: Int[Array, "T K"],
    shares: Float[Array, "T K"],
    norm: StreamNorm | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "T D"]:
    """Returns the sum of each token's experts' outputs times their shares, which are rounded to bfloat16.

    Args:
        experts: of each token, all different; E where the expert is another device's.
        norm: tokens are the residual stream, which experts read through this norm, and which is in the sum; None: they
            are what experts read, and are not in it.
        interpret: runs it without a TPU, for tests.
    """
    (T, D), (E, _, F), K = tokens.shape, weights["up"].shape, experts.shape[1]
    C = chunk_tokens(T, D, F)
    chunks = -(-T // C)
    tokens, shares = (jnp.pad(x, ((0, chunks * C - T), (0, 0))) for x in (tokens, shares))
    experts = jnp.pad(experts, ((0, chunks * C - T), (0, 0)), constant_values=E)
    starts, words = sorted_pairs(experts.reshape(chunks, C, K), shares.reshape(chunks, C, K), E)

    def of_expert(chunk: Any, expert: Any, starts: Any) -> tuple[Any, int, int]:
        return expert, 0, 0

    memory = functools.partial(pl.BlockSpec, memory_space=pl.ANY)
    scale = jnp.ones(D, jnp.float32) if norm is None else norm.scale
    vector = pl.BlockSpec((1, D), lambda chunk, expert, starts: (0, 0))
    wide, narrow = pl.BlockSpec((1, D, F), of_expert), pl.BlockSpec((1, F, D), of_expert)
    out = pl.pallas_call(
        functools.partial(run_expert, C=C, eps=None if norm is None else norm.eps),
        out_shape=jax.ShapeDtypeStruct(tokens.shape, tokens.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(chunks, E),
            in_specs=[memory(), memory(), vector, wide, wide, narrow],
            out_specs=memory(),
            scratch_shapes=[
                pltpu.SMEM((len(words) // chunks,), jnp.int32),
                pltpu.SMEM((2,), jnp.int32),
                pltpu.VMEM((C * D // (2 * LANES), LANES), jnp.int32),
                pltpu.VMEM(((C + SUBLANES) * D // LANES, LANES), jnp.float32),
                pltpu.VMEM((TILE * D // (2 * LANES), LANES), jnp.int32),
                pltpu.VMEM((TILE, D), jnp.bfloat16),
                pltpu.VMEM((TILE, F), jnp.bfloat16),
                pltpu.VMEM((TILE * D // LANES, LANES), jnp.float32),
                pltpu.VMEM((STAGE, D), jnp.bfloat16),
                pltpu.SemaphoreType.DMA,
            ],
        ),
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=KERNEL_MEMORY + SPARE_MEMORY),
        name=KERNEL_NAME if norm is None else STREAM_KERNEL_NAME,
        interpret=interpret,
    )(starts, words, tokens, scale[None], weights["gate"], weights["up"], weights["down"])
    return out[:T]


def sorted_pairs(
    experts: Int[Array, "chunks C K"], shares: Float[Array, "chunks C K"], E: int
) -> tuple[Int[Array, " _"], Int[Array, " _"]]:
    """Returns where each expert's pairs begin among those of a chunk, and the pairs by expert, as `Memory.words`."""
    chunks, C, K = experts.shape
    bits = lax.bitcast_convert_type(shares.astype(jnp.bfloat16).astype(jnp.float32), jnp.int32)
    words = bits | jnp.arange(C, dtype=jnp.int32)[:, None]
    keys, words = lax.sort((experts.reshape(chunks, -1), words.reshape(chunks, -1)), num_keys=1, is_stable=False)
    starts = jnp.sum(keys[:, None] < jnp.arange(E + 1)[:, None], axis=-1, dtype=jnp.int32)
    W = -(-(C * K + TILE) // WORDS_MULTIPLE) * WORDS_MULTIPLE
    return starts.reshape(-1), jnp.pad(words, ((0, 0), (0, W - C * K))).reshape(-1)


class Memory(NamedTuple):
    """References that the kernel of a chunk and an expert gets: the arguments, the result, and the core's memory.

    Attributes:
        words: of the chunk, sorted by expert: the place of a token, and its share as the upper half.
        waiting: where the pairs begin and end whose outputs `y` holds and `sums` lacks.
        rows: the chunk's tokens. `gathered`: those of the next tile; `x` the same, or this one's, as a matrix.
    """

    starts: Any
    all_words: Any
    tokens: Any
    scale: Any
    gate: Any
    up: Any
    down: Any
    out: Any
    words: Any
    waiting: Any
    rows: Any
    sums: Any
    gathered: Any
    x: Any
    act: Any
    y: Any
    stage: Any
    done: Any

    @property
    def in_words(self) -> int:
        """Registers' rows of a token in words of 32 bits."""
        return self.x.shape[1] // (2 * LANES)

    @property
    def in_sums(self) -> int:
        """Registers' rows of a token in float32."""
        return self.x.shape[1] // LANES

    def copy(self, source: Any, target: Any) -> None:
        transfer = pltpu.make_async_copy(source, target, self.done)
        transfer.start()
        transfer.wait()


def run_expert(*references: Any, C: int, eps: float | None) -> None:
    """Kernel of one chunk of C tokens and one expert; of the norm of the residual stream where there is `eps`."""
    memory = Memory(*references)
    chunk, expert, E = pl.program_id(0), pl.program_id(1), pl.num_programs(1)

    @pl.when(expert == 0)
    def _() -> None:
        load_chunk(memory, chunk, C, eps)
        lax.fori_loop(0, TILE // GROUP, lambda group, _: gather(memory, 0, group * GROUP), None)
        lax.fori_loop(0, memory.in_words, lambda j, _: spread(memory, j), None)

    begin, end = (memory.starts[chunk * (E + 1) + expert + i] for i in range(2))
    lax.fori_loop(0, pl.cdiv(end - begin, TILE), lambda tile, _: run_tile(memory, begin + tile * TILE, end, C), None)

    @pl.when(expert == E - 1)
    def _() -> None:
        lax.fori_loop(0, TILE // GROUP, lambda group, _: add(memory, group * GROUP, C), None)
        store_chunk(memory, chunk, C)


def run_tile(memory: Memory, at: Int[Array, ""], end: Int[Array, ""], C: int) -> None:
    """Multiplies the pairs from `at` on, of an expert whose last one is before `end`."""
    # The pairs of the next expert, whichever has some, follow.
    after, (F, D) = jnp.where(at + TILE < end, at + TILE, end), (memory.act.shape[1], memory.x.shape[1])
    wide = math.gcd(F, COLUMNS)
    # Between the products, as the compiler overlaps what lies near; `y` is free once all is added up.
    groups = range(0, TILE, GROUP)
    beside = [functools.partial(add, memory, first, C) for first in groups]
    beside += [functools.partial(gather, memory, after, first) for first in groups]
    share = -(-len(beside) * wide // (2 * F))
    for start in range(0, F, wide):
        products = []
        for weight in (memory.gate, memory.up):
            products.append(dot(memory.x[...], weight[0, :, start : start + wide]))
            for part in beside[:share]:
                part()
            del beside[:share]
        gate, up = products
        memory.act[:, start : start + wide] = (gate * jax.nn.sigmoid(gate) * up).astype(memory.act.dtype)
    turns = D // COLUMNS
    for turn in range(turns):
        y = dot(memory.act[...], memory.down[0, :, turn * COLUMNS : (turn + 1) * COLUMNS])
        for i in range(turn, memory.in_words, turns):
            spread(memory, i)
        for i in range(COLUMNS // LANES):
            places = pl.ds(turn * COLUMNS // LANES + i, TILE, stride=memory.in_sums)
            memory.y[places, :] = y[:, i * LANES : (i + 1) * LANES]
    memory.waiting[0], memory.waiting[1] = at, after


def dot(x: Float[Array, "R i"], w: Float[Array, "i o"]) -> Float[Array, "R o"]:
    return jnp.dot(x, w, preferred_element_type=jnp.float32)


def registers(place: Any, size: int) -> Any:
    """Returns where the rows (or columns) of the place lie, of which each has so many."""
    return pl.ds(pl.multiple_of(place * size, size), size)


def gather(memory: Memory, at: Int[Array, ""] | int, first: Int[Array, ""] | int) -> None:
    """Brings the vectors of a group of the pairs from `at` on together."""
    size = memory.in_words
    for r in [first + i for i in range(GROUP)]:
        token = memory.words[at + r] & ~HIGH_HALF
        memory.gathered[registers(r, size), :] = memory.rows[registers(token, size), :]


def spread(memory: Memory, j: Int[Array, ""] | int) -> None:
    """Writes LANES columns of each half of the gathered vectors into the matrix."""
    word, half = memory.gathered[pl.ds(j, TILE, stride=memory.in_words), :], memory.x.shape[1] // 2
    for start, bits in ((0, word << 16), (half, word & HIGH_HALF)):
        columns = registers(start // LANES + j, LANES)
        memory.x[:, columns] = lax.bitcast_convert_type(bits, jnp.float32).astype(memory.x.dtype)


def add(memory: Memory, first: Int[Array, ""] | int, C: int) -> None:
    """Adds the waiting outputs of a group of pairs, times their shares, to the sums of their tokens."""
    (at, end), size = (memory.waiting[0], memory.waiting[1]), memory.in_sums
    group = [first + i for i in range(GROUP)]
    words = [memory.words[at + r] for r in group]
    # Places past the expert's last pair are added to a row that nobody reads.
    rows = [jnp.where(at + r < end, word & ~HIGH_HALF, C) for r, word in zip(group, words, strict=True)]
    places = [registers(row, size) for row in rows]
    totals = []
    for r, word, place in zip(group, words, places, strict=True):
        share = lax.bitcast_convert_type(jnp.full((size, LANES), word & HIGH_HALF, jnp.int32), jnp.float32)
        totals.append(memory.sums[place, :] + share * memory.y[registers(r, size), :])
    for place, total in zip(places, totals, strict=True):
        memory.sums[place, :] = total


def load_chunk(memory: Memory, chunk: Int[Array, ""], C: int, eps: float | None) -> None:
    """Brings a chunk's words and tokens to the core, and begins its sums: with the tokens where `eps` is of a norm."""
    words, size = len(memory.words), memory.in_words
    memory.copy(memory.all_words.at[pl.ds(chunk * words, words)], memory.words)
    if eps is None:
        memory.sums[...] = jnp.zeros_like(memory.sums)
    memory.waiting[0], memory.waiting[1] = 0, 0

    def load(i: Int[Array, ""], _: None) -> None:
        memory.copy(memory.tokens.at[pl.ds(chunk * C + i * STAGE, STAGE), :], memory.stage)
        factor = None if eps is None else inverse_lengths(memory, eps)
        for j in range(size):
            low, high = (staged(memory, i, column, factor) for column in (j, size + j))
            places = pl.ds(i * STAGE * size + j, STAGE, stride=size)
            memory.rows[places, :] = lax.shift_right_logical(low, 16) | high

    lax.fori_loop(0, C // STAGE, load, None)


def inverse_lengths(memory: Memory, eps: float) -> Float[Array, "STAGE 1"]:
    """Returns 1 over the root mean square of each staged token."""
    parts = (memory.stage[:, j * LANES : (j + 1) * LANES].astype(jnp.float32) for j in range(memory.in_sums))
    squares = functools.reduce(operator.add, (part * part for part in parts))
    return lax.rsqrt(jnp.sum(squares, axis=-1, keepdims=True) / memory.x.shape[1] + eps)


def staged(
    memory: Memory, i: Int[Array, ""], j: int, factor: Float[Array, "STAGE 1"] | None
) -> Int[Array, "STAGE LANES"]:
    """Returns the j-th LANES columns of staged tokens as upper halves of words; with a factor normed, and begins sums.

    Args:
        i: number of the stage in its chunk.
    """
    columns = slice(j * LANES, (j + 1) * LANES)
    values = memory.stage[:, columns].astype(jnp.float32)
    if factor is not None:
        memory.sums[pl.ds(i * STAGE * memory.in_sums + j, STAGE, stride=memory.in_sums), :] = values
        normed = values * factor * memory.scale[:, columns]
        values = normed.astype(memory.x.dtype).astype(jnp.float32)
    return lax.bitcast_convert_type(values, jnp.int32)


def store_chunk(memory: Memory, chunk: Int[Array, ""], C: int) -> None:
    """Writes a chunk's sums into the result."""
    size = memory.in_sums

    def store(i: Int[Array, ""], _: None) -> None:
        for j in range(size):
            total = memory.sums[pl.ds(i * STAGE * size + j, STAGE, stride=size), :]
            memory.stage[:, j * LANES : (j + 1) * LANES] = total.astype(memory.stage.dtype)
        memory.copy(memory.stage, memory.out.at[pl.ds(chunk * C + i * STAGE, STAGE), :])

    lax.fori_loop(0, C // STAGE, store, None)
