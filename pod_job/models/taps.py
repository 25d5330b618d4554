"""Taps: the (site, layer) pairs of a model that are extracted, and their names. No jax.

`layer_6` is the residual stream after layer 6 (`resid_post`), `layer_24_norm` the output of the final norm of a
24-layer model, `layer_6.attn_out` any other site, `embed` the embedding.
"""

import difflib
import fnmatch
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, SupportsIndex

from pod_job.errors import JobError
from pod_job.models.arch import Arch

# Sites of one layer, in the order in which the layer computes them. attn_in and mlp_in are what attention and mlp read,
# after their norm. q, k and v are the projections with bias, before any norm (Qwen3, Gemma 3) or rotary embedding; z is
# the heads' output before the output projection; mlp_act the input of the down projection. attn_out and mlp_out are
# what is added to the residual stream: with post norms (Gemma 2 and 3, OLMo) these norms' outputs, with a multiplier
# (Granite) its products, so that resid_pre + attn_out = resid_mid and resid_mid + mlp_out = resid_post in every family;
# *_pre_norm are the post norms' inputs. Of a mixture of experts, expert_ids are the numbers of the chosen experts, that
# with the largest share first, and router_logits those of all before any softmax. Where attention and mlp are added at
# once (GPT-NeoX), there is no resid_mid.
LAYER_SITES = (
    "resid_pre",
    "attn_in",
    "q",
    "k",
    "v",
    "z",
    "attn_out_pre_norm",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "router_logits",
    "expert_ids",
    "mlp_act",
    "mlp_out_pre_norm",
    "mlp_out",
    "resid_post",
)
INNER_SITES = tuple(site for site in LAYER_SITES if site not in ("resid_pre", "resid_post"))
POST_NORM_SITES = ("attn_out_pre_norm", "mlp_out_pre_norm")
"""Sites that only families with post norms have."""
SERIAL_SITES = ("resid_mid",)
"""Sites that families whose mlp reads what attention reads do not have."""
EXPERT_SITES = ("router_logits", "expert_ids")
"""Sites that only mixtures of experts have."""
EXACT_BELOW = {"bfloat16": 257, "float16": 2049, "float32": 1 << 24}
"""Numbers below which every whole one is exact, by dtype."""
ONE_MLP_SITES = ("mlp_act",)
"""Sites that mixtures of experts do not have."""


@dataclass(frozen=True)
class Tap:
    """One (site, layer). For `embed` the layer is 0, for `final_norm` it is L."""

    site: str
    layer: int

    @property
    def name(self) -> str:
        match self.site:
            case "resid_post":
                return f"layer_{self.layer}"
            case "final_norm":
                return f"layer_{self.layer}_norm"
            case "embed":
                return "embed"
            case site:
                return f"layer_{self.layer}.{site}"

    def width(self, arch: Arch) -> int:
        """Size of one stored vector."""
        delta = self.layer < arch.layers and arch.attention[self.layer].delta
        return {
            **head_widths(arch, delta=delta),
            "mlp_act": arch.mlp,
            "router_logits": arch.experts,
            "expert_ids": arch.experts_per_token,
        }.get(self.site, arch.hidden)


def head_widths(arch: Arch, *, delta: bool) -> dict[str, int]:
    """Returns the sizes of what all heads of a layer give together, by site; `delta`: of a gated delta rule's."""
    if delta:
        assert arch.delta is not None
        keys = arch.delta.key_heads * arch.delta.key_size
        values = arch.delta.value_heads * arch.delta.value_size
        return {"q": keys, "k": keys, "v": values, "z": values}
    queries, keys = arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    return {"q": queries, "k": keys, "v": keys, "z": queries}


def widest(arch: Arch, site: str) -> int | None:
    """Returns the size of the largest layer's vectors at a site of its heads; None: the site has one size."""
    kinds = {layer.delta for layer in arch.attention}
    return max((head_widths(arch, delta=delta).get(site) or 0 for delta in kinds), default=0) or None


def named_tap(name: str) -> Tap:
    """Returns the tap of this name, whatever model it is of. JobError for what is no tap's name."""
    if name == "embed":
        return Tap("embed", 0)
    if match := re.fullmatch(r"layer_(\d{1,5})(?:(_norm)|\.(\w+))?", name):
        site = "final_norm" if match[2] else match[3] or "resid_post"
        if site in (*LAYER_SITES, "final_norm") and Tap(site, int(match[1])).name == name:
            return Tap(site, int(match[1]))
    raise JobError(f"{name!r:.80} is no tap; names look like layer_6, layer_24_norm or layer_6.attn_out")


def sites_of(arch: Arch) -> tuple[str, ...]:
    """Returns the sites that each layer of a model has."""
    without = (() if arch.post_norms else POST_NORM_SITES) + (SERIAL_SITES if arch.parallel else ())
    without += ONE_MLP_SITES if arch.experts else EXPERT_SITES
    return tuple(site for site in LAYER_SITES if site not in without)


def available(layers: int, sites: Sequence[str] = LAYER_SITES) -> dict[str, Tap]:
    """Returns every tap of a model with this many layers of these sites, by name, in the order of computation."""
    taps = [Tap("embed", 0)]
    taps += [Tap(site, layer) for layer in range(layers) for site in sites]
    taps.append(Tap("final_norm", layers))
    return {tap.name: tap for tap in taps}


def resolve(layers: Iterable[Any] | SupportsIndex | None, patterns: Sequence[str], arch: Arch) -> tuple[Tap, ...]:
    """Returns the taps asked for: `resid_post` of `layers`, and every tap whose name matches one of `patterns`.

    With neither, `resid_post` of all layers. The result is in the order of computation, each tap once.

    Args:
        layers: numbers, or one, from a configuration or a notebook.
    Raises:
        JobError: a layer or a site the model lacks, or a pattern that matches nothing (with near misses).
    """
    by_name = available(arch.layers, sites_of(arch))
    if layers is None:
        layers = () if patterns else range(arch.layers)
    chosen = set()
    for layer in layers if isinstance(layers, Iterable) else [layers]:
        if not isinstance(layer, SupportsIndex) or not 0 <= index(layer) < arch.layers:
            raise JobError(f"extract.layers: layer {layer} of a {arch.layers}-layer model: use 0..{arch.layers - 1}")
        chosen.add(f"layer_{layer}")
    for pattern in patterns:
        matches = fnmatch.filter(by_name, pattern)
        if not matches:
            raise JobError(no_match(pattern, by_name, arch))
        chosen.update(matches)
    if not chosen:
        raise JobError("extract.layers=[] and extract.taps=[] leave nothing to extract; name at least one layer")
    return tuple(tap for name, tap in by_name.items() if name in chosen)


def check_exact(taps: Sequence[Tap], arch: Arch, dtype: str, averaged: bool) -> None:
    """Raises JobError for numbers of experts that would be stored in a dtype that rounds them, or averaged."""
    if not any(tap.site == "expert_ids" for tap in taps):
        return
    if averaged:
        raise JobError(
            "extract.positions=mean: expert_ids are numbers of experts, which have no mean; use router_logits"
        )
    if arch.experts > EXACT_BELOW.get(dtype, 0):
        raise JobError(
            f"extract.dtype={dtype} rounds the numbers of {arch.experts} experts (expert_ids); use float32, or "
            "router_logits"
        )


def no_match(pattern: str, by_name: Collection[str], arch: Arch) -> str:
    """Returns why no tap of the model has such a name."""
    if elsewhere := fnmatch.filter(available(arch.layers), pattern):
        if any(name.endswith(POST_NORM_SITES) for name in elsewhere):
            return (
                f"extract.taps: {pattern!r} is of models with a norm after attention and mlp, and {arch.family} has "
                "none; use attn_out and mlp_out, which no norm changes there"
            )
        if any(name.endswith(EXPERT_SITES) for name in elsewhere):
            return f"extract.taps: {pattern!r} is of mixtures of experts, and {arch.family} has one mlp a layer"
        if all(name.endswith(ONE_MLP_SITES) for name in elsewhere):
            return (
                f"extract.taps: {pattern!r} is of models with one mlp a layer, and {arch.family} has "
                f"{arch.experts} experts; use router_logits, expert_ids and mlp_out"
            )
        return (
            f"extract.taps: {pattern!r} is of models whose mlp reads the sum of the residual stream and attention, and "
            f"{arch.family} adds both at once; use resid_pre, attn_out and mlp_out"
        )
    near = difflib.get_close_matches(pattern, by_name, n=3, cutoff=0.0)
    return f"extract.taps: {pattern!r} matches no tap; the nearest are {', '.join(near)}"
