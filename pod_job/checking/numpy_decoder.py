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
from pod_job.checking.numpy_tensors import (
    GEMMA,
    KINDS,
    OLMO,
    OUTER_MODULES,
    POST_NORMS,
    layer_tensors,
    outer_modules,
)
from pod_job.checking.reference_facts import facts_of_logits
from pod_job.formats.relative_errors import tap_errors
from pod_job.formats.rows_table import COMPUTED
from pod_job.run_folder.layout import layer_number

Product = Callable[[Float[np.ndarray, "T i"], Float[np.ndarray, "o i"]], Float[np.ndarray, "T o"]]
"""Returns x times the transpose of a weight, in float32."""
COVERED = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", *GEMMA, *OLMO, "gpt2", "gpt_neox", "phi3")
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

    def project(self, x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
        y, bias = self.product(x, self.keep(w[f"{name}.weight"])), w.get(f"{name}.bias")
        return self.keep(y if bias is None else y + self.keep(bias))

    def norm(self, x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
        """Returns the norm over the last dimension: a LayerNorm has a bias; Gemma's weight is added to one."""
        weight, bias = self.keep(w[f"{name}.weight"]), w.get(f"{name}.bias")
        x = x if bias is None else x - np.mean(x, axis=-1, keepdims=True)
        normed = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(norm_eps(self.config)))
        if bias is not None:
            return self.keep(normed * weight + self.keep(bias))
        if self.config.model_type in (*GEMMA, *OLMO):
            return self.keep(normed * (weight + (self.config.model_type in GEMMA)))
        return self.keep(self.keep(normed) * weight)

    def embed(self, rows: Float[np.ndarray, "T D"], tensors: HfTensors) -> Float[np.ndarray, "T D"]:
        """Returns the rows of the embedding as the first layer takes them."""
        if self.config.model_type == "gpt2":
            positions = tensors.read("model.wpe.weight")
            of_rows = np.concatenate([positions[: span.stop - span.start] for span in self.bounds])
            return self.keep(self.keep(rows) + self.keep(of_rows))
        scale = math.sqrt(self.config.hidden_size) if self.config.model_type in GEMMA else 1.0
        scale *= getattr(self.config, "embedding_multiplier", 1.0)
        return self.keep(self.keep(rows) * self.keep(np.array(scale, np.float32)))

    def layer(
        self, i: int, x: Float[np.ndarray, "T D"], w: dict[str, np.ndarray]
    ) -> tuple[Float[np.ndarray, "T D"], dict[str, np.ndarray]]:
        """Returns the residual stream after layer i, and every site of the layer."""
        config, post_norms = self.config, self.config.model_type in POST_NORMS
        pre_norms, multiplier = config.model_type not in OLMO, np.float32(getattr(config, "residual_multiplier", 1.0))
        attn_in = self.norm(x, w, "input_layernorm") if pre_norms else x
        q, k, v = (self.project(attn_in, w, f"self_attn.{name}_proj") for name in "qkv")
        z = self.attention(i, q, k, v, w)
        attn_raw = self.project(z, w, "self_attn.o_proj")
        attn_out = self.norm(attn_raw, w, "post_attention_layernorm") if post_norms else attn_raw
        attn_out = self.keep(attn_out * multiplier)
        resid_mid, parallel = self.keep(x + attn_out), bool(getattr(config, "use_parallel_residual", False))
        mlp_norm = "pre_feedforward_layernorm" if post_norms else "post_attention_layernorm"
        mlp_in = x if parallel else resid_mid
        mlp_in = self.norm(mlp_in, w, mlp_norm) if pre_norms else mlp_in
        mlp_act = self.mlp_act(mlp_in, w)
        mlp_raw = self.project(mlp_act, w, "mlp.down_proj")
        mlp_out = self.norm(mlp_raw, w, "post_feedforward_layernorm") if post_norms else mlp_raw
        mlp_out = self.keep(mlp_out * multiplier)
        resid_post = self.keep(self.keep(mlp_out + attn_out) + x if parallel else resid_mid + mlp_out)
        sites = {
            **{"resid_pre": x, "attn_in": attn_in, "q": q, "k": k, "v": v, "z": z, "attn_out_pre_norm": attn_raw},
            **{"attn_out": attn_out, "resid_mid": resid_mid, "mlp_in": mlp_in, "mlp_act": mlp_act},
            **{"mlp_out_pre_norm": mlp_raw, "mlp_out": mlp_out, "resid_post": resid_post},
        }
        return resid_post, sites

    def mlp_act(self, x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
        """Returns what the down projection takes."""
        up = self.project(x, w, "mlp.up_proj")
        if "mlp.gate_proj.weight" not in w:
            return self.keep(activation(self.config, up))
        return self.keep(self.keep(activation(self.config, self.project(x, w, "mlp.gate_proj"))) * up)

    def attention(
        self, i: int, q: np.ndarray, k: np.ndarray, v: np.ndarray, w: dict[str, np.ndarray]
    ) -> Float[np.ndarray, "T NH"]:
        config = self.config
        H = head_size(config)
        if config.model_type in OLMO:  # over all heads at once
            q, k = self.norm(q, w, "self_attn.q_norm"), self.norm(k, w, "self_attn.k_norm")
        q, k, v = (x.reshape(len(x), -1, H) for x in (q, k, v))
        if config.model_type not in OLMO and "self_attn.q_norm.weight" in w:
            q, k = self.norm(q, w, "self_attn.q_norm"), self.norm(k, w, "self_attn.k_norm")
        z = np.empty_like(q)
        group, window = q.shape[1] // k.shape[1], window_of(config, i)
        for span in self.bounds:
            queries, keys = q[span], k[span]
            if rotates(config, i):
                cos, sin = (self.keep(table) for table in rotary_tables(config, i, len(queries)))
                queries, keys = self.rotate(queries, cos, sin), self.rotate(keys, cos, sin)
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
        """Returns x with the first dimensions of each head rotated, as many as `cos` and `sin` have."""
        size = cos.shape[-1]
        part, half = x[..., :size], size // 2
        turned = np.concatenate([-part[..., half:], part[..., :half]], -1)
        turned = self.keep(self.keep(part * cos[:, None]) + self.keep(turned * sin[:, None]))
        return np.concatenate([turned, x[..., size:]], -1)


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
    states = [one.embed(rows, tensors) for one in passes]
    record("embed", states)
    facts = [name for name in COMPUTED if name in names]
    last = config.num_hidden_layers if facts else 1 + max(map(layer_number, names))
    for i in range(min(config.num_hidden_layers, last)):
        weights = layer_tensors(config, i, tensors.read)
        both = [one.layer(i, x, weights) for one, x in zip(passes, states, strict=True)]
        states = [x for x, _ in both]
        for site in both[0][1]:
            name = f"layer_{i}" if site == "resid_post" else f"layer_{i}.{site}"
            record(name, [sites[site] for _, sites in both])
    final = f"layer_{config.num_hidden_layers}_norm"
    _, final_norm, head_name = outer_modules(config)
    if final in names or facts:
        kinds = KINDS if config.model_type in OUTER_MODULES else KINDS[:1]
        norm = {f"{final_norm}.{kind}": tensors.read(f"{final_norm}.{kind}") for kind in kinds}
        states = [one.norm(x, norm, final_norm) for one, x in zip(passes, states, strict=True)]
        record(final, states)
    if facts:
        head = tensors.read(f"{head_name}.weight")
        found = [one.facts(x, head, sequences) for one, x in zip(passes, states, strict=True)]
        for name in facts:
            record(name, [columns[name] for columns in found])
    return truths, errors


def norm_eps(config: Any) -> float:
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
    return next(getattr(config, name) for name in names if hasattr(config, name))


def visible(S: int, window: int | None) -> np.ndarray:
    back = np.arange(S)[:, None] - np.arange(S)[None, :]
    return (back >= 0) & (back < (S if window is None else window))


def activation(config: Any, x: np.ndarray) -> np.ndarray:
    names = ("hidden_activation", "activation_function", "hidden_act")
    name = next(value for key in names if (value := getattr(config, key, None)))
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
