"""The two programs of generation against Hugging Face, against one clean forward pass, and against themselves."""

from collections.abc import Iterator, Sequence
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
from pod_job.extraction.feeding import StepRows, feeding
from pod_job.extraction.packing import Queued
from pod_job.generation.admission import Waiting
from pod_job.generation.completions import Ending
from pod_job.generation.decoding import compile_generation
from pod_job.generation.generator import Generator, Progress, Result
from pod_job.generation.shape import shape_for
from pod_job.models import delta_net
from pod_job.models.arch import read_arch_file
from pod_job.models.decoder import Decoder
from pod_job.models.mesh import make_mesh, placement, row_sharding, weight_shardings
from pod_job.models.position_blocks import BLOCK
from pod_job.models.taps import resolve
from pod_job.models.weight_table import weight_table
from pod_job.prompts.prompt import Prompt
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tokenizer import load_tokenizer
from tools.tiny_model import write_tiny_model

S, NEW = 12, 21
LENGTHS = (12, 5, 1, 8, 9, 3, 11, 2, 12, 6)
TAPS = ("layer_0", "layer_2.z", "layer_3", "layer_4_norm")
END = (256,)


def prompts(vocab: int) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(1, vocab - 1, length).astype(np.int32) for length in LENGTHS]


def build(
    folder: Path,
    generate: GenerateConfig,
    mesh_config: MeshConfig,
    sharding: Sharding = Sharding.replicated,
    positions: Positions = Positions.all,
    per_device: int = 1,
    seq_len: int = S,
) -> tuple[Any, Generator, Decoder]:
    mesh, arch = make_mesh(mesh_config), read_arch_file(folder / "config.json")
    table = weight_table(arch)
    shardings = weight_shardings(mesh, sharding, table)
    params = load_params(read_checkpoint(folder), table, jnp.float32, shardings)
    model = Decoder(arch, resolve([], TAPS, arch), jnp.float32, placement(mesh, sharding, shardings))
    extract = ExtractConfig(seq_len=seq_len, rows_per_device=per_device, dtype=StoredDtype.float32, positions=positions)
    split = row_sharding(mesh, sharding)
    shards = 8 // split.shard_shape((8,))[0]
    shape = shape_for(StepRows(shards * per_device, split), extract)
    programs = compile_generation(model, params, shape, extract, generate)
    ending = Ending(generate, END, load_tokenizer(folder))
    parts = feeding(shape.rows, 0), feeding(shape.prefill_rows, 0)
    return params, Generator(programs, params, *parts, ending, positions), model


def run(generator: Generator, model: Decoder, decided: dict[int, Sequence[int]] | None = None) -> list[Result]:
    """Results of all prompts in their order."""
    waiting = [
        Waiting(Queued(1, i, Prompt(Sample(str(i), 0, ids), ids, False)), i, (decided or {}).get(i, ()))
        for i, ids in enumerate(prompts(model.arch.vocab))
    ]
    return sorted(generator.run(iter(waiting), Progress()), key=lambda result: result.queued.index)


def tokens(results: Sequence[Result]) -> list[list[int]]:
    return [result.completion.token_ids for result in results]


def assert_same(found: Sequence[Result], expected: Sequence[Result]) -> None:
    assert tokens(found) == tokens(expected)
    for one, other in zip(found, expected, strict=True):
        for name, vectors in other.vectors.items():
            np.testing.assert_allclose(one.vectors[name], vectors, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module", params=["qwen2", "qwen3_5_text"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Models whose layers all have attention, and in turns a gated delta rule, of which prompts have several chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta_net, "CHUNK", 5)
        yield write_tiny_model(tmp_path_factory.mktemp("model"), request.param, layers=4)


GREEDY = GenerateConfig(max_new_tokens=NEW)
ONE = MeshConfig(data=8)


@pytest.fixture(scope="module")
def greedy_programs(model: Path) -> tuple[Any, Generator, Decoder]:
    """Fewer rows than prompts, so that rows are taken again."""
    return build(model, GREEDY, ONE)


@pytest.fixture(scope="module")
def greedy(greedy_programs: tuple[Any, Generator, Decoder]) -> list[Result]:
    return run(*greedy_programs[1:])


def hf_tokens(folder: Path, prompts: list[np.ndarray]) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    made = []
    for ids in prompts:
        completed = reference.generate(
            torch.tensor(ids[None]).long(), do_sample=False, max_new_tokens=NEW, eos_token_id=END[0], pad_token_id=0
        )
        made.append(completed[0, len(ids) :].tolist())
    return made


@pytest.mark.usefixtures("torch_there")
@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3_text", "qwen3_next"])
def test_greedy_tokens_past_a_window_and_of_experts_beside_delta_rules_are_those_of_hugging_face(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta_net, "CHUNK", 5)
    folder = write_tiny_model(tmp_path, family=family, layers=4)
    _, generator, decoder = build(folder, GREEDY, ONE)
    assert tokens(run(generator, decoder)) == hf_tokens(folder, prompts(decoder.arch.vocab))


@pytest.mark.usefixtures("torch_there")
def test_greedy_tokens_are_those_of_hugging_face(
    model: Path, greedy_programs: tuple[Any, Generator, Decoder], greedy: list[Result]
) -> None:
    assert tokens(greedy) == hf_tokens(model, prompts(greedy_programs[2].arch.vocab))


def test_activations_are_those_of_one_clean_pass_over_prompt_and_completion(
    greedy_programs: tuple[Any, Generator, Decoder], greedy: list[Result]
) -> None:
    params, _, generating = greedy_programs
    decoder = Decoder(generating.arch, generating.taps, generating.dtype)  # which is told of no mesh
    clean = jax.jit(lambda ids: decoder.apply(params, ids, return_activations=True, return_logits=False)[1])
    assert len(greedy) == len(LENGTHS)
    for ids, result in zip(prompts(decoder.arch.vocab), greedy, strict=True):
        whole, length = np.zeros((1, S + NEW), np.int32), len(ids) + len(result.completion.token_ids)
        whole[0, :length] = [*ids, *result.completion.token_ids]
        for name, expected in clean(whole).items():
            assert len(result.vectors[name]) == length
            np.testing.assert_allclose(result.vectors[name], expected[0, :length], atol=1e-4)


MESHES: list[tuple[MeshConfig, Sharding]] = [
    (MeshConfig(data=4, model=2), Sharding.tensor),
    (MeshConfig(data=2, model=4), Sharding.fsdp),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "temperature"),
    [
        pytest.param("qwen2", 0.0, marks=pytest.mark.pod),
        ("qwen2", 1.0),
        pytest.param("qwen3_5_text", 0.0, marks=pytest.mark.pod),
    ],
    indirect=["model"],
)
def test_the_same_tokens_on_any_mesh_in_any_row(
    model: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = GenerateConfig(max_new_tokens=NEW, temperature=temperature, seed=7)
    alone = run(*build(model, generate, ONE)[1:])
    # On 4 and 8 devices with 2 rows each and one, prompts are read and rows are taken in other orders, and on the 4 two
    # prompts lie in one row of prefill.
    monkeypatch.setattr("pod_job.config.generate.PREFILL_POSITIONS", S)
    for (mesh, sharding), per_device in zip(MESHES, (2, 1), strict=True):
        assert_same(run(*build(model, generate, mesh, sharding, per_device=per_device)[1:]), alone)


def test_prompts_packed_into_a_row_longer_than_the_cache_and_partly_filled_give_the_same(
    model: Path, greedy: list[Result]
) -> None:
    _, generator, decoder = build(model, GREEDY, MeshConfig(data=2, model=4), per_device=8, seq_len=96)
    shape = generator.shape
    assert shape.length > 128 + BLOCK  # slots of a row, and prompts of 79 tokens in all
    assert shape.computes_filled
    assert_same(run(generator, decoder), greedy)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen2"], indirect=True)
def test_draws_differ_between_seeds_and_samples(model: Path) -> None:
    def draws(seed: int) -> list[list[int]]:
        generate = GenerateConfig(max_new_tokens=NEW, temperature=5.0, seed=seed)
        return tokens(run(*build(model, generate, ONE, positions=Positions.generated)[1:]))

    first, other = draws(1), draws(2)
    assert first != other
    assert len({tuple(drawn) for drawn in first}) == len(first)


def test_decided_tokens_are_repeated_and_the_rest_goes_on_from_them(
    greedy_programs: tuple[Any, Generator, Decoder], greedy: list[Result]
) -> None:
    expected = tokens(greedy)
    repeated = tokens(run(*greedy_programs[1:], decided={0: [3, 1, 4, 1, 5], 3: expected[3][:7]}))
    assert repeated[0][:5] == [3, 1, 4, 1, 5]
    assert repeated[1:] == expected[1:]
    assert repeated[0] != expected[0]
    assert min(repeated[0]) >= 0
