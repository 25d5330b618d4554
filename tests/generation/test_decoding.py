"""The two programs of generation against Hugging Face, against one clean forward pass, and against themselves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.checkpoints.checkpoint import read_checkpoint
from pod_job.checkpoints.load import load_params
from pod_job.config.generate import GenerateConfig
from pod_job.config.schema import ExtractConfig, MeshConfig, Positions, Sharding, StoredDtype
from pod_job.extraction.feeding import StepRows
from pod_job.extraction.packing import Queued
from pod_job.generation.completions import Ending
from pod_job.generation.decoding import PrefillInput, Programs, compile_generation
from pod_job.generation.waves import FREE, make_wave
from pod_job.models.arch import read_arch_file
from pod_job.models.decoder import Decoder
from pod_job.models.mesh import make_mesh, placement, row_sharding, weight_shardings
from pod_job.models.taps import resolve
from pod_job.models.weight_table import weight_table
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tokens import Prompt
from tools.tiny_model import write_tiny_model

S, NEW, ROWS = 12, 21, 8
LENGTHS = (12, 5, 1, 8, 9, 3)
TAPS = ("layer_0", "layer_2.z", "layer_3", "layer_4_norm")
END = (256,)


def prompts(vocab: int) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(1, vocab - 1, length).astype(np.int32) for length in LENGTHS]


def build(
    folder: Path, generate: GenerateConfig, mesh_config: MeshConfig, sharding: Sharding, positions: Positions
) -> tuple[Any, Programs, Decoder]:
    mesh, arch = make_mesh(mesh_config), read_arch_file(folder / "config.json")
    table = weight_table(arch)
    shardings = weight_shardings(mesh, sharding, table)
    params = load_params(read_checkpoint(folder), table, jnp.float32, shardings)
    taps = resolve([], TAPS, arch)
    model = Decoder(arch, taps, jnp.float32, placement(mesh, sharding, shardings))
    extract = ExtractConfig(seq_len=S, dtype=StoredDtype.float32, positions=positions)
    rows = StepRows(ROWS, row_sharding(mesh, sharding))
    return params, compile_generation(model, params, rows, extract, Ending(generate, END, None)), model


def run(
    folder: Path,
    generate: GenerateConfig,
    mesh: MeshConfig,
    sharding: Sharding = Sharding.replicated,
    positions: Positions = Positions.all,
    decided: dict[tuple[int, int], Sequence[int]] | None = None,
) -> tuple[list[list[int]], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """New tokens of each prompt up to the end token, taps of the prompts [R, S, width], of new tokens [R, n, width]."""
    params, programs, model = build(folder, generate, mesh, sharding, positions)
    queued = [
        Queued(1, i, Prompt(Sample(str(i), 0, ids), ids, False)) for i, ids in enumerate(prompts(model.arch.vocab))
    ]
    wave = make_wave(queued, ROWS, S, 100, decided or {})
    arguments = (wave.token_ids, wave.segment_ids, wave.positions, wave.numbers, wave.force(0, 1)[:, 0])
    rows = row_sharding(jax.make_mesh((mesh.data, mesh.model), ("data", "model")), sharding)
    placed = [jax.device_put(a, rows) for a in (*arguments, np.zeros(ROWS, np.int32))]
    progress, of_prompts, first, _ = programs.prefill(params, PrefillInput(*placed))
    tokens, of_tokens = [np.asarray(first)[:, None]], []
    stopped = jax.device_put(np.zeros(ROWS, bool), rows)
    going, read = True, 0
    while going:
        forced = jax.device_put(wave.force(read + 1, programs.call_tokens), rows)
        progress, taps, chosen, going = programs.decode(params, progress, stopped, forced)
        tokens.append(np.asarray(chosen))
        of_tokens.append(jax.tree.map(np.asarray, taps))
        read += programs.call_tokens
    together = {name: np.concatenate([part[name] for part in of_tokens], axis=1) for name in of_tokens[0]}
    found = []
    for row in np.concatenate(tokens, axis=1)[: len(LENGTHS), :NEW].tolist():
        found.append(row[: row.index(END[0]) + 1] if END[0] in row else row)
    return found, jax.tree.map(np.asarray, of_prompts), together


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), layers=4)


GREEDY = GenerateConfig(max_new_tokens=NEW)
ONE = MeshConfig(data=8)


@pytest.fixture(scope="module")
def greedy(model: Path) -> tuple[list[list[int]], dict[str, np.ndarray], dict[str, np.ndarray]]:
    return run(model, GREEDY, ONE)


def hf_tokens(folder: Path, prompts: list[np.ndarray]) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for ids in prompts:
        made = reference.generate(
            torch.tensor(ids[None]).long(), do_sample=False, max_new_tokens=NEW, eos_token_id=END[0], pad_token_id=0
        )
        found.append(made[0, len(ids) :].tolist())
    return found


@pytest.mark.usefixtures("torch_there")
@pytest.mark.slow
def test_greedy_tokens_past_a_window_are_those_of_hugging_face(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, family="gemma3_text", layers=4)
    found, _, _ = run(folder, GREEDY, ONE)
    assert found == hf_tokens(folder, prompts(read_arch_file(folder / "config.json").vocab))


def test_activations_are_those_of_one_clean_pass_over_prompt_and_completion(
    model: Path, greedy: tuple[list[list[int]], dict[str, np.ndarray], dict[str, np.ndarray]]
) -> None:
    found, of_prompts, of_tokens = greedy
    params, _, generating = build(model, GREEDY, ONE, Sharding.replicated, Positions.generated)
    decoder = Decoder(generating.arch, generating.taps, generating.dtype)  # which is told of no mesh
    clean = jax.jit(lambda ids: decoder.apply(params, ids, return_activations=True, return_logits=False)[1])
    for row, (ids, new) in enumerate(zip(prompts(decoder.arch.vocab), found, strict=True)):
        whole = np.zeros((1, S + NEW), np.int32)
        whole[0, : len(ids) + len(new)] = [*ids, *new]
        for name, expected in clean(whole).items():
            np.testing.assert_allclose(of_prompts[name][row, S - len(ids) :], expected[0, : len(ids)], atol=1e-4)
            new_rows = np.asarray(expected)[0, len(ids) : len(ids) + len(new)]
            np.testing.assert_allclose(of_tokens[name][row, : len(new)], new_rows, atol=1e-4)


MESHES: list[tuple[MeshConfig, Sharding]] = [
    (MeshConfig(data=4, model=2), Sharding.tensor),
    (MeshConfig(data=2, model=4), Sharding.fsdp),
]


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.pod), 1.0])
def test_the_same_tokens_on_any_mesh(model: Path, temperature: float) -> None:
    generate = GenerateConfig(max_new_tokens=NEW, temperature=temperature, seed=7)
    alone = run(model, generate, ONE)
    for mesh, sharding in MESHES:
        found = run(model, generate, mesh, sharding)
        assert found[0] == alone[0]
        for name, expected in alone[2].items():
            for row, tokens in enumerate(alone[0]):
                np.testing.assert_allclose(
                    found[2][name][row, : len(tokens)], expected[row, : len(tokens)], rtol=1e-4, atol=1e-4
                )


@pytest.mark.slow
def test_draws_differ_between_seeds_and_samples(model: Path) -> None:
    def draws(seed: int) -> list[list[int]]:
        generate = GenerateConfig(max_new_tokens=NEW, temperature=5.0, seed=seed)
        return run(model, generate, ONE, positions=Positions.generated)[0]

    first, other = draws(1), draws(2)
    assert first != other
    assert len({tuple(tokens) for tokens in first}) == len(first)


def test_decided_tokens_are_repeated_and_the_rest_goes_on_from_them(
    model: Path, greedy: tuple[list[list[int]], dict[str, np.ndarray], dict[str, np.ndarray]]
) -> None:
    decided = {(1, 0): [3, 1, 4, 1, 5], (1, 3): greedy[0][3][:7]}
    found, _, _ = run(model, GREEDY, ONE, decided=decided)
    assert found[0][:5] == [3, 1, 4, 1, 5]
    assert found[1:] == greedy[0][1:]
    assert found[0] != greedy[0][0]
    assert FREE not in found[0]
