"""The configuration: what composes, and the one line that says why something does not."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pod_job.config.extract import Exclude
from pod_job.config.load import conf_dir, from_json, load, to_json
from pod_job.config.schema import JobConfig, ModelConfig, Positions, Sharding, StorageConfig
from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError

ENOUGH = ["model.path=m", "tasks.path=t", "storage.run_dir=r"]


def test_groups_and_fields_compose_to_typed_values() -> None:
    config = load(
        [*ENOUGH, "mesh=4x2", "pod=local_4x2", "sharding=fsdp", "extract=all_tokens", "extract.layers=[6,12]"]
    )
    assert (config.mesh.data, config.mesh.model, config.pod.devices) == (4, 2, 8)
    assert config.sharding is Sharding.fsdp
    assert config.extract.positions is Positions.all
    assert config.extract.layers == [6, 12]


def test_the_defaults_are_those_of_the_users_document() -> None:
    config = load(ENOUGH)
    assert config.extract.positions is Positions.last
    assert config.extract.save_every_n_samples == 512


@pytest.mark.parametrize("path", sorted((conf_dir() / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_composes_and_says_what_it_is(path) -> None:
    load([f"experiment={path.stem}", "storage.run_dir=r"])
    assert path.read_text().splitlines()[1].startswith("# ")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["extrct.layers=[6]"], "extrct.layers is not a field of the configuration; did you mean extract.layers?"),
        (["extract.layer=[6]"], "extract.layer is not a field of the configuration; did you mean extract.layers?"),
        (["mesh=3x5"], "mesh=3x5 is not one of the choices: 16x16, 1x1, "),
        (["experiment=nope"], "experiment=nope is not one of the choices: "),
        (["extract.seq_len=long"], "extract.seq_len: Value 'long' of type 'str' could not be converted to Integer"),
        (["extract.dtype=float4"], "extract.dtype: Invalid value 'float4', expected one of [bfloat16, "),
        (["mesh=2x2"], "mesh.data=2 x mesh.model=2 is 4 devices, but the pod has pod.hosts=1 x "),
        (["extract.seq_len=0"], "extract.seq_len=0 is too small; use 1 or more"),
        (["extract.layers=[6,6]"], "extract.layers=[6, 6] names a layer twice"),
        (["pod.port=70000"], "pod.port=70000 is not a port"),
        (["extract.layers=["], "'extract.layers=['"),
        (["extract.layers=6,"], "'extract.layers=6,' is not an override"),
        (["tasks.system=a,b"], "tasks.system: Cannot convert 'list' to string"),
        (["+task.limit=3"], "task.limit is not a field of the configuration; did you mean tasks.limit?"),
        (["++tasks.limt=3"], "tasks.limt is not a field of the configuration; did you mean tasks.limit?"),
        (["+labels.a=b"], "labels.a is not a field of the configuration; did you mean "),
        (["+a/b=c"], "a/b is not a field of the configuration"),
        (["hydra.run.dir=x"], "hydra.run.dir is not a field of the configuration"),
    ],
)
def test_bad_overrides_are_refused_in_one_line(overrides: list[str], says: str) -> None:
    with pytest.raises(JobError) as refused:
        load([*ENOUGH, *overrides])
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("word", "layers"), [("6,18", [6, 18]), (" 6 , 18", [6, 18]), ("[6]", [6]), ("6", [6])])
def test_values_of_a_list_need_no_brackets(word: str, layers: list[int]) -> None:
    config = load([*ENOUGH, f"extract.layers={word}"])
    assert config.extract.layers == layers
    assert from_json(to_json(load(ENOUGH)), [f"extract.layers={word}"]).extract.layers == layers


def test_one_value_of_a_list_needs_no_brackets_whatever_it_is() -> None:
    words = ["cloud.zones=us-west4-a", "extract.taps=layer_*.mlp_in", "extract.exclude=special", "extract.layers=null"]
    config = load([*ENOUGH, *words])
    assert (config.cloud.zones, config.extract.taps) == (["us-west4-a"], ["layer_*.mlp_in"])
    assert (config.extract.exclude, config.extract.layers) == ([Exclude.special], None)


def test_a_recorded_value_that_is_no_list_is_refused_in_one_line() -> None:
    with pytest.raises(JobError, match=r"^extract\.layers is a list; write extract\.layers=\[\.\.\.\]$"):
        from_json({"extract": {"layers": 6}})


def test_a_value_that_is_not_set_is_named() -> None:
    with pytest.raises(JobError, match=r"^model.path is not set; give model.path="):
        load(["tasks.path=t", "storage.run_dir=r"])


@pytest.mark.parametrize("path", sorted((conf_dir() / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recorded_configuration_is_read_back_as_it_was(path) -> None:
    config = load([f"experiment={path.stem}", "storage.run_dir=r", "extract.exclude=[special]", "+cloud.labels.a=b"])
    recorded = json.loads(json.dumps(to_json(config)))
    assert from_json(recorded) == config
    changed = from_json(recorded, ["cloud.project=other", "cloud.zones=[us-west4-a]"])
    assert (changed.cloud.project, changed.cloud.zones) == ("other", ["us-west4-a"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("cloud.projct=x", "cloud.projct is not a field of the configuration; did you mean cloud.project?"),
        ("pod=v5e_64", "pod=v5e_64: a recorded configuration takes single fields only"),
        ("experiment=demo", "experiment=demo: a recorded configuration takes single fields only"),
        ("~cloud.name", "~cloud.name: a recorded configuration takes single fields only"),
        ("cloud.rounds=x", "cloud.rounds: Value 'x' of type 'str' could not be converted to Integer"),
    ],
)
def test_bad_overrides_of_a_recorded_configuration_are_refused_in_one_line(override: str, says: str) -> None:
    recorded = to_json(load(ENOUGH))
    assert from_json(recorded, ["+cloud.labels.a=b"]).cloud.labels == {"a": "b"}
    with pytest.raises(JobError) as refused:
        from_json(recorded, [override])
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["${", "}", "\\", "$", "{", "oc.env:HOME", "a", ":", "'", '"', " "])).map("".join))
def test_a_recorded_value_is_text_and_never_interpolated(text: str) -> None:
    config = JobConfig(model=ModelConfig(path=text), tasks=TasksConfig(path="t"), storage=StorageConfig(run_dir="r"))
    config.cloud.ssh_flags = [text]
    read = from_json(json.loads(json.dumps(to_json(config))))
    assert (read.model.path, read.cloud.ssh_flags) == (text, [text])
