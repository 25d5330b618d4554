"""The simulation of a run: every answer is made, and refilled rows take no longer than waves."""

from dataclasses import replace

import numpy as np
import pytest

from pod_job.generation.admission import FeederShape
from tools.simulate_generation import Host, Pod, Sample, in_waves, of_hosts, refilled

SHAPE = FeederShape(shards=2, rows=3, prompts_per_row=3, length=100)
POD = Pod(2, SHAPE, call_tokens=4, prefill_s=0.5, token_s=0.05, block_s=0.001, block=10, blocks=15)
PER_BATCH = 5


@pytest.fixture
def samples() -> list[Sample]:
    prompts = np.random.default_rng(2).integers(1, 100, 60)
    return [Sample(int(length), int(length) // 2 + 1) for length in prompts]


def test_batches_go_to_hosts_in_turn(samples: list[Sample]) -> None:
    first, second = of_hosts(samples, 2, PER_BATCH)
    assert first[:PER_BATCH] == samples[:PER_BATCH]
    assert second[:PER_BATCH] == samples[PER_BATCH : 2 * PER_BATCH]
    assert len(first) + len(second) == len(samples)


def test_refilling_takes_less_than_waves_and_makes_every_answer(samples: list[Sample]) -> None:
    waves = in_waves(samples, POD, PER_BATCH)
    outcomes = [refilled(samples, POD, PER_BATCH, sort) for sort in (False, True)]
    for outcome in outcomes:
        assert outcome.useful == waves.useful == sum(sample.answer_tokens for sample in samples)
        least = outcome.prefills * POD.prefill_s + outcome.calls * POD.call_s(SHAPE.rows)
        most = outcome.prefills * POD.prefill_s + outcome.calls * POD.call_s(SHAPE.rows * POD.blocks)
        assert least < outcome.seconds < most
        assert outcome.calls <= waves.calls
        longest = max(sample.answer_tokens for sample in samples)
        assert outcome.calls * POD.call_tokens >= longest - 1


def test_a_call_reads_the_blocks_of_the_device_with_the_most() -> None:
    host = Host([Sample(95, 9), Sample(5, 9), Sample(31, 9)], POD, sort=False)
    host.outlook()
    host.prefill()
    # Rows of the first device: 95 tokens, and none in two; of the second: 5 and 31 tokens, and none.
    assert host.decode() == (10 + 1) + 1 + 1
    assert host.decode() == (10 + 1) + 1 + 1
    assert host.decode() == SHAPE.rows


def test_one_answer_takes_one_prefill_and_its_calls() -> None:
    assert refilled([Sample(10, 10)], POD, PER_BATCH, sort=True).calls == 3
    assert refilled([Sample(10, 1)], POD, PER_BATCH, sort=True).calls == 0


def test_a_prefix_that_is_shared_is_read_once_and_takes_its_slots_of_every_row(samples: list[Sample]) -> None:
    behind = [Sample(90 + sample.prompt_tokens % 10, 5) for sample in samples]
    whole = refilled(behind, POD, PER_BATCH, sort=True)
    sharing = refilled(behind, replace(POD, shared=89), PER_BATCH, sort=True)
    assert sharing.useful == whole.useful
    # Six rows of a host take three prompts of a device at once, and not one.
    assert whole.prefills == 15
    assert sharing.prefills == 1 + 5
    host = Host(behind[:1], replace(POD, shared=89), sort=False)
    host.outlook()
    host.prefill()
    assert host.decode() == POD.blocks_read(behind[0].prompt_tokens) + 2
