"""Seconds of what the compiler's text states no cycles for: ragged products of experts, and this project's own kernels.

Cycles of the kernels are the instructions in the listings of libtpu 0.0.42.1 for v6e, one a cycle, with the sizes of
Qwen3-30B-A3B; for other sizes and chips they go with the products' FLOPs.
"""

import re

import jax.numpy as jnp

from pod_job.config.schema import Sharding
from pod_job.models.arch import Arch
from pod_job.models.expert_kernel import KERNEL_NAME, STAGE, STREAM_KERNEL_NAME, TILE, chunk_tokens
from pod_job.models.sharding import row_shards
from pod_job.preflight.compiled_text import Operation
from pod_job.preflight.planned_job import PlannedJob
from pod_job.preflight.tpu_facts import V6E, Chip

RAGGED_PRODUCT, EXPERT_KERNEL, STREAM_KERNEL, HEAD_KERNEL = (
    re.compile(f"^{name}") for name in ("ragged-dot-none", KERNEL_NAME, STREAM_KERNEL_NAME, "projected_heads")
)
RAGGED_TILE = 256
"""Rows of a tile of XLA's ragged matrix products; where an expert ends within one, the tile is computed twice."""
TILE_CYCLES, EXPERT_CYCLES, STAGE_CYCLES, STREAM_STAGE_CYCLES = 3460, 150, 2460, 4090
"""Instructions of the kernel of experts for a tile of pairs, for each expert of a chunk beside its tiles, and for STAGE
tokens on their way in and out: as experts read them, and of the residual stream with its norm."""
TILE_FLOPS = 2.0 * TILE * 3 * 2048 * 768
HEADS_CYCLES, HEADS_FLOPS = 7250, 2.0 * 512 * 2048 * 1024
"""Instructions of the kernel of heads for 512 positions and 8 heads, and their products' FLOPs."""


def model_kernel_seconds(operations: list[Operation], job: PlannedJob, positions: int, layers: int) -> float:
    """Returns the seconds of these kernels on one chip in a run over `positions` of all chips, one after the other.

    A loop over tokens in turn, as in decode, is in `operations` and counts as often.
    """
    config, arch, chip = job.config, job.arch, job.pod.chip
    tokens = positions / row_shards(config.mesh, config.sharding)
    split = config.mesh.model if config.sharding is Sharding.tensor else 1
    seconds = 0.0
    if any(RAGGED_PRODUCT.match(op.name) for op in operations):
        item = jnp.dtype(config.model.dtype.value).itemsize
        seconds += layers * ragged_seconds(arch, chip, tokens, split, item)
    for kernel, stage_cycles in ((EXPERT_KERNEL, STAGE_CYCLES), (STREAM_KERNEL, STREAM_STAGE_CYCLES)):
        if any(kernel.match(op.name) for op in operations):
            seconds += layers * expert_kernel_seconds(arch, chip, tokens, split, stage_cycles)
    if any(HEAD_KERNEL.match(op.name) for op in operations):
        flops = 2.0 * tokens * arch.hidden * arch.head_dim * (arch.heads + 2 * arch.kv_heads) / split
        seconds += layers * flops / HEADS_FLOPS * HEADS_CYCLES / chip.cycles_s * cycles_per_v6e(chip)
    return seconds


def cycles_per_v6e(chip: Chip) -> float:
    """Returns how many cycles a chip's matrix units take for what takes a v6e's one."""
    return (V6E.peak_flops / V6E.cycles_s) / (chip.peak_flops / chip.cycles_s)


def expert_kernel_seconds(arch: Arch, chip: Chip, tokens: float, split: int, stage_cycles: int = STAGE_CYCLES) -> float:
    """Returns the seconds of one layer's kernel of experts for a chip's tokens, of whose experts it has 1 in `split`.

    Experts are taken to be equally popular; in each chunk the last tile of each is half empty. Weights come from memory
    for every chunk, beside the computing: the longer of the two counts.
    """
    chunks = -(-tokens // chunk_tokens(int(tokens), arch.hidden, arch.mlp))
    experts, pairs = arch.experts / split, tokens * arch.experts_per_token / split
    of_tile = 3 * 2.0 * TILE * arch.hidden * arch.mlp / TILE_FLOPS * TILE_CYCLES * cycles_per_v6e(chip)
    cycles = (pairs / TILE + chunks * experts / 2) * of_tile + chunks * experts * EXPERT_CYCLES
    weights = chunks * experts * 3 * 2 * arch.hidden * arch.mlp
    ends = tokens / STAGE * stage_cycles / chip.cycles_s + 2 * 2 * tokens * arch.hidden / chip.hbm_bytes_s
    return max(cycles / chip.cycles_s, weights / chip.hbm_bytes_s) + ends


def ragged_seconds(arch: Arch, chip: Chip, tokens: float, split: int, item: int) -> float:
    """Returns the seconds of one layer's experts for a chip's tokens, of whose experts it has 1 in `split`.

    A product takes its FLOPs at the matrix units' rate, or its bytes at the memory's where that is longer. The gather
    of rows for the experts, and that of what they give, reads and writes each row once. Sorts are not counted.
    """
    pairs, experts = tokens * arch.experts_per_token, arch.experts // split
    flops = 2.0 * (pairs / split + experts * RAGGED_TILE) * arch.hidden * arch.mlp
    moved = item * (pairs / split * (arch.hidden + arch.mlp) + experts * arch.hidden * arch.mlp)
    product = max(flops / chip.peak_flops, moved / chip.hbm_bytes_s)
    gathers = 2 * 2 * item * pairs * arch.hidden / chip.hbm_bytes_s
    return (3 if arch.gated else 2) * product + gathers
