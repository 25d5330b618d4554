"""Cost of a model by its sizes alone: FLOPs that its taps need, bytes that a step stores. No jax.

S positions of a row, C slots of the cache, W window.
"""

import math

from pod_job.config.generate import prefill_length, prefill_prompts
from pod_job.config.schema import ExtractConfig, Positions
from pod_job.formats.quantized import row_bytes
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.models.arch import Arch
from pod_job.models.taps import Tap


def step_flops(arch: Arch, layers: int, rows: int, seq_len: int) -> float:
    """Returns the FLOPs that no program could leave out: weights' products, and attention's causal half."""
    of_layers = arch.attention[:layers]
    pairs = sum(seen_pairs(seq_len, layer.window) for layer in of_layers if not layer.delta)
    of_weights = sum(layer_flops(arch, layer.delta) for layer in of_layers)
    return float(rows) * (of_weights * seq_len + 4 * pairs * arch.head_dim * arch.heads)


def token_flops(arch: Arch, slots: int) -> float:
    """Returns the FLOPs of one more token of a row, its logits included, that looks at `slots` slots of the cache."""
    seen = sum(min(slots, layer.window or slots) for layer in arch.attention if not layer.delta)
    of_weights = sum(layer_flops(arch, layer.delta) for layer in arch.attention)
    return float(of_weights + 4 * seen * arch.head_dim * arch.heads + 2 * arch.hidden * arch.vocab)


def layer_flops(arch: Arch, delta: bool = False) -> int:
    """Returns the FLOPs of a layer's weights for one position; of experts, those of the chosen ones.

    `delta`: of a layer with a gated delta rule, with the rule itself, which goes through its state three times.
    """
    queries = 2 * arch.heads if arch.attn_gate else arch.heads
    mixer = arch.hidden * arch.head_dim * (queries + arch.heads + 2 * arch.kv_heads)
    if delta and (sizes := arch.delta):
        keys, values = sizes.key_heads * sizes.key_size, sizes.value_heads * sizes.value_size
        projections = arch.hidden * (2 * keys + 3 * values + 2 * sizes.value_heads)
        mixer = projections + sizes.kernel * (2 * keys + values) + 3 * sizes.key_size * values
    mlp = (3 if arch.gated else 2) * arch.hidden * arch.mlp
    if arch.experts:
        mlp = arch.experts_per_token * mlp + arch.hidden * arch.experts
        mlp += arch.hidden * (3 * arch.shared_mlp + bool(arch.shared_mlp))
    return 2 * (mixer + mlp)


def seen_pairs(S: int, window: int | None) -> int:
    """Returns the number of (query, key) pairs of a row of one segment that a query may look at."""
    W = min(S, window or S)
    return W * (W + 1) // 2 + (S - W) * W


def vector_bytes(arch: Arch, taps: tuple[Tap, ...], config: ExtractConfig) -> int:
    """Returns the bytes stored for one position, over all taps."""
    return sum(row_bytes(tap.width(arch), DTYPE_OF[config.dtype.value]) for tap in taps)


def step_positions(config: ExtractConfig) -> int:
    """Returns the positions of a row whose vectors a full step sends to the hosts."""
    return config.prompts_per_row if config.positions.one_per_prompt else config.seq_len


def stored_rows(config: ExtractConfig, prompts: int, tokens: int) -> int:
    """Returns the rows of so many prompts of so many tokens in all, with mode=prefill."""
    match config.positions:
        case Positions.every:
            return prompts + tokens // (config.every or 1)
        case Positions.sample:
            return math.ceil(tokens * (config.sample or 1))
        case Positions.all | Positions.generated:
            return tokens
    return prompts


def prefill_positions(config: ExtractConfig) -> int:
    """Returns the positions of a device whose vectors a full prefill of mode=generate sends to the host."""
    own, S = config.rows_per_device, config.seq_len
    prompts = prefill_prompts(own, S, config.prompts_per_row)
    return {Positions.last: prompts, Positions.all: prefill_length(own, S)}.get(config.positions, 0)
