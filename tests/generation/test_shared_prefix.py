"""Prompts behind a prefix that is computed once: tokens and vectors are those of prompts that are read whole."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.checking.gate_prompts import PREFIX_TOKENS
from pod_job.checking.trial import try_program
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
from pod_job.models.arch import read_arch_file
from pod_job.models.decoder import Decoder
from pod_job.models.mesh import make_mesh, placement, row_sharding, weight_shardings
from pod_job.models.taps import resolve
from pod_job.models.weight_table import weight_table
from pod_job.prompts.prompt import Prompt
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tokenizer import load_tokenizer
from tools.tiny_model import write_tiny_model

SHARED, S, NEW = 150, 180, 21
OWN = (30, 5, 1, 17, 9, 3, 28, 2, 12, 6, 14, 7, 1)
OTHER = (12, 180, 160)
"""Lengths of prompts that begin otherwise, of which one is as long as a prompt may be."""
TAPS = ("embed", "layer_0", "layer_2.z", "layer_3.k", "layer_3", "layer_4_norm")
ONE, GREEDY = MeshConfig(data=8), GenerateConfig(max_new_tokens=NEW)


def drawn(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 250, count).astype(np.int32)


PREFIX = drawn(SHARED, 0)
PROMPTS = [np.concatenate([PREFIX, drawn(own, own)]) for own in OWN] + [drawn(length, 1) for length in OTHER]
PROMPTS += [PREFIX, PREFIX[: SHARED // 2]]  # which have no token of their own


@pytest.fixture(scope="module", params=["qwen2", pytest.param("gpt_neox", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), request.param, layers=4)


def build(
    folder: Path,
    mesh_config: MeshConfig = ONE,
    sharding: Sharding = Sharding.replicated,
    generate: GenerateConfig = GREEDY,
    positions: Positions = Positions.all,
    prefix: np.ndarray | None = PREFIX,
) -> Generator:
    """The generator of a job whose prompts share a prefix; None: that of one whose prompts are read whole."""
    mesh, arch = make_mesh(mesh_config), read_arch_file(folder / "config.json")
    table = weight_table(arch)
    shardings = weight_shardings(mesh, sharding, table)
    params = load_params(read_checkpoint(folder), table, jnp.float32, shardings)
    model = Decoder(arch, resolve([], TAPS, arch), jnp.float32, placement(mesh, sharding, shardings))
    extract = ExtractConfig(seq_len=S, rows_per_device=2, dtype=StoredDtype.float32, positions=positions)
    split = row_sharding(mesh, sharding)
    rows = StepRows(8 // split.shard_shape((8,))[0] * 2, split)
    shape = shape_for(rows, extract, 0 if prefix is None else len(prefix))
    programs = compile_generation(model, params, shape, extract, generate)
    ending = Ending(generate, (256,), load_tokenizer(folder))
    generator = Generator(programs, params, feeding(rows, 0), feeding(shape.prefill_rows, 0), ending, extract.positions)
    return generator if prefix is None else generator.with_prefix(prefix)


def run(generator: Generator, prompts: Sequence[np.ndarray] = PROMPTS, **decided: Sequence[int]) -> list[Result]:
    """Results in the order of the prompts; `decided`: earlier new tokens, by `prompt_` and a number."""
    waiting = [
        Waiting(Queued(1, i, Prompt(Sample(str(i), 0, ids), ids, False)), i, decided.get(f"prompt_{i}", ()))
        for i, ids in enumerate(prompts)
    ]
    return sorted(generator.run(iter(waiting), Progress()), key=lambda result: result.queued.index)


def assert_same(found: Sequence[Result], expected: Sequence[Result]) -> None:
    assert len(found) == len(expected) == len(PROMPTS)
    for one, other in zip(found, expected, strict=True):
        assert one.completion == other.completion
        assert one.vectors.keys() == other.vectors.keys()
        for name, vectors in other.vectors.items():
            np.testing.assert_allclose(one.vectors[name], vectors, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def sharing(model: Path) -> Generator:
    return build(model)


@pytest.fixture(scope="module")
def whole(model: Path) -> list[Result]:
    return run(build(model, prefix=None))


def test_tokens_and_vectors_of_all_positions_are_those_of_prompts_read_whole(
    sharing: Generator, whole: list[Result]
) -> None:
    """More prompts than rows, so that rows are taken again, at other slots of the ring."""
    assert len(PROMPTS) > sharing.rows.feeder_rows
    assert_same(run(sharing), whole)


def test_the_prefix_is_read_once_and_not_with_every_prompt(sharing: Generator) -> None:
    """All prompts' own tokens fit into one run of prefill, where whole prompts would take more."""
    progress, shape = Progress(), sharing.shape
    prompts = PROMPTS[: len(OWN)]
    waiting = [Waiting(Queued(1, i, Prompt(Sample(str(i), 0, ids), ids)), i) for i, ids in enumerate(prompts)]
    assert len(list(sharing.run(iter(waiting), progress))) == len(prompts)
    assert shape.prompts_per_row > 1
    assert progress.prefills == 1


@pytest.mark.parametrize("positions", [Positions.last, pytest.param(Positions.generated, marks=pytest.mark.slow)])
def test_tokens_and_vectors_of_other_positions_are_those_of_prompts_read_whole(
    model: Path, positions: Positions
) -> None:
    assert_same(run(build(model, positions=positions)), run(build(model, positions=positions, prefix=None)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "sharding"),
    [(MeshConfig(data=4, model=2), Sharding.tensor), (MeshConfig(data=2, model=4), Sharding.fsdp)],
)
def test_the_same_tokens_and_vectors_on_any_mesh(
    model: Path, whole: list[Result], mesh: MeshConfig, sharding: Sharding
) -> None:
    assert_same(run(build(model, mesh, sharding)), whole)


@pytest.mark.slow
def test_draws_and_decided_tokens_are_those_of_prompts_read_whole(model: Path) -> None:
    sampled = GenerateConfig(max_new_tokens=NEW, temperature=1.0, seed=3)
    sharing, whole = build(model, generate=sampled), build(model, generate=sampled, prefix=None)
    expected = run(whole)
    assert_same(run(sharing), expected)
    decided = {"prompt_3": expected[3].completion.token_ids[:5], "prompt_14": expected[14].completion.token_ids[:1]}
    assert_same(run(sharing, **decided), expected)


def test_the_gate_reads_the_beginning_of_the_prefix_once_and_its_prompts_behind_it(
    sharing: Generator, whole: list[Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Generator] = []
    with_prefix = Generator.with_prefix

    def recorded(generator: Generator, token_ids: np.ndarray) -> Generator:
        seen.append(with_prefix(generator, token_ids))
        return seen[-1]

    monkeypatch.setattr(Generator, "with_prefix", recorded)
    prompts = [Prompt(Sample(str(i), 0, ids), ids) for i, ids in enumerate(PROMPTS[: len(OWN)])]
    trials = try_program(sharing, ExtractConfig(seq_len=S, positions=Positions.all), prompts)
    (once,) = seen
    assert once.prefix is not None
    assert once.prefix.token_ids.tolist() == PREFIX[:PREFIX_TOKENS].tolist()
    assert PREFIX_TOKENS < SHARED
    for trial, expected in zip(trials, whole, strict=False):
        for name, vectors in trial.vectors.items():
            length = min(len(vectors), len(expected.vectors[name]))
            np.testing.assert_allclose(vectors[:length], expected.vectors[name][:length], rtol=1e-4, atol=1e-4)


def test_a_wrong_prefix_would_show(sharing: Generator, whole: list[Result]) -> None:
    """Prompts do attend to the keys and values of the prefix: others give other tokens and vectors."""
    assert sharing.prefix is not None
    other = sharing.with_prefix(drawn(SHARED, 7)).prefix
    assert other is not None
    wrong = replace(sharing, prefix=replace(sharing.prefix, keys=other.keys))
    found = run(wrong, PROMPTS)
    for number in range(len(OWN)):
        assert np.abs(found[number].vectors["layer_3"][-1] - whole[number].vectors["layer_3"][-1]).max() > 1e-2
    for number in range(len(OWN), len(PROMPTS)):
        assert found[number].completion == whole[number].completion
