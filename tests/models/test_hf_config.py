"""Every key of a config.json is accounted for: against transformers' own classes, so that a new key fails here."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from test_config_variants import REMOVED, variant
from transformers import CONFIG_MAPPING

from pod_job.errors import JobError
from pod_job.models.arch import read_arch
from pod_job.models.families import FAMILIES
from pod_job.models.hf_config import COMPUTED, INERT, resolve
from tools.tiny_model import TinyModel


def accounted_for(family: str) -> set[str]:
    table = FAMILIES[family]
    return set(table.all_applied | table.inert | INERT) | set(COMPUTED) | set(table.computed)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_of_the_configuration_class_is_accounted_for(family: str) -> None:
    fields = {field.name for field in dataclasses.fields(CONFIG_MAPPING[family])}
    assert fields - accounted_for(family) == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_attribute_that_a_model_reads_is_accounted_for_or_refused_when_it_is_set(family: str) -> None:
    package = Path(transformers.__file__).parent
    folder = package.parent / Path(*CONFIG_MAPPING[family].__module__.split(".")[:-1])
    sources = [*folder.glob("modeling_*.py"), package / "masking_utils.py", package / "modeling_rope_utils.py"]
    text = "".join(path.read_text() for path in sources)
    read = set(re.findall(r"\bconfig\.(\w+)", text)) | set(re.findall(r"getattr\([\w.]*config, \"(\w+)\"", text))
    for key in sorted(read - accounted_for(family)):
        with pytest.raises(JobError, match=rf"{key}=7 is not applied"):
            resolve(variant(family, {key: 7}), "config.json")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_key_left_out_means_what_transformers_means_by_that(family: str) -> None:
    """Its default spelled out, as transformers writes it, makes the same model."""
    applied, left_out = FAMILIES[family].all_applied, 0
    for key in sorted(applied & variant(family, {}).keys() - {"model_type"}):
        config = variant(family, {key: REMOVED})
        try:
            arch = read_arch(config)
        except JobError:
            continue
        left_out += 1
        written = CONFIG_MAPPING[family].from_dict(copy.deepcopy(config)).to_dict()
        assert arch == read_arch({name: value for name, value in written.items() if name in applied}), key
        if key == "tie_word_embeddings" and key in written:  # text models of Qwen2-VL leave it to the whole model
            assert arch.tied is written[key]
    assert left_out >= 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"is_causal": False}, "is_causal=false is not supported; only true is computed here"),
        (
            {"quantization_config": {"quant_method": "bitnet"}},
            r"quantization_config says .* quantized \(bitnet\)",
        ),
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
            r"quantization_config says .* quantized \(modelopt NVFP4\)",
        ),
        ({"num_mtp_layers": 2}, "num_mtp_layers=2 is not applied to llama here"),
        ({"attention_bias": "yes"}, "transformers refuses it: .*attention_bias"),
    ],
)
def test_what_would_change_the_vectors_is_refused_by_key_and_value(change: dict, says: str) -> None:
    with pytest.raises(JobError, match=rf"^config\.json: {says}"):
        resolve(variant("llama", change), "config.json")


def test_a_key_that_transformers_cannot_read_is_no_reason_to_refuse() -> None:
    plain, extended = (variant("qwen3", change) for change in ({}, {"made_by_our_trainer": {"epochs": 3}}))
    assert resolve(plain, "config.json") == resolve(extended, "config.json")


# Keys in the config.json files of the hub that no vector depends on, beside those that a tiny model writes.
HUB_KEYS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_ctx": 1024, "summary_activation": None, "summary_first_dropout": 0.1, "summary_type": "cls_index"},
    "gpt_neox": {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "classifier_dropout": 0.1},
    "phi3": {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False},
    "smollm3": {"max_window_layers": 28, "pretraining_tp": 2, "use_sliding_window": False},
    "qwen3_next": {"decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False},
    "qwen3_5_text": {"attn_output_gate": True, "mamba_ssm_dtype": "float32", "mlp_only_layers": []},
    "qwen3_5_moe_text": {"attn_output_gate": True, "mtp_num_hidden_layers": 1, "mlp_only_layers": []},
}


@pytest.mark.parametrize("family", HUB_KEYS)
def test_keys_of_files_on_the_hub_change_nothing(family: str) -> None:
    config = TinyModel(family).config()
    assert read_arch(config | HUB_KEYS[family]) == read_arch(config)
