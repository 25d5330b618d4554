"""The text models of models with vision, as Hugging Face's whole models compute them for text."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_models import apply, error, load

from pod_job.errors import JobError
from pod_job.models.arch import read_arch
from pod_job.models.families import TOWERS

pytestmark = pytest.mark.slow

TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
MROPE = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 2, 2], "rope_theta": 500.0}
TOKEN_IDS = dict.fromkeys(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"), 95)
QWEN = {"text_config": TEXT | {"rope_parameters": MROPE}, **TOKEN_IDS}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "depth": 1}
DELTA = {
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 12,
    "head_dim": 12,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 16,
}
INTERLEAVED = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [1, 1, 1], "rope_theta": 500.0}
QWEN_3_5 = {
    "text_config": TEXT | DELTA | {"rope_parameters": INTERLEAVED | {"partial_rotary_factor": 0.5}},
    "vision_config": VISION | {"num_heads": 2, "out_hidden_size": 48, "deepstack_visual_indexes": []},
    **TOKEN_IDS,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": TEXT | {"head_dim": 12, "sliding_window": 4, "model_type": "gemma3_text"},
        "vision_config": VISION | {"image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
    },
    "mistral3": {
        "text_config": TEXT | {"model_type": "mistral", "head_dim": 12, "sliding_window": None},
        "vision_config": VISION | {"image_size": 28, "patch_size": 14, "model_type": "pixtral"},
        "image_token_index": 95,
    },
    "qwen2_vl": QWEN | {"vision_config": VISION | {"embed_dim": 16, "hidden_size": 48, "num_heads": 2}},
    "qwen3_5": QWEN_3_5,
    "qwen3_5_moe": QWEN_3_5 | {"text_config": QWEN_3_5["text_config"] | EXPERTS},
    "qwen2_5_vl": QWEN
    | {"vision_config": VISION | {"out_hidden_size": 48, "num_heads": 2, "fullatt_block_indexes": [0]}},
}


@pytest.mark.parametrize("name", TOWERS)
def test_every_tap_of_a_text_equals_hugging_face(name: str, tmp_path: Path, torch_there: None) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    from pod_job.checking.hf_reference import load_reference, run_reference

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING[name].from_dict(CONFIGS[name]))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2)
    model.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 90, (2, 12))
    truth = run_reference(load_reference(tmp_path), ids)
    decoder, params = load(tmp_path, taps=["*"])
    with jax.disable_jit():
        found = apply(decoder, params, ids)
    assert found.keys() == truth.keys()
    assert {tap: off for tap in found if not (off := error(found[tap], truth[tap])) <= 1e-5} == {}


@pytest.mark.parametrize("name", [name for name, tower in TOWERS.items() if tower.flat])
def test_older_files_have_the_keys_of_the_text_model_beside_those_of_vision(name: str) -> None:
    nested = {"model_type": name, **CONFIGS[name]}
    text = {key: value for key, value in nested["text_config"].items() if key != "rope_parameters"}
    scaling = {"type": "mrope", "mrope_section": [2, 2, 2]}
    flat = {key: value for key, value in nested.items() if key != "text_config"}
    assert read_arch(flat | text | {"rope_scaling": scaling, "rope_theta": 500.0}) == read_arch(nested)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text_config": TEXT | {"model_type": "ministral"}}, "text_config.model_type='ministral' is not 'mistral'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config says"),
        ({"text_config": TEXT | {"attention_chunk_size": 8}}, "attention_chunk_size=8 is not supported"),
    ],
)
def test_a_text_model_of_another_kind_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError) as refused:
        read_arch(json.loads(json.dumps({"model_type": "mistral3", **CONFIGS["mistral3"], **change})))
    assert says in str(refused.value)
