"""Names of taps, and which a request resolves to."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from golden_models import GOLDENS

from pod_job.errors import JobError
from pod_job.models.arch import Arch, read_arch
from pod_job.models.families import CAUSAL
from pod_job.models.taps import Tap, available, resolve, sites_of
from tools.tiny_model import TinyModel


def model_of(layers: int, golden: str = "qwen2_full") -> Arch:
    arch = read_arch(json.loads((GOLDENS / golden / "config.json").read_text()))
    return dataclasses.replace(arch, layers=layers)


def names(taps: tuple[Tap, ...]) -> list[str]:
    return [tap.name for tap in taps]


def test_names_follow_the_users_document() -> None:
    assert names(resolve([12, 6], [], model_of(24))) == ["layer_6", "layer_12"]
    assert names(resolve([], ["layer_24_norm", "embed"], model_of(24))) == ["embed", "layer_24_norm"]


def test_nothing_named_means_all_layers() -> None:
    assert names(resolve(None, [], model_of(3))) == ["layer_0", "layer_1", "layer_2"]


def test_wildcards_choose_by_name_and_add_to_layers() -> None:
    assert names(resolve([1], ["layer_*.attn_out"], model_of(2))) == ["layer_0.attn_out", "layer_1.attn_out", "layer_1"]


def test_every_tap_is_found_by_its_own_name_alone() -> None:
    arch = model_of(4, "gemma2_grouped")
    for name, tap in available(4, sites_of(arch)).items():
        assert resolve(None, [name], arch) == (tap,)


@pytest.mark.parametrize("family", CAUSAL)
def test_the_inputs_of_post_norms_are_taps_of_the_families_that_have_such_norms(family: str) -> None:
    model = read_arch(TinyModel(family, layers=2).config())
    for site in ("attn_out_pre_norm", "mlp_out_pre_norm"):
        if model.post_norms:
            assert names(resolve(None, [f"layer_*.{site}"], model)) == [f"layer_0.{site}", f"layer_1.{site}"]
            continue
        with pytest.raises(JobError, match=rf"^extract.taps: 'layer_1.{site}' .*{family} has none; use attn_out and"):
            resolve(None, [f"layer_1.{site}"], model)
    assert any(name.endswith("_pre_norm") for name in names(resolve(None, ["*"], model))) == model.post_norms


@pytest.mark.parametrize("layer", [30, -1, "6", 6.0, None])
def test_a_layer_the_model_lacks_is_refused_with_those_it_has(layer: Any) -> None:
    with pytest.raises(JobError, match=rf"^extract.layers: layer {layer} of a 30-layer model: use 0\.\.29$"):
        resolve([6, layer], [], model_of(30))


def test_one_layer_needs_no_list() -> None:
    assert names(resolve(6, [], model_of(30))) == names(resolve(np.array([6]), [], model_of(30))) == ["layer_6"]


def test_a_name_that_matches_nothing_is_refused_with_near_misses() -> None:
    with pytest.raises(JobError, match=r"'layer_3.atn_out' matches no tap; the nearest are .*layer_3.attn_out"):
        resolve(None, ["layer_3.atn_out"], model_of(4))


def test_an_empty_request_is_refused() -> None:
    with pytest.raises(JobError, match="leave nothing to extract"):
        resolve([], [], model_of(4))
