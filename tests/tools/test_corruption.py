"""Commands on spoilt folders give the right data or one line; `python -m tools.corruption` tries thousands."""

import pytest

from tools.corruption.__main__ import try_apart
from tools.corruption.commands import QUICK


@pytest.mark.pod
def test_commands_on_spoilt_folders_give_the_right_data_or_one_line() -> None:
    trials = try_apart(range(150), seed=0, only=QUICK)
    assert len(trials) == 150
    assert [trial for trial in trials if trial.failed] == []
