"""train.saes: grids become SAEs with names of their own, and what does not fit together is refused in one line."""

import re

import pytest

from pod_job.config.load import from_json, load, to_json
from pod_job.config.schema import JobConfig
from pod_job.config.train import sae_names
from pod_job.errors import JobError

ON_A_RUN = ("mode=train", "train.source=run", "train.run=runs/source", "storage.run_dir=runs/saes")
ON_A_STREAM = ("mode=train", "model.path=m", "tasks.path=t", "storage.run_dir=runs/saes", "train.steps=10")
ONE = "train.saes=[{tap:6,latents:64,k:4}]"


def on_a_run(saes: str, *overrides: str) -> JobConfig:
    return load([*ON_A_RUN, f"train.saes={saes}", *overrides])


def test_a_grid_is_every_combination_of_its_lists_and_each_has_its_own_name() -> None:
    config = on_a_run("[{tap:[6,layer_12.mlp_out],latents:[64,128],k:[4,8],seed:[0,1],learning_rate:[1e-3,1e-4]}]")
    specs = config.train.specs
    assert len(specs) == 2**5 == len(set(sae_names(specs)))
    assert {spec.taps for spec in specs} == {("layer_6",), ("layer_12.mlp_out",)}
    assert from_json(to_json(config)).train.specs == specs


def test_a_single_entry_needs_no_brackets() -> None:
    assert on_a_run("{tap:1,latents:64,k:4}") == on_a_run("[{tap:1,latents:64,k:4}]")


def test_a_crosscoder_takes_its_taps_together_and_a_transcoder_has_two_ends() -> None:
    crosscoder, transcoder = on_a_run(
        "[{tap:[1,2],crosscoder:true,latents:64,k:4},{tap:layer_1.mlp_in,target:layer_1.mlp_out,latents:64,k:4,skip:true}]"
    ).train.specs
    assert (crosscoder.taps, crosscoder.target) == (("layer_1", "layer_2"), None)
    assert transcoder.inputs_and_target == ("layer_1.mlp_in", "layer_1.mlp_out")


@pytest.mark.parametrize("latents", [1, 7, 16, 100, 4096])
def test_groups_of_a_matryoshka_sae_add_up_to_its_latents(latents: int) -> None:
    [spec] = on_a_run(f"[{{tap:1,latents:{latents},k:1,architecture:matryoshka}}]").train.specs
    assert sum(spec.group_sizes) == latents
    assert min(spec.group_sizes) > 0


@pytest.mark.parametrize(
    ("saes", "said"),
    [
        ("[]", "train.saes is empty"),
        ("[{tap:1,latents:64,k:65}]", "k=65 is more than latents=64"),
        ("[{tap:1,latents:64}]", "architecture=batch_topk needs k"),
        ("[{tap:1,latents:64,k:[4,0]}]", "k=0 is not a whole number; use 1 or more"),
        ("[{tap:1,latents:64.5,k:4}]", "latents=64.5 is not a whole number"),
        ("[{tap:1,latents:true,k:1}]", "latents=True is not a whole number"),
        ("[{tap:1,latents:64,k:4,seed:-1}]", "seed=-1"),
        ("[{tap:-1,latents:64,k:4}]", "tap=-1 is no tap"),
        ("[{tap:[],latents:64,k:4}]", "train.saes is empty"),
        ("[{latents:64,k:4}]", "train.saes[0].tap is not set"),
        ("[{tap:1,latnts:64,k:4}]", "did you mean train.saes.latents"),
        ("[{tap:1,latents:64,architecture:relu,k:4}]", "k=4 is not of architecture=relu"),
        ("[{tap:1,latents:64,k:4,sparsity:0.1}]", "sparsity=0.1 is not of architecture=batch_topk"),
        ("[{tap:1,latents:64,architecture:relu}]", "architecture=relu needs sparsity"),
        ("[{tap:1,latents:64,architecture:vanilla}]", "architecture=vanilla is none; use relu"),
        ("[{tap:1,latents:64,k:4,learning_rate:0}]", "learning_rate=0 is not a number above 0"),
        ("[{tap:1,latents:64,k:4,skip:true}]", "skip=true is of a transcoder"),
        ("[{tap:1,latents:64,k:4,groups:[32,32]}]", "groups=[32, 32] are of architecture=matryoshka"),
        ("[{tap:1,latents:64,k:4,architecture:matryoshka,groups:[32,16]}]", "add up to 48, not to latents=64"),
        ("[{tap:1,latents:64,k:4,crosscoder:true}]", "give two taps or more"),
        ("[{tap:1,target:layer_1,latents:64,k:4}]", "target=layer_1 is the tap that is encoded, too; leave target out"),
        ("[{tap:1,latents:64,k:[4,4]}]", "layer_1-batch_topk-64-k4 twice"),
    ],
)
def test_saes_that_cannot_be_are_refused_in_one_line(saes: str, said: str) -> None:
    with pytest.raises(JobError, match=re.escape(said)) as refused:
        _ = on_a_run(saes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((*ON_A_RUN[:2], ON_A_RUN[3], ONE), "train.run is not set"),
        ((*ON_A_RUN, ONE, "train.steps=5", "train.tokens=5000000"), "both set; leave one out"),
        ((*ON_A_RUN, ONE, "train.buffer_rows=100"), "train.buffer_rows=100 holds no batch"),
        ((*ON_A_RUN, ONE, "train.tokens=100"), "less than one step"),
        ((*ON_A_RUN, ONE, "train.epochs=0"), "train.epochs=0 is too small"),
        ((*ON_A_STREAM[:4], ONE), "train.tokens is not set"),
        ((*ON_A_STREAM, ONE, "train.run=runs/x"), "train.run=runs/x is read with train.source=run"),
        ((*ON_A_STREAM, ONE), "extract.positions=last does not go with mode=train"),
        ((*ON_A_STREAM, ONE, "extract=all_tokens", "extract.layers=[3]"), "the taps are in train.saes"),
        (("mode=train", "storage.run_dir=r", ONE, "train.steps=5"), "model.path is not set"),
        (("model.path=m", "tasks.path=t", "storage.run_dir=r", ONE), "train.saes are trained with mode=train"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(JobError, match=re.escape(said)):
        load(overrides)


def test_a_stream_extracts_the_taps_of_its_saes_without_special_tokens() -> None:
    config = load([*ON_A_STREAM, "extract=all_tokens", "train.saes=[{tap:[3,1],latents:64,k:4}]"])
    assert (config.extract.layers, config.extract.taps) == ([], ["layer_3", "layer_1"])
    assert [kind.value for kind in config.extract.exclude] == ["special"]
    assert from_json(to_json(config)) == config
