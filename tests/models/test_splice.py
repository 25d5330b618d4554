"""A value that is spliced in at a tap takes the place of the computed one for everything after it, and nothing else."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models import load

from pod_job.models.decoder import Decoder, with_defaults
from pod_job.models.decoder_layer import LayerInput, attention_mixer, decoder_layer
from pod_job.models.layer_attention import WithinRows
from pod_job.models.placement import Placement
from pod_job.models.splice import Splice, unchanged
from pod_job.models.taps import Tap, available, sites_of
from pod_job.models.token_facts import TokenFacts
from pod_job.models.weight_table import weight_table
from tools.tiny_model import write_tiny_model

# Sites of a layer that are functions of the one before them alone: of another prompt, each stands for the next.
CHAINS = [
    [("resid_pre",), ("resid_post",)],
    [("attn_in",), ("q", "k", "v"), ("z",), ("attn_out_pre_norm",), ("attn_out",)],
    [("mlp_in",), ("mlp_act",), ("mlp_out_pre_norm",), ("mlp_out",)],
]


def compiled(function: Callable, *arguments: object) -> Any:
    # The compiler's last stage is most of a tiny model's time, and optimises what is run once.
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})(*arguments)


def entropies(model: Decoder, params: dict, ids: jax.Array, taps: list[Tap], values: dict) -> np.ndarray:
    """Entropies of the model's distributions where the taps are replaced by their `values`."""

    def of_spliced(params: dict, ids: jax.Array, values: list[jax.Array]) -> jax.Array:
        replaced = dict(zip(taps, values, strict=True))
        facts = model.apply(params, with_defaults(ids, None, None), replaced, method="score_spliced")
        return cast(TokenFacts, facts).entropy

    return np.asarray(compiled(of_spliced, params, ids, [values[tap.name] for tap in taps]))


def prompts(model: Decoder) -> tuple[jax.Array, jax.Array]:
    first, second = np.random.default_rng(0).integers(2, model.arch.vocab, (2, 1, 7))
    return jnp.asarray(first), jnp.asarray(second)


def score(model: Decoder, params: dict, ids: jax.Array) -> tuple[dict, np.ndarray]:
    output, facts = compiled(lambda *inputs: model.apply(*inputs, method="score"), params, ids)
    return output.activations, np.asarray(facts.entropy)


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox"])
def test_sites_that_follow_from_each_other_are_spliced_alike(family: str, tmp_path: Path) -> None:
    model, params = load(write_tiny_model(tmp_path / "model", family, layers=1))
    arch, tokens = model.arch, with_defaults(jnp.zeros((1, 7), jnp.int32), None, None)
    weights = {name: params["params"][name][0] for name, w in weight_table(arch).items() if w.stacked}
    rng = np.random.default_rng(0)
    x, other = rng.standard_normal((2, 1, 7, arch.hidden)).astype(np.float32)

    def layer(x: jax.Array, splice: Splice = unchanged) -> tuple[jax.Array, dict[str, jax.Array]]:
        attend = partial(WithinRows(arch, Placement(), tokens), 0, kept=None)
        mixer = partial(attention_mixer, arch, Placement(), weights, attend)
        (after, _), sites = decoder_layer(arch, Placement(), weights, LayerInput(x), mixer, splice)
        return after, sites

    @jax.jit
    def spliced(x: jax.Array, values: dict[str, jax.Array], chosen: dict[str, bool]) -> jax.Array:
        def splice(site: str, value: jax.Array) -> jax.Array:
            return jnp.where(chosen[site], values[site].reshape(value.shape), value)

        return layer(x, splice)[0]

    after, own = jax.jit(layer)(x)
    _, values = jax.jit(layer)(other)
    none = dict.fromkeys(values, False)
    for chain in CHAINS:
        first, *others = (
            spliced(x, values, none | dict.fromkeys(link, True)) for link in chain if set(link) <= set(sites_of(arch))
        )
        assert np.abs(first - after).max() > 1e-3
        for result in others:
            np.testing.assert_allclose(result, first, atol=1e-5)
    np.testing.assert_array_equal(spliced(x, values, none | {"resid_post": True}), values["resid_post"])
    np.testing.assert_allclose(spliced(x, own, dict.fromkeys(own, True)), after, atol=1e-5)


def test_from_a_spliced_residual_stream_on_the_model_is_that_of_the_other_prompt(tmp_path: Path) -> None:
    model, params = load(write_tiny_model(tmp_path / "model"), taps=["*"])
    ids, other = prompts(model)
    (own, unspliced), (values, expected) = score(model, params, ids), score(model, params, other)
    taps = available(model.arch.layers, sites_of(model.arch))
    for name in ("embed", "layer_0", f"layer_{model.arch.layers}_norm"):
        np.testing.assert_allclose(entropies(model, params, ids, [taps[name]], values), expected, atol=1e-5)
    np.testing.assert_allclose(entropies(model, params, ids, list(taps.values()), own), unspliced, atol=1e-5)
