"""An SAE whose loss is lost is named with its step and the last checkpoint before; the others go on."""

import logging
import math
from pathlib import Path

import pytest

from pod_job.errors import JobError
from pod_job.run_folder.training import MetricsPoint, SaeMetrics
from pod_job.storage.open import open_folder
from pod_job.training.curves import Curves


def point(step: int, *losses: float) -> MetricsPoint:
    return MetricsPoint(step, step * 16, 1.0, [SaeMetrics(loss, 4.0, 0.5, 0.0) for loss in losses])


@pytest.mark.parametrize(
    ("saved", "said"), [([], "no checkpoint is from before"), ([10, 20, 30], "the last good checkpoint is of step 20")]
)
def test_a_lost_sae_is_told_once_and_the_end_of_all_stops(
    saved: list[int], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    curves = Curves(open_folder(tmp_path), ["one", "two"], 0)
    with caplog.at_level(logging.WARNING, logger="pod_job"):
        for step in (30, 40):
            curves.add(point(step, math.nan, 1.0), {"one": 25}, saved)
    [record] = caplog.records
    assert record.getMessage().startswith(
        "one: its loss is not finite at step 25; it stays as it was before, the others"
    )
    assert record.getMessage().endswith(said)
    with pytest.raises(JobError, match="all 2 SAEs is not finite, of one since step 25") as caught:
        curves.add(point(50, math.nan, math.nan), {"one": 25, "two": 45}, saved)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    alone = Curves(open_folder(tmp_path), ["one"], 0)
    with pytest.raises(JobError, match="the loss of one is not finite since step 25"):
        alone.add(point(30, math.nan), {"one": 25}, saved)
