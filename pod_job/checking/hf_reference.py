"""What Hugging Face's torch models compute, tap by tap: the truth that ours are compared with. Needs torch."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar


def load_reference(folder: Path) -> PreTrainedModel:
    """The folder's model in float32 with plain ("eager") attention, ready for `run_reference`."""
    torch.set_float32_matmul_precision("highest")
    disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def run_reference(
    model: PreTrainedModel, input_ids: Int[np.ndarray, "B S"], wanted: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Every tap of one forward pass over unpadded rows, taken with forward hooks on the torch modules.

    Hooks, because the last entry of `output_hidden_states` is the final norm's output and not the last layer's.

    Args:
        model: a causal text model of a family that `pod_job.models.arch` has, see `load_reference`.
        wanted: names of taps, where not all are; the others are not kept.
    Returns:
        float32 arrays [B, S, width]: `embed`, `logits`, the final norm's output `layer_{L}_norm`, the output
        `layer_{i}` of each decoder layer and its sites `layer_{i}.SITE`: resid_pre, resid_mid, attn_out and mlp_out
        (what is added to the residual stream: with post norms, their outputs), mlp_act (input of down_proj), q, k, v
        (projections with bias, before norm and rotation), z (input of o_proj).
    """
    with _taps_recorded(model, wanted) as taps, torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(np.asarray(input_ids, np.int64)), use_cache=False).logits
    if wanted is None or "logits" in wanted:
        taps["logits"] = logits
    # Copies: a residual stream may be changed in place by what follows, and arrays must own their memory.
    return {name: tap.float().numpy().copy() for name, tap in taps.items()}


@contextmanager
def _taps_recorded(model: PreTrainedModel, wanted: Collection[str] | None) -> Iterator[dict[str, torch.Tensor]]:
    taps: dict[str, torch.Tensor] = {}
    hooks: list[Any] = []

    def keep(name: str, tensor: torch.Tensor) -> None:
        if wanted is None or name in wanted:
            taps[name] = tensor.detach().clone()

    def on_input(name: str) -> Callable[..., None]:
        return lambda _module, args, kwargs: keep(name, args[0] if args else kwargs["hidden_states"])

    def on_output(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: keep(name, output[0] if isinstance(output, tuple) else output)

    def record(module: Any, *, before: str | None = None, after: str | None = None) -> None:
        if before:
            hooks.append(module.register_forward_pre_hook(on_input(before), with_kwargs=True))
        if after:
            hooks.append(module.register_forward_hook(on_output(after)))

    decoder: Any = model.model
    record(decoder.embed_tokens, after="embed")
    for i, layer in enumerate(decoder.layers):
        tap, attention, mlp = f"layer_{i}", layer.self_attn, layer.mlp
        post_norms = hasattr(layer, "post_feedforward_layernorm")
        record(layer, before=f"{tap}.resid_pre", after=tap)
        record(attention.q_proj, after=f"{tap}.q")
        record(attention.k_proj, after=f"{tap}.k")
        record(attention.v_proj, after=f"{tap}.v")
        record(attention.o_proj, before=f"{tap}.z")
        record(layer.post_attention_layernorm if post_norms else attention.o_proj, after=f"{tap}.attn_out")
        mlp_norm = layer.pre_feedforward_layernorm if post_norms else layer.post_attention_layernorm
        record(mlp_norm, before=f"{tap}.resid_mid")
        record(mlp.down_proj, before=f"{tap}.mlp_act")
        record(layer.post_feedforward_layernorm if post_norms else mlp.down_proj, after=f"{tap}.mlp_out")
    record(decoder.norm, after=f"layer_{len(decoder.layers)}_norm")
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()
