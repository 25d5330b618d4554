"""Tensor names in checkpoints: one spelling for the text model's own, and what the others give away.

Training wrappers, other classes of the same model and multimodal models save the same tensors under longer or shorter
names; Hugging Face's loader takes all of them.
"""

import re
from collections.abc import Iterable

WRAPPERS = ("_orig_mod.", "module.", "base_model.model.")
"""Prefixes that torch.compile, DataParallel and PEFT put before a name."""
TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "language_model.": "model.",
    "transformer.": "model.",
    "gpt_neox.": "model.",
}
"""How the text model's tensors are called in a checkpoint with vision or of GPT-2 and GPT-NeoX, and elsewhere."""
VISION_PREFIXES = tuple(
    f"{prefix}{name}." for prefix in ("", "model.") for name in ("vision_tower", "multi_modal_projector", "visual")
)
BARE = ("layers.", "embed_tokens.", "norm.", "h.", "wte.", "wpe.", "ln_f.", "embed_in.", "final_layer_norm.")
"""How names begin where the model was saved without its head (`AutoModel`)."""

DERIVED = re.compile(r".*\.rotary_emb\.inv_freq|.*\.(attn|attention)\.(bias|masked_bias)")
"""Buffers that some checkpoints hold and no model reads."""
EXPERTS_IN_ONE = re.compile(r"\.mlp\.experts\.(gate_up_proj|down_proj)(\.weight)?$")
"""Tensors of all experts of a layer; where no biases lie beside them, each expert's matrices follow one another."""
MOST_EXPERTS = 4096
"""More in one tensor is a mistake, and would be as many names."""

SCHEMES = {
    r"\.weight_scale_inv$": "fp8 with block scales",
    r"\.weight_packed$": "compressed-tensors",
    r"\.(qweight|qzeros|g_idx)$": "GPTQ or AWQ",
    r"\.(absmax|quant_map|nested_absmax)$|\.quant_state\.": "bitsandbytes, 4 bits",
    r"\.SCB$": "bitsandbytes, 8 bits",
    r"_blocks$": "MXFP4",
    r"\.weight_scale$|\.(input|activation)_scale$": "weights with scales (fp8, BitNet or compressed-tensors)",
    r"\.scales$": "MLX or another scheme with scales",
}
"""Tensors that only quantized checkpoints have, the most telling first, and the name of their scheme."""
ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)\b")


def canonical(name: str) -> str | None:
    """Returns the name that the tensor has in a causal text model; None for one of the vision parts."""
    shorter = None
    while shorter != name:
        shorter = name
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
    if name.startswith(VISION_PREFIXES):
        return None
    name = name.replace(".base_layer.", ".").replace("._orig_mod.", ".")
    prefix = next((prefix for prefix in TEXT_PREFIXES if name.startswith(prefix)), "")
    name = TEXT_PREFIXES.get(prefix, "") + name.removeprefix(prefix)
    return f"model.{name}" if name.startswith(BARE) else name


def quantization(names: Iterable[str]) -> tuple[str, str] | None:
    """Returns the scheme that gives the checkpoint away as quantized, and the tensor that does; None where none."""
    names = sorted(names)
    for pattern, scheme in SCHEMES.items():
        if telling := next((name for name in names if re.search(pattern, name)), None):
            return scheme, telling
    return None
