"""A short `make fuzz`: whatever is done to a file, its readers refuse it by name or read the truth."""

from tools.fuzz.trials import KINDS, try_slice

INPUTS = 240


def test_spoilt_files_are_refused_by_name_or_read_as_they_were() -> None:
    found = try_slice(range(INPUTS), seed=2)
    assert [outcome for outcome in found if outcome[2].split()[0].isupper()] == []
    refused = {kind for _, kind, outcome in found if outcome.startswith("refused")}
    assert refused == set(KINDS)
