"""Numbers of `pod-job evaluate` mean what they say: of an SAE that is perfect, and of one that gives nothing."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.commands.evaluate import main
from pod_job.config.train import Architecture
from pod_job.prompts.prompt import Origin, Prompt
from pod_job.prompts.sources.sample import Sample
from pod_job.run_folder.layout import EVALUATION, sae_prefix
from pod_job.storage.open import open_folder
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.contexts import (
    AFTER,
    BEFORE,
    TopRows,
    contexts_of,
    larger,
    largest_of_documents,
    read_contexts,
)
from pod_job.training.documents import document_numbers
from pod_job.training.evaluation import density_counts, without_sinks
from pod_job.training.layouts.sae_lens import write_sae
from pod_job.training.saes import SaeOrigin, TrainedSae
from tools.tiny_model import write_tiny_model

WIDTH = 64


def signed_copy(gain: float, taps: tuple[str, ...] = ("layer_0",)) -> TrainedSae:
    """Returns an SAE with two latents for each dimension, one of which copies it, times `gain`."""
    shape = SaeShape(architecture=Architecture.relu, input_width=WIDTH, output_width=WIDTH, latents=2 * WIDTH)
    both = np.concatenate([np.eye(WIDTH), -np.eye(WIDTH)], axis=1).astype(np.float32)
    parameters = {
        "encoder": gain * both,
        "encoder_bias": np.zeros(2 * WIDTH, np.float32),
        "decoder": both.T.copy(),
        "decoder_bias": np.zeros(WIDTH, np.float32),
    }
    return TrainedSae(shape, parameters, SaeOrigin(taps=taps, context_size=24))


def test_a_perfect_sae_recovers_everything_and_an_empty_one_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_model(tmp_path / "model", hidden=WIDTH, layers=2)
    tasks = tmp_path / "tasks.jsonl"
    texts = ["one two three four five six", "a b c d e", "the same words again, in another order"]
    tasks.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    folder = open_folder(tmp_path / "run")
    for name, gain in (("perfect", 1.0), ("empty", 0.0)):
        write_sae(folder, sae_prefix(name), signed_copy(gain))
    inputs = [f"model.path={model}", f"tasks.path={tasks}", "model.dtype=float32"]
    assert main([folder.url, *inputs, "--contexts", "3", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(folder.read(EVALUATION))
    empty, perfect = sorted(record["saes"], key=lambda sae: sae["name"])
    loss = perfect["cross_entropy"]
    assert perfect["explained_variance"] == pytest.approx(1, abs=1e-6)
    assert perfect["cosine"] == pytest.approx(1, abs=1e-5)
    assert (perfect["l0"], perfect["latents"]) == (pytest.approx(WIDTH), 2 * WIDTH)
    assert loss["spliced"] == pytest.approx(loss["model"], abs=1e-5)
    assert perfect["recovered"] == pytest.approx(1, abs=1e-3)
    assert loss["model"] != pytest.approx(loss["zeros"], abs=1e-3)
    assert (empty["l0"], empty["dead"], empty["densities"][0]) == (0, 1, 2 * WIDTH)
    assert empty["cross_entropy"]["zeros"] == loss["zeros"]
    assert sum(perfect["densities"]) == 2 * WIDTH
    contexts = read_contexts(folder, "perfect")
    assert contexts is not None
    assert contexts.values.shape == (2 * WIDTH, 3)
    assert np.all(np.diff(contexts.values, axis=1) <= 0)
    here = contexts.tokens[contexts.values > 0][:, BEFORE]
    assert {int(token) for token in here} <= set("".join(texts).encode()) | set(range(300))


def test_an_sae_of_another_width_or_of_no_tap_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_tiny_model(tmp_path / "model", hidden=32)
    (tmp_path / "tasks.jsonl").write_text('{"text": "one"}\n')
    inputs = [f"model.path={model}", f"tasks.path={tmp_path / 'tasks.jsonl'}"]
    for taps, message in ((("layer_0",), "is of width 64, and layer_0 of the model of 32"), ((), "add --tap")):
        write_sae(open_folder(tmp_path / "sae"), "", signed_copy(1.0, taps))
        assert main([str(tmp_path / "sae"), *inputs]) == 2
        assert message in capsys.readouterr().err


def test_attention_sinks_do_not_count_where_they_stand_out() -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((2, 16, 8)).astype(np.float32) for name in ("layer_0", "layer_0.mlp_out")}
    values["layer_0"][0, 3] *= 200
    values["layer_0.mlp_out"][1, 5] *= 200
    counted = np.ones((2, 16), bool)
    counted[1, 0] = False
    kept = without_sinks({name: jnp.asarray(value) for name, value in values.items()}, values, counted)
    assert np.argwhere(kept != counted).tolist() == [[0, 3]]


def test_contexts_stay_within_their_prompt() -> None:
    tokens = np.arange(100, 140).reshape(1, 2, 20).astype(np.int32)
    segments = np.repeat([[1, 2]], 10, axis=1).reshape(1, 1, 20).repeat(2, axis=1).astype(np.int32)
    top = TopRows(np.array([[2.0, 0.0]]), np.array([[31, 0]]), np.array([0.5]))
    [[first, none]] = contexts_of(top, tokens, segments).tokens
    assert first[BEFORE] == 131
    assert [token for token in first if token >= 0] == list(range(130, 140))[: 2 + AFTER]
    assert set(none) == {-1}


@pytest.mark.parametrize("documents", [12, 3, 1])
def test_each_latent_has_its_largest_values_one_of_a_document_however_rows_are_split(documents: int) -> None:
    rng, k = np.random.default_rng(documents), 4
    values = np.maximum(rng.integers(-4, 8, (12, 5)), 0).astype(np.float32)  # with ties
    of_row = rng.permutation(np.arange(12) % documents).astype(np.int32)
    first, second = (
        largest_of_documents(jnp.asarray(values[half]), jnp.asarray(of_row[half]), k)
        for half in (slice(0, 6), slice(6, 12))
    )
    best = larger(first, second._replace(rows=np.asarray(second.rows) + 6), k)
    for latent in range(5):
        largest = sorted((values[of_row == number, latent].max() for number in range(documents)), reverse=True)
        wanted = [value for value in largest if value > 0][:k]
        count = len(wanted)
        assert best.values[latent].tolist() == [*wanted, *[0] * (k - count)]
        assert values[best.rows[latent, :count], latent].tolist() == wanted
        assert len(set(of_row[best.rows[latent, :count]])) == count


def test_a_document_that_is_split_or_joined_with_others_keeps_its_number() -> None:
    one, other = (Sample(name, 0, "text") for name in ("one", "other"))
    tokens, numbers = np.zeros(4, np.int32), dict[str, int]()
    windows = [Prompt(one, tokens, origin=Origin(number, tokens)) for number in range(2)]
    of_row = np.array([0, 1, 1, 0], np.int32)
    joined = Prompt(other, tokens, origin=Origin(0, tokens, samples=(other, one), sample_of=of_row))
    found = [document_numbers(prompt, numbers).tolist() for prompt in (*windows, joined, Prompt(other, tokens))]
    assert found == [[0] * 4, [0] * 4, [1, 0, 0, 1], [1] * 4]


def test_densities_are_counted_by_power_of_ten() -> None:
    counts = density_counts(np.array([0.0, 0.0, 1e-9, 0.5, 1.0]))
    assert (counts[0], counts[1], counts[-1], sum(counts)) == (2, 1, 2, 5)
