"""A decoder in NumPy as transformers writes it: the reference where torch is not installed.

It shares nothing with the model that it checks: settings are read from transformers' own configuration object, tensors
by their names in a Hugging Face checkpoint, and the layers are written out as in transformers' `modeling_*.py`. Weights
pass through memory layer by layer.

T tokens of all sequences, S positions of one, D hidden, N query heads, K key/value heads, H head size, R = H/2.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from pod_job.checking.hf_tensors import HfTensors
from pod_job.checking.numpy_rotary import head_size, rotary_tables, rotates, window_of
from pod_job.checking.reference_facts import facts_of_logits
from pod_job.formats.relative_errors import tap_errors
from pod_job.formats.rows_table import COMPUTED
from pod_job.run_folder.layout import layer_number

Product = Callable[[Float[np.ndarray, "T i"], Float[np.ndarray, "o i"]], Float[np.ndarray, "T o"]]
"""Returns x times the transpose of a weight, in float32."""
GEMMA = ("gemma", "gemma2", "gemma3_text")
OLMO = ("olmo2", "olmo3")
POST_NORMS = ("gemma2", "gemma3_text", *OLMO)
COVERED = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", *GEMMA, *OLMO)
"""Families that are written out here."""


@dataclass(frozen=True)
class Rounding:
    """Arithmetic of a dtype: what transformers keeps in it between two operations is rounded to it."""

    dtype: np.dtype

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.dtype == np.float32:
            return x
        with np.errstate(over="ignore"):
            return x.astype(self.dtype).astype(np.float32)


@dataclass(frozen=True)
class Pass:
    """One pass over all sequences, which lie one behind the other: its arithmetic, and the product of its matrices."""

    config: Any
    bounds: tuple[slice, ...]
    keep: Rounding
    product: Product

    def project(self, x: np.ndarray, w: dict[str, np.ndarray], name: str, bias: bool) -> np.ndarray:
        y = self.product(x, self.keep(w[f"{name}.weight"]))
        return self.keep(y + self.keep(w[f"{name}.bias"]) if bias else y)

    def norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Returns the RMSNorm over the last dimension; Gemma's weight is added to one."""
        normed = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(self.config.rms_norm_eps))
        if self.config.model_type in (*GEMMA, *OLMO):
            return self.keep(normed * (self.keep(weight) + (self.config.model_type in GEMMA)))
        return self.keep(self.keep(normed) * self.keep(weight))

    def embed(self, rows: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "T D"]:
        scale = math.sqrt(self.config.hidden_size) if self.config.model_type in GEMMA else 1.0
        scale *= getattr(self.config, "embedding_multiplier", 1.0)
        return self.keep(self.keep(rows) * self.keep(np.array(scale, np.float32)))

    def layer(
        self, i: int, x: Float[np.ndarray, "T D"], w: dict[str, np.ndarray]
    ) -> tuple[Float[np.ndarray, "T D"], dict[str, np.ndarray]]:
        """Returns the residual stream after layer i, and every site of the layer."""
        config, post_norms = self.config, self.config.model_type in POST_NORMS
        pre_norms, multiplier = config.model_type not in OLMO, np.float32(getattr(config, "residual_multiplier", 1.0))
        attn_in = self.norm(x, w["input_layernorm.weight"]) if pre_norms else x
        bias = bool(getattr(config, "attention_bias", False))
        qkv_bias = bias or config.model_type == "qwen2"
        q, k, v = (self.project(attn_in, w, f"self_attn.{name}_proj", qkv_bias) for name in "qkv")
        z = self.attention(i, q, k, v, w)
        attn_raw = self.project(z, w, "self_attn.o_proj", bias)
        attn_out = self.norm(attn_raw, w["post_attention_layernorm.weight"]) if post_norms else attn_raw
        attn_out = self.keep(attn_out * multiplier)
        resid_mid = self.keep(x + attn_out)
        mlp_norm = "pre_feedforward_layernorm" if post_norms else "post_attention_layernorm"
        mlp_in = self.norm(resid_mid, w[f"{mlp_norm}.weight"]) if pre_norms else resid_mid
        mlp_bias = bool(getattr(config, "mlp_bias", False))
        gate, up = (self.project(mlp_in, w, f"mlp.{name}_proj", mlp_bias) for name in ("gate", "up"))
        mlp_act = self.keep(self.keep(activation(config, gate)) * up)
        mlp_raw = self.project(mlp_act, w, "mlp.down_proj", mlp_bias)
        mlp_out = self.norm(mlp_raw, w["post_feedforward_layernorm.weight"]) if post_norms else mlp_raw
        mlp_out = self.keep(mlp_out * multiplier)
        resid_post = self.keep(resid_mid + mlp_out)
        sites = {
            **{"resid_pre": x, "attn_in": attn_in, "q": q, "k": k, "v": v, "z": z, "attn_out_pre_norm": attn_raw},
            **{"attn_out": attn_out, "resid_mid": resid_mid, "mlp_in": mlp_in, "mlp_act": mlp_act},
            **{"mlp_out_pre_norm": mlp_raw, "mlp_out": mlp_out, "resid_post": resid_post},
        }
        return resid_post, sites

    def attention(
        self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, w: dict[str, np.ndarray]
    ) -> Float[np.ndarray, "T NH"]:
        config = self.config
        H = head_size(config)
        if config.model_type in OLMO:  # over all heads at once
            q, k = self.norm(q, w["self_attn.q_norm.weight"]), self.norm(k, w["self_attn.k_norm.weight"])
        q, k, v = (x.reshape(len(x), -1, H) for x in (q, k, v))
        if config.model_type not in OLMO and "self_attn.q_norm.weight" in w:
            q, k = self.norm(q, w["self_attn.q_norm.weight"]), self.norm(k, w["self_attn.k_norm.weight"])
        z = np.empty_like(q)
        group, window = q.shape[1] // k.shape[1], window_of(config, i)
        for span in self.bounds:
            cos, sin = (self.keep(table) for table in rotary_tables(config, i, span.stop - span.start))
            turned = (self.rotate(x[span], cos, sin) for x in (q, k))
            queries, keys = turned if rotates(config, i) else (q[span], k[span])
            seen = visible(len(queries), window)
            for head in range(q.shape[1]):
                z[span, head] = self.attend(queries[:, head], keys[:, head // group], v[span, head // group], seen)
        return z.reshape(len(z), -1)

    def attend(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray) -> Float[np.ndarray, "S H"]:
        """Returns one head's output, with scores and their softmax in float32."""
        config = self.config
        scale = getattr(config, "query_pre_attn_scalar", head_size(config)) ** -0.5
        scale = getattr(config, "attention_multiplier", scale)
        scores = np.float32(scale) * (q @ k.T)
        if config.model_type == "gemma2" and config.attn_logit_softcapping is not None:
            cap = np.float32(config.attn_logit_softcapping)
            scores = cap * np.tanh(scores / cap)
        weights = np.exp(np.where(seen, scores - scores.max(-1, where=seen, initial=-np.inf, keepdims=True), -np.inf))
        return self.keep(self.keep(weights / weights.sum(-1, keepdims=True)) @ v)

    def facts(
        self, x: Float[np.ndarray, "T D"], head: Float[np.ndarray, "V D"], sequences: Sequence[np.ndarray]
    ) -> dict[str, Float[np.ndarray, "T 1"]]:
        """Returns log probabilities and entropies of all tokens, given the final norm's output; no logit is rounded."""
        columns, weight = [], self.keep(head)
        for span, token_ids in zip(self.bounds, sequences, strict=True):
            logits = self.product(x[span], weight) / np.float32(getattr(self.config, "logits_scaling", 1.0))
            cap = getattr(self.config, "final_logit_softcapping", None)
            logits = logits if cap is None else np.float32(cap) * np.tanh(logits / np.float32(cap))
            columns.append(facts_of_logits(logits, token_ids, COMPUTED))
        return {name: np.concatenate([of_one[name] for of_one in columns]) for name in COMPUTED}

    def rotate(self, x: Float[np.ndarray, "S _ H"], cos: np.ndarray, sin: np.ndarray) -> Float[np.ndarray, "S _ H"]:
        half = x.shape[-1] // 2
        turned = np.concatenate([-x[..., half:], x[..., :half]], -1)
        return self.keep(self.keep(x * cos[:, None]) + self.keep(turned * sin[:, None]))


def numpy_taps(
    config: Any,
    tensors: HfTensors,
    sequences: Sequence[np.ndarray],
    names: Collection[str],
    dtype: np.dtype,
    product: Product,
) -> tuple[dict[str, Float[np.ndarray, "T _"]], dict[str, Float[np.ndarray, "T"]]]:
    """Returns the taps of sequences that lie one behind the other, in float32, and by how far `dtype` misses them.

    Args:
        config: the text model's configuration as transformers resolves it.
        names: of the taps to return, and of columns: `logprob`, `entropy`. No layer past the last tap runs where
            there is no column.
        dtype: of the second pass, whose errors of rows are returned, see `tap_errors`.
    """
    ends = np.cumsum([0, *map(len, sequences)]).tolist()
    bounds = tuple(map(slice, ends, ends[1:]))
    passes = [Pass(config, bounds, Rounding(np.dtype(kind)), product) for kind in (np.float32, dtype)]
    truths, errors = {}, {}

    def record(name: str, values: Sequence[np.ndarray]) -> None:
        if name in names:
            truths[name] = values[0]
            errors[name] = tap_errors(name, values[1], values[0])

    rows = tensors.embedding(np.concatenate(sequences))
    states = [one.embed(rows) for one in passes]
    record("embed", states)
    facts = [name for name in COMPUTED if name in names]
    last = config.num_hidden_layers if facts else 1 + max(map(layer_number, names))
    for i in range(min(config.num_hidden_layers, last)):
        weights = {name: tensors.read(f"model.layers.{i}.{name}") for name in tensor_names(config)}
        both = [one.layer(i, x, weights) for one, x in zip(passes, states, strict=True)]
        states = [x for x, _ in both]
        for site in both[0][1]:
            name = f"layer_{i}" if site == "resid_post" else f"layer_{i}.{site}"
            record(name, [sites[site] for _, sites in both])
    final = f"layer_{config.num_hidden_layers}_norm"
    if final in names or facts:
        norm = tensors.read("model.norm.weight")
        states = [one.norm(x, norm) for one, x in zip(passes, states, strict=True)]
        record(final, states)
    if facts:
        head = tensors.read("model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight")
        found = [one.facts(x, head, sequences) for one, x in zip(passes, states, strict=True)]
        for name in facts:
            record(name, [columns[name] for columns in found])
    return truths, errors


def tensor_names(config: Any) -> list[str]:
    """Returns the names of a layer's tensors, after `model.layers.{i}.`."""
    family, bias = config.model_type, bool(getattr(config, "attention_bias", False))
    names = ["post_attention_layernorm.weight", *(["input_layernorm.weight"] if family not in OLMO else [])]
    if family in POST_NORMS:
        names += ["post_feedforward_layernorm.weight"]
        names += ["pre_feedforward_layernorm.weight"] if family not in OLMO else []
    if family in ("qwen3", "gemma3_text", *OLMO):
        names += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
    for projection in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
        names.append(f"{projection}.weight")
        if bias or (family == "qwen2" and projection != "self_attn.o_proj"):
            names.append(f"{projection}.bias")
    for projection in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        names += [f"{projection}.weight", *([f"{projection}.bias"] if getattr(config, "mlp_bias", False) else [])]
    return names


def visible(S: int, window: int | None) -> np.ndarray:
    back = np.arange(S)[:, None] - np.arange(S)[None, :]
    return (back >= 0) & (back < (S if window is None else window))


def activation(config: Any, x: np.ndarray) -> np.ndarray:
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    with np.errstate(over="ignore"):
        if name in ("silu", "swish"):
            return x / (1 + np.exp(-x))
        if name == "quick_gelu":
            return x / (1 + np.exp(np.float32(-1.702) * x))
    if name in ("relu", "relu2"):
        return np.maximum(x, 0) ** (2 if name == "relu2" else 1)
    if name in ("gelu", "gelu_python"):
        return x * np.vectorize(math.erf, otypes=[np.float32])(x / np.float32(math.sqrt(2))) / 2 + x / 2
    assert name.startswith("gelu_"), name
    return 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))
