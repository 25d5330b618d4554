"""Lanes: the content of every step depends on the data and the rows of a step only, and goes on from any position."""

import json
from itertools import islice

import numpy as np
import pytest

from pod_job.config.load import load
from pod_job.host.stop_request import StopRequest
from pod_job.planning.inputs import Inputs, read_inputs
from pod_job.training.lanes import Lanes, LaneStep, in_small_batches, lane_tickets
from tools.tiny_model import write_tiny_model

ROWS = 4
STEPS = 12


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    model = write_tiny_model(tmp_path_factory.mktemp("lanes") / "model", layers=1)
    tasks = model.parent / "tasks.jsonl"
    texts = [f"{i} " + "word " * (1 + 7 * i % 23) for i in range(37)]
    tasks.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = {"model.path": model, "tasks.path": tasks, "storage.run_dir": model.parent / "run"}
    settings |= {"extract.seq_len": 48, "extract.layers": "[0]", "extract.positions": "all"}
    settings |= {"extract.save_every_n_samples": 5, "extract.too_long": "split"}
    return read_inputs(load([f"{key}={value}" for key, value in settings.items()]))


def steps(inputs: Inputs, lanes: range, positions: np.ndarray | None = None) -> list[LaneStep]:
    start = np.zeros((len(lanes), 2), np.int32) if positions is None else positions
    return list(islice(Lanes(inputs, lanes, ROWS, start, StopRequest()).steps(), STEPS))


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_that_share_the_lanes_compute_what_one_host_does(inputs: Inputs, hosts: int) -> None:
    alone = steps(inputs, range(ROWS))
    size = ROWS // hosts
    shared = [steps(inputs, range(host * size, (host + 1) * size)) for host in range(hosts)]
    for i, step in enumerate(alone):
        for name in ("token_ids", "segment_ids", "positions", "counted"):
            parts = [getattr(of_host[i].input, name) for of_host in shared]
            np.testing.assert_array_equal(getattr(step.input, name), np.concatenate(parts))


@pytest.mark.parametrize("taken", range(STEPS - 1))
def test_a_start_from_any_position_goes_on_with_the_same_steps(inputs: Inputs, taken: int) -> None:
    undisturbed = steps(inputs, range(ROWS))
    for step, again in zip(
        undisturbed[taken + 1 :], steps(inputs, range(ROWS), undisturbed[taken].positions), strict=False
    ):
        np.testing.assert_array_equal(step.input.token_ids, again.input.token_ids)
        np.testing.assert_array_equal(step.positions, again.positions)


def test_one_pass_of_all_lanes_has_every_token_of_the_data_once(inputs: Inputs) -> None:
    small = in_small_batches(inputs, ROWS)
    wanted = sum(
        len(prompt.token_ids) for batch in range(1, small.total_batches + 1) for prompt in small.prompts(batch).prompts
    )
    rounds = -(-small.total_batches // ROWS)
    seen, steps_of = 0, Lanes(inputs, range(ROWS), ROWS, np.zeros((ROWS, 2), np.int32), StopRequest()).steps()
    for step in steps_of:
        first_pass = step.positions[:, 0] * ROWS + np.arange(ROWS) < small.total_batches
        seen += int((step.input.segment_ids[first_pass] > 0).sum())
        if (step.positions[:, 0] >= rounds).all():
            break
    assert seen == wanted


def test_every_lane_has_a_batch_of_its_own_where_there_are_enough_samples(inputs: Inputs) -> None:
    assert in_small_batches(inputs, 30).total_batches >= 30
    assert in_small_batches(inputs, 2).config.extract.save_every_n_samples == 5


def test_tickets_begin_where_each_lane_had_come_to() -> None:
    assert list(islice(lane_tickets({0: 2, 1: 1}, 2), 5)) == [3, 4, 5, 6, 7]
