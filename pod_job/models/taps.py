"""Taps: the (site, layer) pairs of a model that are extracted, and their names. No jax.

`layer_6` is the residual stream after layer 6 (`resid_post`), `layer_24_norm` the output of the final norm of a
24-layer model, `layer_6.attn_out` any other site, `embed` the embedding.
"""

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from pod_job.errors import JobError
from pod_job.models.arch import Arch

# Sites of one layer, in the order in which the layer computes them. q, k and v are the projections with bias, before
# any norm (Qwen3, Gemma 3) or rotary embedding; z is the heads' output before the output projection; mlp_act the input
# of the down projection. attn_out and mlp_out are what is added to the residual stream: with post norms (Gemma 2 and 3)
# these norms' outputs, so that resid_pre + attn_out = resid_mid and resid_mid + mlp_out = resid_post in every family.
LAYER_SITES = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_act", "mlp_out", "resid_post")
INNER_SITES = tuple(site for site in LAYER_SITES if site not in ("resid_pre", "resid_post"))


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
        return {
            "q": arch.heads * arch.head_dim,
            "k": arch.kv_heads * arch.head_dim,
            "v": arch.kv_heads * arch.head_dim,
            "z": arch.heads * arch.head_dim,
            "mlp_act": arch.mlp,
        }.get(self.site, arch.hidden)


def available(layers: int) -> dict[str, Tap]:
    """Returns every tap of a model with this many layers, by name, in the order of computation."""
    taps = [Tap("embed", 0)]
    taps += [Tap(site, layer) for layer in range(layers) for site in LAYER_SITES]
    taps.append(Tap("final_norm", layers))
    return {tap.name: tap for tap in taps}


def resolve(layers: Sequence[int] | None, patterns: Sequence[str], n_layers: int) -> tuple[Tap, ...]:
    """Returns the taps asked for: `resid_post` of `layers`, and every tap whose name matches one of `patterns`.

    With neither, `resid_post` of all layers. The result is in the order of computation, each tap once.

    Raises:
        JobError: a layer the model lacks, or a pattern that matches nothing (with near misses).
    """
    by_name = available(n_layers)
    if layers is None:
        layers = () if patterns else range(n_layers)
    chosen = set()
    for layer in layers:
        if not 0 <= layer < n_layers:
            raise JobError(f"extract.layers: layer {layer} of a {n_layers}-layer model: use 0..{n_layers - 1}")
        chosen.add(f"layer_{layer}")
    for pattern in patterns:
        matches = fnmatch.filter(by_name, pattern)
        if not matches:
            near = difflib.get_close_matches(pattern, by_name, n=3, cutoff=0.0)
            raise JobError(f"extract.taps: {pattern!r} matches no tap; the nearest are {', '.join(near)}")
        chosen.update(matches)
    if not chosen:
        raise JobError("extract.layers=[] and extract.taps=[] leave nothing to extract; name at least one layer")
    return tuple(tap for name, tap in by_name.items() if name in chosen)
