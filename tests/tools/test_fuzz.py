"""A short `make fuzz`: readers of a damaged file refuse it by name or read the original data."""

from tools.fuzz.trials import KINDS, try_slice

INPUTS = 240


def test_damaged_files_are_refused_by_name_or_read_as_they_were() -> None:
    trials = try_slice(range(INPUTS), seed=2)
    assert [trial for trial in trials if trial.failed] == []
    refused = {trial.kind for trial in trials if trial.outcome.startswith("refused")}
    assert refused == set(KINDS)
