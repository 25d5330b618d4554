"""A short `make chaos`: pods and compactions, hit at any step, leave the dataset of an undisturbed run."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from sample_runs import TAPS, batch, identity

from pod_job.finishing.merge import merge
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder.commit import commit_batch
from pod_job.run_folder.identity import claim
from pod_job.storage.open import open_folder
from tools.chaos import campaign, run_scenario
from tools.chaos.fault import STEPS, STEPS_OF_COMPACTING
from tools.chaos.scenarios import scenarios

SEED = 1521
"""Seed whose first scenarios kill at steps, not after a time: no machine's speed decides what is reached."""


@pytest.mark.slow
@pytest.mark.pod
def test_disturbed_runs_leave_the_dataset_of_an_undisturbed_one(tmp_path: Path) -> None:
    with campaign.places(tmp_path, "both") as places:
        report = campaign.chaos(campaign.Campaign(tmp_path, 5, SEED, 6, places), log=print)
    assert report.bad == []
    assert len(report.pods.disturbed_in) == len(places)
    assert report.pods.disturbed >= 5
    assert any(end.startswith("woke up") for end in report.pods.outcomes)
    assert report.compactions.disturbed >= 2


def test_every_step_has_its_turn() -> None:
    planned = list(itertools.islice(scenarios(0), 40))
    starts = itertools.chain.from_iterable(scenario.disturbed for scenario in planned)
    compactions = [each for scenario in planned for each in (*scenario.compactions, scenario.beside) if each]
    assert {start.fault.step for start in starts if start.fault} == set(STEPS)
    assert {compaction.fault.step for compaction in compactions if compaction.fault} == set(STEPS_OF_COMPACTING)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"noise": 1e-2}, "layer_6 differs"),
        ({"seed": 1}, "token_id differs"),
        ({"missing": True}, "missing batches: \\[2\\]"),
    ],
    ids=str,
)
def test_a_difference_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, problem: str | None
) -> None:
    monkeypatch.setattr(run_scenario, "LAYERS", TAPS)
    missing = change.pop("missing", False)
    for name, other in (("truth", {}), ("found", change)):
        folder = open_folder(tmp_path / name)
        claim(folder, identity(16))
        for number in (1,) if missing and name == "found" else (1, 2):
            commit_batch(folder, batch(number, 20, **(other if number == 2 else {})), host=0)
        merge(folder)
    truth = run_scenario.read_dataset(tmp_path / "truth")
    found = run_scenario.problems_of(tmp_path / "found", truth)
    if problem is None:
        assert found == []
        assert np.array_equal(truth[1][0], ActivationDataset(tmp_path / "found", TAPS[0])[:])
    else:
        assert any(re.search(problem, text) for text in found), found
