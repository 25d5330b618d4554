"""Time and memory of a training follow from the forecasts of its programs."""

import pytest
from forecasts import step_forecast

from pod_job.preflight.training_forecast import beside_model, smaller_buffer, training_forecast, with_reading

GIB = 1 << 30
SECONDS = {"compute": 0.04, "hbm": 0.01, "network": 0.02}
FORWARD = step_forecast(
    seconds=SECONDS,
    tokens=4096,
    hbm={"weights and inputs": 2 * GIB, "results": GIB, "temporaries": GIB, "program": 1, "total": 4 * GIB + 1},
)
TRAINER = step_forecast(
    program="trainer",
    seconds=SECONDS,
    tokens=1024,
    hbm={"shuffle buffer": 8 * GIB, "temporaries": 3 * GIB, "program": 2, "total": 11 * GIB + 2},
)


def test_a_step_takes_its_share_of_a_forward_pass_the_trainer_and_its_collectives() -> None:
    training = training_forecast(TRAINER, FORWARD)
    assert training.seconds == pytest.approx({"forward": 0.01, "trainer": 0.04, "network": 0.02})
    assert (training.longest, training.forward_passes) == ("trainer", 0.25)
    assert training.tokens_per_s == pytest.approx(1024 / 0.07)
    assert training.of_forward_alone == pytest.approx(0.01 / 0.07)


@pytest.mark.parametrize("cause", ["host", "bucket"])
def test_vectors_that_stay_on_the_chips_wait_for_nothing(cause: str) -> None:
    stored = step_forecast(seconds=SECONDS | {cause: 9.0}, tokens=4096)
    assert training_forecast(TRAINER, stored) == training_forecast(TRAINER, FORWARD)


def test_reading_a_run_goes_beside_the_step_and_bounds_it_where_it_is_slower() -> None:
    alone = training_forecast(TRAINER, None)
    quick, slow = (with_reading(alone, 10**9, rate, assumed=True) for rate in (100.0, 2.0))
    assert (quick.step_s, quick.longest) == (alone.step_s, "trainer")
    assert (slow.step_s, slow.longest) == (0.5, "reading")
    assert (alone.forward_passes, alone.of_forward_alone) == (0, 0)


def test_both_programs_share_the_memory_and_a_smaller_buffer_fits() -> None:
    both = beside_model(TRAINER, FORWARD)
    # Weights, three copies of the vectors of one pass, the buffer, and the larger temporaries.
    assert both.hbm["total"] == (2 * GIB + 3 * GIB // 2 + 8 * GIB + 3 * GIB) + 3
    assert both.fits
    rows = smaller_buffer(step_forecast(**{"tokens": 1024, "hbm": both.hbm, "hbm_available": 12 * GIB}), 1 << 20)
    assert rows is not None
    assert rows % 1024 == 0
    assert 0 <= 12 * GIB - (both.hbm["total"] - 8 * GIB + rows * 8 * GIB // (1 << 20)) < 8 * GIB // 1024 + 1
    assert smaller_buffer(step_forecast(tokens=1024, hbm=both.hbm, hbm_available=6 * GIB), 1 << 20) is None
