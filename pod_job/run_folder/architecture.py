"""The architecture in a run's identity: every size and switch of the decoder, as transformers resolved config.json.

Fields are those of `models.arch.Arch` by name: one that is missing here is an error at the first start. All are
optional, since runs of other versions have others; a field that runs of 0.1.0 have not is left out where its value is
the one that their models have.
"""

from dataclasses import asdict

import msgspec

from pod_job.formats.records import Count, Record
from pod_job.models.arch import Arch


class RopeRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Rotary embedding of some layers; see `models.rope.Rope`."""

    theta: float | None = None
    kind: str | None = None
    factor: float | None = None
    original_positions: Count | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    whole_bounds: bool | None = None
    attention_factor: float | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


class AttentionRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Window and rotary embedding that some layers share."""

    window: Count | None = None
    rope: RopeRecord | None = None
    delta: bool = False


class DeltaRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Sizes of layers with a gated delta rule; see `models.arch.DeltaNet`."""

    key_heads: Count | None = None
    value_heads: Count | None = None
    key_size: Count | None = None
    value_size: Count | None = None
    kernel: Count | None = None


class ArchRecord(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Sizes and switches of a decoder; `attention_of_layer` has for each layer its index in `attention`."""

    family: str | None = None
    layers: Count | None = None
    hidden: Count | None = None
    heads: Count | None = None
    kv_heads: Count | None = None
    head_dim: Count | None = None
    mlp: Count | None = None
    vocab: Count | None = None
    norm_eps: float | None = None
    attention: list[AttentionRecord] | None = None
    attention_of_layer: list[Count] | None = None
    max_positions: Count | None = None
    tied: bool | None = None
    activation: str | None = None
    embed_scale: float | None = None
    query_scale: float | None = None
    attn_softcap: float | None = None
    logit_softcap: float | None = None
    qkv_bias: bool | None = None
    out_bias: bool | None = None
    mlp_bias: bool | None = None
    qk_norm: bool | None = None
    post_norms: bool | None = None
    norm_plus_one: bool | None = None
    rotated: Count | None = None
    qk_norm_of_heads: bool = True
    pre_norms: bool = True
    norm_in_float32: bool = False
    layer_norm: bool = False
    gated: bool = True
    parallel: bool = False
    learned_positions: bool = False
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    experts: Count = 0
    experts_per_token: Count = 0
    shares_of_chosen: bool = True
    router_bias: bool = False
    glu_limit: float | None = None
    glu_alpha: float = 1.0
    sinks: bool = False
    attn_gate: bool = False
    delta: DeltaRecord | None = None
    shared_mlp: Count = 0


def arch_record(arch: Arch) -> ArchRecord:
    """Returns the architecture as run.json holds it."""
    distinct = list(dict.fromkeys(arch.attention))
    values = asdict(arch) | {
        "attention": [asdict(attention) for attention in distinct],
        "attention_of_layer": [distinct.index(attention) for attention in arch.attention],
    }
    return msgspec.convert(values, ArchRecord)
