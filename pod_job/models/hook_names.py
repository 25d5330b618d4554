"""TransformerLens' names of taps, by which SAELens and circuit-tracer say what an SAE reads and writes. No jax."""

import re

from pod_job.errors import JobError
from pod_job.models.taps import Tap

HOOKS = {
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "resid_post": "blocks.{layer}.hook_resid_post",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "z": "blocks.{layer}.attn.hook_z",
    "mlp_in": "blocks.{layer}.mlp.hook_in",
    "mlp_out_pre_norm": "blocks.{layer}.mlp.hook_out",
    "mlp_act": "blocks.{layer}.mlp.hook_post",
    "embed": "hook_embed",
}
"""Names of the sites that mean the same there; `mlp.hook_in` and `mlp.hook_out` are those of its TransformerBridge."""


def hook_of(tap: Tap) -> str | None:
    """Returns TransformerLens' name of a tap; None where it has none."""
    return HOOKS[tap.site].format(layer=tap.layer) if tap.site in HOOKS else None


def tap_of(hook: str) -> Tap:
    """Returns the tap that a hook of TransformerLens is. JobError for a hook that no tap equals."""
    for site, pattern in HOOKS.items():
        if match := re.fullmatch(re.escape(pattern).replace(r"\{layer\}", r"(\d{1,5})"), hook):
            return Tap(site, int(match[1]) if match.groups() else 0)
    raise JobError(f"{hook!r:.100}: no tap is known to be this hook; name it with --tap, such as --tap layer_12")
