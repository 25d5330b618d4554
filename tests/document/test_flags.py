"""Flags of rows: special tokens by place, attention sinks and non-finite rows by norm; rows left out by their flags."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sample_runs import batch, identity, joined

from pod_job.config.schema import Exclude, ExtractConfig, OnNonfinite, Positions, StoredDtype
from pod_job.errors import JobError
from pod_job.extraction.assembly import OpenBatch
from pod_job.extraction.packing import Placed
from pod_job.finishing.merge import merge
from pod_job.formats import rows_table
from pod_job.prompts.prompt import Prompt, Tokenized
from pod_job.prompts.row_choice import chosen_rows
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.special import special_ids, special_tokens
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.commit import commit_batch
from pod_job.run_folder.identity import claim
from pod_job.storage.buffers import Pool
from pod_job.storage.open import open_folder
from tools.tiny_model import byte_tokenizer

BOS, EOS, TEXT = 256, 257, 7


def prompt(*ids: int, chat: bool = False) -> Prompt:
    text = [{"role": "user", "content": "x"}] if chat else "x"
    return Prompt(Sample("t", 0, text), np.array(ids, np.int32))


def with_rows(made: Prompt, config: ExtractConfig) -> Prompt:
    """Returns the prompt as tokenizing makes it: with its special tokens and the choice of its rows."""
    special = special_tokens(made.token_ids, made.sample.is_chat, {BOS, EOS})
    rows = chosen_rows(made.sample, made.positions, np.ones(len(special), bool), special, config)
    return replace(made, special=special, rows=rows)


@pytest.mark.parametrize(
    ("tokens", "chat", "special"),
    [
        ((BOS, TEXT, TEXT), False, [1, 0, 0]),
        ((BOS, BOS, TEXT, EOS), False, [1, 1, 0, 1]),
        ((TEXT, EOS, TEXT), False, [0, 0, 0]),  # between two documents
        ((TEXT, EOS, TEXT), True, [0, 1, 0]),
        ((BOS, EOS), False, [1, 1]),
        ((TEXT,), False, [0]),
    ],
)
def test_special_tokens_are_told_by_their_place(tokens: tuple, chat: bool, special: list[int]) -> None:
    marks = special_tokens(np.array(tokens), chat, {BOS, EOS})
    assert marks.tolist() == [bool(flag) for flag in special]


def test_control_tokens_of_a_tokenizer() -> None:
    from transformers import PreTrainedTokenizerFast

    # Only end-of-text has a role here; the marks of a chat are control tokens, too.
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="<|endoftext|>")
    assert special_ids(tokenizer) == {256, 257, 258}


@pytest.mark.parametrize("exclude", [[], [Exclude.special]])
@pytest.mark.parametrize("positions", [Positions.last, Positions.all])
def test_special_tokens_are_flagged_or_not_stored(exclude: list[Exclude], positions: Positions) -> None:
    prompts = [prompt(BOS, TEXT, 8), prompt(9, EOS), prompt(BOS)]
    config = ExtractConfig(positions=positions, exclude=exclude, dtype=StoredDtype.float32)
    prompts = [with_rows(each, config) for each in prompts]
    opened = OpenBatch(1, Tokenized(prompts, [], len(prompts)), config, {"layer_0": 1}, Pool())
    for index, each in enumerate(prompts):
        shard = each.token_ids[None, :, None].astype(np.float32)
        at = {"last": shard[:, -1:], "all": shard}[positions.value]
        opened.put(Placed(1, index, 0, 0, 0, len(each.token_ids)), {"layer_0": [at]})
    made = opened.finish()
    expected = [(8, False), (EOS, True), (BOS, True)]
    if positions is Positions.all:
        expected = [(BOS, True), (TEXT, False), (8, False), (9, False), (EOS, True), (BOS, True)]
    if exclude:
        expected = [(token, special) for token, special in expected if not special]
    assert list(zip(made.rows.token_id.tolist(), made.rows.special.tolist(), strict=True)) == expected
    assert made.taps["layer_0"][:, 0].tolist() == [token for token, _ in expected]
    assert made.n_samples == 3


def test_sinks_and_nonfinite_rows_are_flagged_and_can_be_left_out(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    claim(folder, identity(16))
    batches = [batch(1, 40), batch(2, 30)]
    batches[0].taps["layer_6"][5] *= 100
    batches[0].taps["layer_30_norm"][7, 3] = np.nan
    batches[1].taps["layer_6"][29, 0] = np.inf
    for each in batches:
        commit_batch(folder, each, host=0)
    merge(folder)
    whole = ActivationDataset(tmp_path, "layer_6")
    flags = whole.rows(slice(None))
    assert {name: np.flatnonzero(flags[name]).tolist() for name in rows_table.FLAGS} == {
        "special": [],
        "sink": [5],
        "nonfinite": [7, 69],
    }
    kept = np.setdiff1d(np.arange(70), [5, 7, 69])
    some = ActivationDataset(tmp_path, "layer_6", exclude=["sink", "nonfinite"])
    vectors = joined(batches, "layer_6")
    assert some.shape == (67, 16)
    np.testing.assert_array_equal(some[:], vectors[kept])
    np.testing.assert_array_equal(some[[-1, 4, 5]], vectors[kept[[-1, 4, 5]]])
    np.testing.assert_array_equal(some.rows(slice(3, 9))["token_id"], flags["token_id"][kept[3:9]])
    assert some.batch_of([0, 66]).tolist() == [1, 2]
    met = [numbers for _, numbers in some.batches(16, with_index=True)]
    assert sorted(np.concatenate(met).tolist()) == list(range(67))
    for got, numbers in some.batches(16, with_index=True):
        np.testing.assert_array_equal(got, vectors[kept[numbers]])


def test_a_sink_is_above_ten_medians_in_a_tap_of_the_residual_stream(tmp_path: Path) -> None:
    taps = ("layer_2", "layer_2.resid_mid", "layer_3_norm", "layer_2.attn_out", "layer_2.mlp_act")
    folder, made = open_folder(tmp_path), batch(1, 40, taps=taps)
    for row, tap in enumerate(taps):
        vectors = made.taps[tap].astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[[row, 10 + row]] *= [[10.5], [9.5]]
        made.taps[tap][:] = vectors
    claim(folder, identity(8, taps))
    commit_batch(folder, made, host=0)
    merge(folder)
    for tap in taps:
        assert np.flatnonzero(ActivationDataset(tmp_path, tap).rows(slice(None))["sink"]).tolist() == [0, 1, 2]


def test_an_unknown_flag_is_refused(tmp_path: Path) -> None:
    folder = open_folder(tmp_path)
    claim(folder, identity(8))
    commit_batch(folder, batch(1, 4), host=0)
    merge(folder)
    with pytest.raises(JobError, match="exclude=speshul: not a flag of rows; use special, sink, nonfinite"):
        ActivationDataset(tmp_path, "layer_6", exclude=["speshul"])


def test_a_nonfinite_vector_fails_the_run_by_name_before_it_is_stored(tmp_path: Path) -> None:
    folder, ours = open_folder(tmp_path), batch(3, 10)
    ours.taps["layer_30_norm"][4, 2] = np.inf
    with pytest.raises(
        JobError, match=r"batch 3, layer_30_norm, row 4 \(task task_3_\d, sample \d, position 4\) has a NaN"
    ):
        commit_batch(folder, ours, 0, OnNonfinite.fail)
    assert folder.names(layout.COMMITS) == []
    assert layout.activations_file("layer_30_norm", 3) not in folder.names(layout.ACTIVATIONS)
