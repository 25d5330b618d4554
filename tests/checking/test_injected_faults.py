"""Faults put into the model on purpose are refused by the gate's limits, and correct models never are.

`python -m pytest -m "" -s tests/checking/test_injected_faults.py` prints the table of docs/parity.md: the largest
error of each fault in each dtype, in sizes of its limit. Over 1 the gate refuses.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from injected_faults import FAULTS, LLAMA3, SPIKES, Fault, Weights

from pod_job.checking import reference
from pod_job.checking.gate_prompts import gate_prompts
from pod_job.checking.limits import RowRounding, excess, limits, stored_rounding, summary
from pod_job.checking.reference import Reference, find_reference
from pod_job.checkpoints.hf_folder import HfModel, write_hf_folder
from pod_job.checkpoints.load import load_params
from pod_job.checkpoints.random_model import byte_tokenizer, byte_tokenizer_config, random_weights
from pod_job.config.load import load
from pod_job.config.schema import MeshConfig, Sharding
from pod_job.formats.relative_errors import relative_errors
from pod_job.models.decoder import Decoder, Output
from pod_job.models.layer_attention import Tokens
from pod_job.models.mesh import make_mesh, placement, weight_shardings
from pod_job.planning.inputs import Inputs, read_inputs
from pod_job.run_folder.parity import TapErrors
from tools.tiny_model import TinyModel

MODELS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", LLAMA3, SPIKES)
HALF_DTYPES = ("bfloat16", "float16")
ROPE = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}


@dataclasses.dataclass(frozen=True)
class Bench:
    """A model, its reference in a dtype, and a way to compute with a fault in it, on one device."""

    inputs: Inputs
    truth: Reference
    tokens: Tokens
    weights: Weights
    compiled: dict[Any, Callable[[Weights, Tokens], dict[str, jax.Array]]] = dataclasses.field(default_factory=dict)

    @property
    def dtype(self) -> str:
        return self.inputs.config.model.dtype.value

    def excess(self, fault: Fault | None = None) -> float:
        """Returns the largest ratio of an error to its limit, over the taps; over 1 the gate refuses."""
        fault = fault or Fault("", "correct")
        arch, weights = fault.change(self.inputs.arch, self.weights)
        with fault.in_code():
            key = (arch, fault.name if fault.function else None)
            forward = self.compiled.setdefault(key, self._forward(arch))
            taps = forward(weights, fault.tokens(self.tokens))
        errors = {
            tap: relative_errors(np.asarray(vectors[0], np.float32), self.truth.truths[tap])
            for tap, vectors in taps.items()
        }
        return max(excess(summary(rows), self.limits[tap]) for tap, rows in errors.items())

    def shares_its_program(self, fault: Fault) -> bool:
        """Returns whether the correct model's compiled program can have the fault, in its weights or tokens."""
        return fault.function is None and fault.change(self.inputs.arch, self.weights)[0] == self.inputs.arch

    def _forward(self, arch: Any) -> Callable[[Weights, Tokens], dict[str, jax.Array]]:
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        shardings = weight_shardings(mesh, Sharding.replicated, self.inputs.table)
        where = placement(mesh, Sharding.replicated, shardings)
        model = Decoder(arch, self.inputs.taps, jnp.dtype(self.dtype), where)

        @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def forward(weights: Weights, tokens: Tokens) -> dict[str, jax.Array]:
            output = model.apply(
                {"params": weights},
                tokens.ids,
                positions=tokens.positions,
                segment_ids=tokens.segment_ids,
                return_activations=True,
                return_logits=False,
            )
            return cast(Output, output).activations

        return forward

    @cached_property
    def limits(self) -> dict[str, TapErrors]:
        """Returns the gate's limits of float32 vectors."""
        stored = np.dtype(np.float32)
        return {
            tap: limits(RowRounding(truth, self.truth.errors[tap], stored_rounding(truth, stored)))
            for tap, truth in self.truth.truths.items()
        }


def packed(sequences: list[np.ndarray]) -> Tokens:
    """Returns the sequences side by side in one row."""
    lengths = list(map(len, sequences))
    positions = np.concatenate([np.arange(length) for length in lengths])
    segments = np.repeat(np.arange(len(lengths)) + 1, lengths)
    return Tokens(*(jnp.asarray(row, jnp.int32)[None] for row in (np.concatenate(sequences), positions, segments)))


def write_model(folder: Path, name: str) -> Path:
    """Writes a tiny model whose embeddings are small as in real ones, so that eps matters in its first norm."""
    family = name.split(",")[0]
    model = TinyModel(family, layers=2, rope_scaling=ROPE if name == LLAMA3 else None)
    weights = random_weights(model.config(), seed=0)
    weights["model.embed_tokens.weight"] *= 0.02 / (8 if family.startswith("gemma") else 1)
    if name == SPIKES:  # as in Qwen2.5: some keys are so large that bfloat16 loses the differences of scores
        for tensor in [tensor for tensor in weights if tensor.endswith(".k_proj.bias")]:
            weights[tensor][::5] = 40.0
    return write_hf_folder(folder, HfModel(model.config(), weights, byte_tokenizer(), byte_tokenizer_config(4096)))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, torch_there: None) -> Callable[[str, str], Bench]:
    made: dict[tuple[str, str], Bench] = {}
    folder = tmp_path_factory.mktemp("faults")

    def make(name: str, dtype: str) -> Bench:
        if (name, dtype) not in made:
            overrides = [
                *(f"model.path='{write_model(folder / name, name)}'", f"model.dtype={dtype}", "tasks=arc_sample"),
                *("tasks.limit=2", "extract.seq_len=384", "extract.too_long=tail", "extract.taps=['*']"),
                f"storage.run_dir='{folder / f'run_{name}_{dtype}'}'",
            ]
            inputs = read_inputs(load(overrides))
            sequences = [prompt.token_ids for prompt in gate_prompts(inputs)]
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            params = load_params(inputs.checkpoint, inputs.table, jnp.dtype(dtype), dict.fromkeys(inputs.table, here))
            found = find_reference(inputs, sequences)
            made[name, dtype] = Bench(inputs, found, packed(sequences), params["params"])
        return made[name, dtype]

    return make


def passed(bench: Callable[[str, str], Bench], faults: Sequence[Fault], dtype: str) -> list[str]:
    """Returns the faults that the gate does not see; prints the largest error of each, in sizes of its limit."""
    sizes = {f"{fault.model}: {fault.name}": bench(fault.model, dtype).excess(fault) for fault in faults}
    for name, size in sizes.items():
        print(f"| {dtype} | {name} | {size:.3g} |")
    return [name for name, size in sizes.items() if size <= 1]


def test_there_are_enough_faults() -> None:
    assert len({(fault.model, fault.name) for fault in FAULTS}) == len(FAULTS) >= 30
    assert {fault.model for fault in FAULTS} == set(MODELS) - {SPIKES}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_faults_that_need_no_program_of_their_own_are_refused(bench: Callable[[str, str], Bench], dtype: str) -> None:
    made = bench("llama", dtype)
    faults = [fault for fault in FAULTS if fault.model == "llama" and made.shares_its_program(fault)]
    assert len(faults) > 12
    assert passed(bench, faults, dtype) == []
    assert made.excess() < 1
    assert made.truth.name == reference.TORCH


def test_a_correct_model_is_not_refused_where_hugging_faces_own_error_is_large(
    bench: Callable[[str, str], Bench],
) -> None:
    made = bench(SPIKES, "bfloat16")
    assert max(errors.max() for errors in made.truth.errors.values()) > 0.1
    assert made.excess() < 1


@pytest.mark.pod
def test_every_fault_is_refused_in_float32(bench: Callable[[str, str], Bench]) -> None:
    assert passed(bench, FAULTS, "float32") == []


@pytest.mark.pod
def test_nine_of_ten_faults_are_refused_in_bfloat16(bench: Callable[[str, str], Bench]) -> None:
    assert len(passed(bench, FAULTS, "bfloat16")) <= len(FAULTS) / 10


@pytest.mark.pod
@pytest.mark.parametrize("dtype", ["float32", *HALF_DTYPES])
def test_no_correct_model_is_refused(bench: Callable[[str, str], Bench], dtype: str) -> None:
    sizes = {name: bench(name, dtype).excess() for name in MODELS}
    for name, size in sizes.items():
        print(f"| {dtype} | {name}: correct | {size:.3g} |")
    assert [name for name, size in sizes.items() if size > 1] == []
