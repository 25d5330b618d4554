"""Names of taps, and which a request resolves to."""

import pytest

from pod_job.errors import JobError
from pod_job.models.taps import Tap, available, resolve


def names(taps: tuple[Tap, ...]) -> list[str]:
    return [tap.name for tap in taps]


def test_names_follow_the_users_document() -> None:
    assert names(resolve([12, 6], [], 24)) == ["layer_6", "layer_12"]
    assert names(resolve([], ["layer_24_norm", "embed"], 24)) == ["embed", "layer_24_norm"]


def test_nothing_named_means_all_layers() -> None:
    assert names(resolve(None, [], 3)) == ["layer_0", "layer_1", "layer_2"]


def test_wildcards_choose_by_name_and_add_to_layers() -> None:
    assert names(resolve([1], ["layer_*.attn_out"], 2)) == ["layer_0.attn_out", "layer_1.attn_out", "layer_1"]


def test_every_tap_is_found_by_its_own_name_alone() -> None:
    for name, tap in available(4).items():
        assert resolve(None, [name], 4) == (tap,)


def test_a_layer_the_model_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(JobError, match=r"^extract.layers: layer 30 of a 30-layer model: use 0\.\.29$"):
        resolve([6, 30], [], 30)


def test_a_name_that_matches_nothing_is_refused_with_near_misses() -> None:
    with pytest.raises(JobError, match=r"'layer_3.atn_out' matches no tap; the nearest are .*layer_3.attn_out"):
        resolve(None, ["layer_3.atn_out"], 4)


def test_an_empty_request_is_refused() -> None:
    with pytest.raises(JobError, match="leave nothing to extract"):
        resolve([], [], 4)
