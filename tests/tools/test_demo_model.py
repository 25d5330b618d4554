"""The demo's model: a Llama checkpoint and its tokenizer come back out of a GGUF file as they went in."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import pre_tokenizers

from pod_job.errors import JobError
from tools.demo_model import TENSOR_NAMES, hf_config, hf_weights, unpermuted, write_demo_model
from tools.gguf_tokenizer import tokenizer_config_of, tokenizer_of
from tools.tiny_model import SPECIAL_TOKENS, write_tiny_model


def permuted(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Permutes q or k rows of a Llama checkpoint as llama.cpp's converter does."""
    rows, width = weight.shape
    return weight.reshape(n_heads, 2, rows // n_heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write_gguf(folder: Path, gguf_file: Path, tokenizer_pre: str = "smollm") -> None:
    """Write a tiny Hugging Face Llama folder as llama.cpp would: its names, its q/k order, Q8_0 down projections."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    writer = gguf.GGUFWriter(gguf_file, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tokenizer_pre)
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "12"]
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ a", "1 2"])
    for name in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{name}_token_id")(0 if name == "unk" else 2)
    writer.add_chat_template("{{ messages }}")
    for gguf_name, hf_name in TENSOR_NAMES.items():
        for i in range(config["num_hidden_layers"] if "{i}" in gguf_name else 1):
            if (weight := weights.get(hf_name.format(i=i))) is None:
                continue
            for part, heads in (("attn_q", "num_attention_heads"), ("attn_k", "num_key_value_heads")):
                weight = permuted(weight, config[heads]) if part in gguf_name else weight
            if "ffn_down" in gguf_name:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(gguf_name.format(i=i), gguf.quantize(weight, kind), raw_dtype=kind)
            else:
                writer.add_tensor(gguf_name.format(i=i), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_checkpoint_survives_the_way_through_gguf(tmp_path, tied):
    folder = write_tiny_model(tmp_path / "m", "llama", tied=tied, rope_theta=5000.0, old_rope_spelling=True)
    write_gguf(folder, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    expected = json.loads((folder / "config.json").read_text())
    config = hf_config(reader)
    renamed = {"bos_token_id", "eos_token_id", "pad_token_id"}
    assert {k: v for k, v in config.items() if k in expected.keys() - renamed} == {
        k: v for k, v in expected.items() if k in config.keys() - renamed
    }
    weights, original = dict(hf_weights(reader, config)), load_file(folder / "model.safetensors")
    assert weights.keys() == original.keys()
    for name, weight in weights.items():
        assert weight.dtype == np.float32
        # Q8_0 keeps eight bits of the largest of 32 neighbours; everything else is float32 and must be exact.
        tolerance = np.abs(original[name]).max() / 250 if "down_proj" in name else 0
        np.testing.assert_allclose(weight, original[name], rtol=0, atol=tolerance, err_msg=name)


def test_unpermuted_rows_are_those_that_were_permuted():
    weight = np.arange(24 * 5, dtype=np.float32).reshape(24, 5)
    for n_heads in (1, 2, 3, 6):
        np.testing.assert_array_equal(unpermuted(permuted(weight, n_heads), n_heads), weight)
    # llama.cpp pairs neighbours, Hugging Face rows half a head apart.
    np.testing.assert_array_equal(permuted(weight, 3)[:4], weight[[0, 4, 1, 5]])


def test_the_tokenizer_of_a_gguf_file_merges_splits_digits_and_keeps_special_tokens(tmp_path):
    write_gguf(write_tiny_model(tmp_path / "m", "llama", old_rope_spelling=True), tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tokenizer = tokenizer_of(reader)
    # "12" is in the vocabulary and has a merge, but digits are split before merging.
    assert tokenizer.encode("b a12<|im_end|>").tokens == ["b", "Ġa", "1", "2", "<|im_end|>"]
    config = tokenizer_config_of(reader)
    assert (config["eos_token"], config["unk_token"], config["chat_template"]) == (
        "<|im_end|>",
        "<|endoftext|>",
        "{{ messages }}",
    )


def test_a_gguf_file_with_another_tokenizer_or_tensor_is_refused(tmp_path):
    folder = write_tiny_model(tmp_path / "m", "llama", old_rope_spelling=True)
    write_gguf(folder, tmp_path / "m.gguf", tokenizer_pre="llama-bpe")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    with pytest.raises(JobError, match="tokenizer gpt2/llama-bpe"):
        tokenizer_of(reader)
    reader.tensors[5] = reader.tensors[5]._replace(name="blk.0.attn_sinks.weight")
    with pytest.raises(JobError, match=r"tensor blk\.0\.attn_sinks\.weight is not known"):
        dict(hf_weights(reader, hf_config(reader)))


def test_a_folder_with_something_else_is_refused_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("UV_NO_INDEX", "1")
    folder = write_tiny_model(tmp_path / "m")
    for place in (folder, folder / "config.json"):
        with pytest.raises(JobError, match="holds something else already"):
            write_demo_model(place)
