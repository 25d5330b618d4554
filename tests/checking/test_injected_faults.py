"""Faults put into the model on purpose are refused by the gate's limits.

`python -m pytest -m "" -s tests/checking/test_injected_faults.py` prints the table of errors in sizes of their limits.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.checking.gate_prompts import gate_prompts
from pod_job.checking.limits import RowRounding, excess, limits, stored_rounding, summary
from pod_job.checking.reference import Reference, find_reference
from pod_job.checking.relative_errors import relative_errors
from pod_job.checkpoints.hf_folder import HfModel, write_hf_folder
from pod_job.checkpoints.load import load_params
from pod_job.checkpoints.random_model import byte_tokenizer, byte_tokenizer_config, random_weights
from pod_job.config.load import load
from pod_job.models.arch import Arch, LayerAttention
from pod_job.models.decoder import Decoder, Output
from pod_job.models.hf_config import FAMILIES
from pod_job.models.rope import Rope
from pod_job.planning.inputs import Inputs, read_inputs
from tools.tiny_model import TinyModel

Weights = dict[str, jax.Array]
Change = Callable[[Arch, Weights], tuple[Arch, Weights]]


class Fault(NamedTuple):
    family: str
    name: str
    change: Change


def arch(**fields) -> Change:
    return lambda arch, weights: (dataclasses.replace(arch, **fields), weights)


def weight(change: Callable[[jax.Array], jax.Array], *names: str) -> Change:
    return lambda arch, weights: (arch, weights | {name: change(weights[name]) for name in names})


def moved(pairs: dict[str, str]) -> Change:
    return lambda arch, weights: (arch, weights | {name: weights[other] for name, other in pairs.items()})


def attention(change: Callable[[LayerAttention], LayerAttention]) -> Change:
    def changed(arch: Arch, weights: Weights) -> tuple[Arch, Weights]:
        return dataclasses.replace(arch, attention=tuple(map(change, arch.attention))), weights

    return changed


def rope(change: Callable[[Rope], Rope]) -> Change:
    return attention(lambda layer: dataclasses.replace(layer, rope=change(layer.rope)))


def window(change: Callable[[int], int | None]) -> Change:
    return attention(lambda layer: dataclasses.replace(layer, window=layer.window and change(layer.window)))


def layer_types_shifted(arch: Arch, weights: Weights) -> tuple[Arch, Weights]:
    return dataclasses.replace(arch, attention=(*arch.attention[1:], arch.attention[0])), weights


def halves(array: jax.Array) -> jax.Array:
    """Rotary pairs side by side, and not half a head apart."""
    return array.reshape(*array.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(array.shape)


zero, reverse = jnp.zeros_like, partial(jnp.flip, axis=2)
previous_layer = partial(jnp.roll, shift=1, axis=0)
eight_bits = lambda array: array.astype(jnp.float8_e4m3fn).astype(array.dtype)  # noqa: E731

FAULTS = [
    Fault("llama", "rope base 10 times", rope(lambda rope: dataclasses.replace(rope, theta=10 * rope.theta))),
    Fault("llama", "rope base 10% more", rope(lambda rope: dataclasses.replace(rope, theta=1.1 * rope.theta))),
    Fault("llama", "rope divided by 2", rope(lambda rope: dataclasses.replace(rope, kind="linear", factor=2.0))),
    Fault("llama", "rope pairs side by side", weight(halves, "q", "k")),
    Fault("llama", "attention factor of 1.1", rope(lambda rope: dataclasses.replace(rope, attention_factor=1.1))),
    Fault("llama", "eps 10 times", arch(norm_eps=1e-5)),
    Fault("llama", "no eps", arch(norm_eps=0.0)),
    Fault("llama", "gelu for silu", arch(activation="gelu_pytorch_tanh")),
    Fault("llama", "query scale 1 / H", arch(query_scale=1 / 16)),
    Fault("llama", "query scale 5% more", arch(query_scale=1.05 / 4)),
    Fault("llama", "gate and up exchanged", moved({"gate": "up", "up": "gate"})),
    Fault("llama", "norms exchanged", moved({"attn_norm": "mlp_norm", "mlp_norm": "attn_norm"})),
    Fault("llama", "weights of the layer before", weight(previous_layer, "q", "k", "v", "o")),
    Fault("llama", "mlp of the layer before", weight(previous_layer, "gate", "up", "down")),
    Fault("llama", "query heads reversed", weight(reverse, "q")),
    Fault("llama", "key heads reversed", weight(reverse, "k")),
    Fault("llama", "value heads reversed", weight(reverse, "v")),
    Fault("llama", "token ids one up", weight(partial(jnp.roll, shift=1, axis=0), "embed")),
    Fault("llama", "norm weights left out", weight(jnp.ones_like, "attn_norm")),
    Fault("llama", "final norm's weight left out", weight(jnp.ones_like, "final_norm")),
    Fault("llama", "mlp in eight bits", weight(eight_bits, "down")),
    Fault("qwen2", "no bias of q", weight(zero, "q_bias")),
    Fault("qwen2", "no bias of k", weight(zero, "k_bias")),
    Fault("qwen2", "no bias of v", weight(zero, "v_bias")),
    Fault("mistral", "window one longer", window(lambda size: size + 1)),
    Fault("mistral", "window one shorter", window(lambda size: size - 1)),
    Fault("mistral", "no window", window(lambda size: None)),
    Fault("qwen3", "no norm of keys", weight(jnp.ones_like, "k_norm")),
    Fault("qwen3", "norms of q and k left out", arch(qk_norm=False)),
    Fault("gemma2", "no cap of scores", arch(attn_softcap=None)),
    Fault("gemma2", "cap of scores 10% higher", arch(attn_softcap=2.2)),
    Fault("gemma2", "layer types shifted", layer_types_shifted),
    Fault("gemma2", "post norms exchanged", moved({"attn_post_norm": "mlp_post_norm", "mlp_post_norm": "mlp_norm"})),
    Fault("gemma2", "embedding not scaled", arch(embed_scale=1.0)),
    Fault("gemma3_text", "norms not plus one", arch(norm_plus_one=False)),
    Fault("gemma3_text", "one rope for all layers", rope(lambda rope: dataclasses.replace(rope, theta=10_000.0))),
]


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model, its reference in a dtype, and a way to compute with a changed model."""

    inputs: Inputs
    truth: Reference
    sequences: list[np.ndarray]
    weights: Weights

    @property
    def dtype(self) -> str:
        return self.inputs.config.model.dtype.value

    def excess(self, arch: Arch, weights: Weights) -> float:
        """Returns the largest ratio of an error to its limit, over the taps; over 1 the gate refuses."""
        model = Decoder(arch, self.inputs.taps, jnp.dtype(self.dtype))
        lengths = list(map(len, self.sequences))
        token_ids = np.concatenate(self.sequences)[None]
        positions = np.concatenate([np.arange(length) for length in lengths])[None]
        segments = np.repeat(np.arange(len(lengths)) + 1, lengths)[None]

        @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def forward(weights: Weights) -> dict[str, jax.Array]:
            output = model.apply(
                {"params": weights},
                jnp.asarray(token_ids),
                positions=jnp.asarray(positions),
                segment_ids=jnp.asarray(segments),
                return_activations=True,
                return_logits=False,
            )
            return cast(Output, output).activations

        return max(self.excess_of(tap, np.asarray(found[0], np.float32)) for tap, found in forward(weights).items())

    def excess_of(self, tap: str, vectors: np.ndarray) -> float:
        truth, stored = self.truth.truths[tap], np.dtype(np.float32)
        limit = limits(RowRounding(truth, self.truth.errors[tap], stored_rounding(truth, stored)))
        return excess(summary(relative_errors(vectors, truth)), limit)


def write_model(folder: Path, family: str) -> Path:
    """Writes a tiny model whose embeddings are small as in real ones, so that eps matters in its first norm."""
    model = TinyModel(family)
    weights = random_weights(model.config(), seed=0)
    weights["model.embed_tokens.weight"] *= 0.02 / (8 if family.startswith("gemma") else 1)
    return write_hf_folder(folder, HfModel(model.config(), weights, byte_tokenizer(), byte_tokenizer_config(4096)))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, torch_there: None) -> Iterator[Callable[[str, str], Bench]]:
    made: dict[tuple[str, str], Bench] = {}
    folder = tmp_path_factory.mktemp("faults")

    def make(family: str, dtype: str) -> Bench:
        if (family, dtype) not in made:
            overrides = [
                *(f"model.path={write_model(folder / family, family)}", f"model.dtype={dtype}", "tasks=arc_sample"),
                *("tasks.limit=2", "extract.seq_len=128", "extract.too_long=tail", "extract.taps=['*']"),
                f"storage.run_dir={folder / f'run_{family}_{dtype}'}",
            ]
            inputs = read_inputs(load(overrides))
            sequences = [prompt.token_ids for prompt in gate_prompts(inputs)]
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            params = load_params(inputs.checkpoint, inputs.table, jnp.dtype(dtype), dict.fromkeys(inputs.table, here))
            found = find_reference(inputs, sequences)
            made[family, dtype] = Bench(inputs, found, sequences, params["params"])
        return made[family, dtype]

    return make


def excesses(bench: Callable[[str, str], Bench], families: tuple[str, ...], dtype: str) -> dict[str, float]:
    """Returns the fault's largest error, in sizes of its limit."""
    found = {}
    for fault in FAULTS:
        if fault.family in families:
            made = bench(fault.family, dtype)
            found[f"{fault.family}: {fault.name}"] = made.excess(*fault.change(made.inputs.arch, made.weights))
    for name, size in found.items():
        print(f"| {dtype} | {name} | {size:.3g} |")
    return found


def test_there_are_enough_faults() -> None:
    assert len({(fault.family, fault.name) for fault in FAULTS}) == len(FAULTS) >= 30


def test_faults_of_one_family_are_refused_in_float32(bench: Callable[[str, str], Bench]) -> None:
    assert {name for name, size in excesses(bench, ("mistral",), "float32").items() if size <= 1} == set()


@pytest.mark.pod
def test_every_fault_is_refused_in_float32(bench: Callable[[str, str], Bench]) -> None:
    assert {name for name, size in excesses(bench, tuple(FAMILIES), "float32").items() if size <= 1} == set()
