"""Which tokens have a row: by position in the document, by a seed that nothing but the sample enters, by exclusion."""

import numpy as np
import pytest

from pod_job.config.extract import Exclude, ExtractConfig, Positions
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.planning.identity import recorded_positions
from pod_job.prompts.row_choice import chosen_rows, draws
from pod_job.prompts.sources.sample import Sample

SPECIAL = np.array([True, *[False] * 8, True])


def rows(positions: Positions, exclude: bool = False, start: int = 0, **fields: float) -> list[int]:
    """Places of ten tokens from `start` of their document on, of which the second cannot have a row."""
    extract = ExtractConfig(positions=positions, exclude=[Exclude.special] if exclude else [], **fields)
    candidates = np.arange(10) != 1
    places = chosen_rows(
        Sample("a", 0, "x"), np.arange(start, start + 10, dtype=np.int32), candidates, SPECIAL, extract
    )
    assert places is not None
    return places.tolist()


@pytest.mark.parametrize(
    ("positions", "fields", "chosen", "without_special"),
    [
        (Positions.all, {}, [0, *range(2, 10)], [*range(2, 9)]),
        (Positions.mean, {}, [0, *range(2, 10)], [*range(2, 9)]),
        (Positions.last, {}, [9], []),
        (Positions.first, {}, [0], []),
        (Positions.every, {"every": 3}, [0, 3, 6, 9], [3, 6]),
        (Positions.every, {"every": 3, "start": 4}, [2, 5, 8], [2, 5, 8]),
        (Positions.sample, {"sample": 1.0}, [0, *range(2, 10)], [*range(2, 9)]),
    ],
)
def test_positions(positions: Positions, fields: dict, chosen: list[int], without_special: list[int]) -> None:
    assert rows(positions, **fields) == chosen
    assert rows(positions, exclude=True, **fields) == without_special


def test_a_sample_is_one_of_the_share_by_its_name_position_and_seed_alone() -> None:
    sample, positions = Sample("a", 3, "x"), np.arange(20_000)
    drawn = draws(sample, positions, 0)
    np.testing.assert_array_equal(drawn[500:700], draws(Sample("a", 3, "another text"), positions[500:700], 0))
    others = [
        drawn,
        draws(sample, positions, 1),
        draws(Sample("a", 4, "x"), positions, 0),
        draws(Sample("b", 3, "x"), positions, 0),
    ]
    for numbers in others:
        assert abs((numbers < 0.1).mean() - 0.1) < 0.01
        assert 0 <= numbers.min() <= numbers.max() < 1
    chosen = np.array(others) < 0.1
    assert np.abs(np.corrcoef(chosen) - np.eye(4)).max() < 0.05
    assert abs(np.corrcoef(chosen[0][1:], chosen[0][:-1])[0, 1]) < 0.05
    assert draws(sample, positions[:3], 0).round(6).tolist() == FIRST, "runs that were begun go on with these"


FIRST = [0.275962, 0.704518, 0.8732]


def test_a_choice_and_its_number_are_one_override() -> None:
    given = ["experiment=demo", "storage.run_dir=x"]
    for override, field, value in (("every=8", "every", 8), ("sample=0.25", "sample", 0.25), ("'every=8'", "every", 8)):
        extract = load([*given, f"extract.positions={override}"]).extract
        assert (extract.positions.value, getattr(extract, field)) == (field, value)
        assert recorded_positions(extract) == f"{field}={value}"
    extract = load([*given, "extract.positions=roles=[assistant]"]).extract
    assert (extract.positions, extract.roles) == (Positions.all, ["assistant"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["extract.positions=every=0"], "extract.every=0 is too small; use 1 or more"),
        (["extract.positions=every"], "extract.positions=every needs a number; write extract.positions=every=8"),
        (
            ["extract.positions=sample=1.5"],
            "extract.sample=1.5 is not a share of positions; use one above 0, at most 1",
        ),
        (["extract.positions=sample=0"], "extract.sample=0.0 is not a share of positions"),
        (["extract.positions=sample=nan"], "extract.sample=nan is not a share of positions"),
        (["extract.positions=all", "extract.every=2"], "extract.every=2 does not go with extract.positions=all"),
        (["extract.positions=generated"], "extract.positions=generated needs generated tokens"),
        (["extract.positions=mean", "extract.too_long=split"], "extract.positions=mean is one vector per sample"),
        (["extract.positions=mean", "mode=generate"], "extract.positions=mean needs mode=prefill"),
        (["extract.too_long=split", "mode=generate"], "extract.too_long=split needs mode=prefill"),
        (["extract.overlap=4"], "extract.overlap=4 is between windows; set extract.too_long=split"),
        (["extract.too_long=split", "extract.overlap=-1"], "extract.overlap=-1 is too small"),
        (
            ["extract.too_long=split", "extract.seq_len=16", "extract.overlap=16"],
            "extract.overlap=16 leaves no new token in a window of extract.seq_len=16; use at most 15",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(overrides: list[str], says: str) -> None:
    with pytest.raises(JobError) as refused:
        load(["experiment=demo", "storage.run_dir=x", *overrides])
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)
