"""A Hugging Face `config.json` as transformers resolves it, with every key of it accounted for. No jax, no weights.

The family's own configuration class in the installed transformers fills in defaults and understands old spellings, so
that what is applied here is what `AutoModelForCausalLM` would apply. A key is *applied* (`arch.py` reads its resolved
value), *inert* (it cannot change a vector), or refused by name unless its value is the one that is computed here.
"""

import copy
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pod_job.errors import JobError
from pod_job.models.config_values import number, positive
from pod_job.models.families import FAMILIES, TOWERS, Family

INERT = frozenset(
    {
        # Bookkeeping, and how a model is stored, trained or run.
        "_name_or_path",
        "architectures",
        "auto_map",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "initializer_range",
        "attention_dropout",
        "is_decoder",
        "use_cache",
        "cache_implementation",
        "gradient_checkpointing",
        "return_dict",
        "use_return_dict",
        "output_attentions",
        "output_hidden_states",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attn_implementation",
        "_experts_implementation",
        "_flash_attn_2_enabled",
        "pretraining_tp",
        "unsloth_fixed",
        "unsloth_version",
        "transformers.js_config",
        # Tokenizer and generation.
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "cls_token_id",
        "mask_token_id",
        "decoder_start_token_id",
        "tokenizer_class",
        "model_max_length",
        "temperature",
        "top_k",
        "top_p",
        "do_sample",
        "num_beams",
        "max_length",
        "min_length",
        "max_new_tokens",
        "repetition_penalty",
        "length_penalty",
        "suppress_tokens",
        # Heads of other tasks.
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "finetuning_task",
        "task_specific_params",
        "classifier_dropout",
    }
)
"""Keys that no vector depends on, whatever their value."""

COMPUTED: Mapping[str, tuple[Any, ...]] = {
    "is_causal": (True,),
    "use_bidirectional_attention": (False, None),
    "attention_chunk_size": (None,),
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "partial_rotary_factor": (1.0, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "per_layer_config": (None,),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False,),
}
"""Keys outside a family's own that code shared by all models may read: the values that are computed here."""

SHARED_SOURCES = (
    "masking_utils.py",
    "modeling_rope_utils.py",
    "configuration_utils.py",
    "modeling_utils.py",
    "modeling_layers.py",
    "modeling_outputs.py",
    "cache_utils.py",
    "activations.py",
)
SHARED_FOLDERS = ("integrations",)
"""Sources in transformers that the models of all families run through, beside the family's own folder."""

QUANTIZATION = ("quantization_config", "quantization", "compression_config")


def resolve(config: Mapping[str, Any], source: str) -> tuple[str, dict[str, Any]]:
    """Returns the family and the resolved value of every applied key of it.

    Args:
        config: the content of a config.json; of a model with vision, its `text_config` is resolved.
        source: names the configuration in errors.
    Raises:
        JobError: a family that is not here, a quantized model, a value that transformers refuses, or a key that would
            change the computation and is not applied.
    """
    config = _text_config(config, source)
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise JobError(
            f"{source}: model_type={name!r} is not one of the families here: {', '.join([*FAMILIES, *TOWERS])}; "
            'docs/cookbook.md ("Add a model family") says how to add one'
        )
    family = FAMILIES[name]
    _refuse_quantized(config, source, family.dequantized)
    applied = family.all_applied
    for key, value in config.items():
        if key in QUANTIZATION:
            continue
        _account_for(key, value, name, applied, source)
        if value is None and key in family.without:  # its class takes the value, and its model fails on it
            raise JobError(f"{source}: {key}=null is no key of {name}; remove it")
    _check_numbers(config, family, source)
    _check_rope(config, family, source)
    resolved = _resolved({key: value for key, value in config.items() if key in applied}, source)
    if "head_dim" in config and getattr(resolved, "head_dim", None) is None and not family.null_head_dim:
        raise JobError(f"{source}: head_dim=null, and transformers' models of this family need it; remove the key")
    values = {key: getattr(resolved, key, None) for key in applied}
    return name, values | {key: getattr(resolved, own, None) for key, own in family.renamed.items()}


def _check_numbers(config: Mapping[str, Any], family: Family, source: str) -> None:
    """Raises JobError for a size that is missing or no number, before transformers fills in a size of its own."""
    needed = ["hidden_size", "num_hidden_layers", *(["intermediate_size"] if family.mlp_of_hidden is None else [])]
    for key in needed:
        positive(config, family.own_name(key), source)
    for key in ("num_attention_heads", "vocab_size", "max_position_embeddings"):
        if (own := family.own_name(key)) in config:
            positive(config, own, source)
    if (eps := family.own_name("rms_norm_eps")) in config:
        number(config, eps, source)


def _check_rope(config: Mapping[str, Any], family: Family, source: str) -> None:
    """Raises JobError for settings of each layer type where transformers' model has one rotary embedding for all."""
    for key in ("rope_parameters", "rope_scaling"):
        settings = config.get(key) or {}
        nested = isinstance(settings, Mapping) and any(isinstance(value, Mapping) for value in settings.values())
        if nested and not family.rope_of_layer_type:
            raise JobError(f"{source}: {key} differs by layer type; models of this family have one for all layers")


def _text_config(config: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Returns the configuration of the text model; of a model without vision, its own."""
    name = config.get("model_type")
    tower, text = TOWERS.get(name) if isinstance(name, str) else None, config.get("text_config")
    if name is None or tower is None or not (isinstance(text, Mapping) or tower.flat):
        return config
    _refuse_quantized(config, source)
    outer = {key: value for key, value in config.items() if key != "text_config"}
    if not isinstance(text, Mapping):
        text = {key: outer.pop(key) for key in list(outer) if key not in tower.inert | {"tie_word_embeddings"}}
    for key, value in outer.items():
        if key not in tower.inert | {"model_type", "tie_word_embeddings"}:
            _account_for(key, value, name, frozenset(), source)
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", tower.tied))
    family = text.get("model_type", tower.family)
    if family not in (name, tower.family):
        raise JobError(f"{source}: text_config.model_type={family!r} is not {tower.family!r}, which {name} has here")
    return {**text, "model_type": tower.family, "tie_word_embeddings": tied}


def _refuse_quantized(config: Mapping[str, Any], source: str, read: frozenset[str] = frozenset()) -> None:
    """Raises JobError for weights that are quantized in another way than those that are `read`."""
    for key in QUANTIZATION:
        if scheme := config.get(key):
            method = scheme.get("quant_method") or scheme.get("fmt") if isinstance(scheme, Mapping) else scheme
            if isinstance(method, str) and method in read:
                continue
            kind = (scheme.get("quant_algo") or scheme.get("format")) if isinstance(scheme, Mapping) else None
            named = " ".join(str(part) for part in (method, kind) if part) or "scheme not named"
            raise JobError(
                f"{source}: {key} says that the weights are quantized ({named}); "
                f"use the model's {', '.join([*sorted(read), 'bfloat16, float16'])} or float32 weights"
            )


def _account_for(key: str, value: Any, family: str, applied: frozenset[str], source: str) -> None:
    """Raises JobError for a key that may change the computation and has another value than is computed here."""
    of_family = FAMILIES.get(family)  # None: the outer model of one with vision
    if key in applied or key in INERT or (of_family is not None and key in of_family.inert):
        return
    values = COMPUTED if of_family is None else {**COMPUTED, **of_family.computed}
    if key in values:
        if any(type(value) is type(known) and value == known for known in values[key]):
            return
        computed = " or ".join(map(json.dumps, values[key]))
        raise JobError(f"{source}: {key}={json.dumps(value)} is not supported; only {computed} is computed here")
    if value is None or _default(family, key) == value or not _occurs_in_transformers(key, family):
        return
    raise JobError(
        f"{source}: {key}={json.dumps(value)} is not applied to {family} here, and transformers may read it; if the "
        "vectors do not depend on it, remove it from a copy of config.json and give that folder as model.path"
    )


def _default(family: str, key: str) -> Any:
    """Returns the value of `key` in a configuration of this family with nothing set."""
    from transformers import CONFIG_MAPPING  # imports for a second

    return getattr(CONFIG_MAPPING[family], key, None)


def _occurs_in_transformers(key: str, family: str) -> bool:
    """Returns whether the sources that make up the family's model hold the word `key`; else they cannot read it."""
    return key in _words(family)


@cache
def _words(family: str) -> frozenset[str]:
    import transformers
    from transformers import CONFIG_MAPPING

    package = Path(transformers.__file__).parent
    files = [package / name for name in SHARED_SOURCES]
    files += [path for folder in SHARED_FOLDERS for path in (package / folder).glob("*.py")]
    files += (package.parent / Path(*CONFIG_MAPPING[family].__module__.split(".")[:-1])).glob("*.py")
    return frozenset(re.findall(r"\w+", " ".join(path.read_text() for path in files)))


def _resolved(config: dict[str, Any], source: str) -> Any:
    """Returns the configuration object that transformers makes of these keys."""
    from transformers import CONFIG_MAPPING

    try:
        return CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
    except Exception as error:  # whatever a stranger's values make transformers raise
        reason = " ".join(str(error).split())
        raise JobError(f"{source}: transformers refuses it: {reason or type(error).__name__}") from error
