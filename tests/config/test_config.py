"""The configuration: what composes, and the one line that says why something does not."""

import pytest

from pod_job.config.load import conf_dir, load
from pod_job.config.schema import Positions, Sharding
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
        (["mesh=3x5"], "mesh=3x5 is not one of the choices: 1x1, "),
        (["experiment=nope"], "experiment=nope is not one of the choices: "),
        (["extract.seq_len=long"], "extract.seq_len: Value 'long' of type 'str' could not be converted to Integer"),
        (["extract.dtype=float4"], "extract.dtype: Invalid value 'float4', expected one of [bfloat16, "),
        (["mesh=2x2"], "mesh.data=2 x mesh.model=2 is 4 devices, but the pod has pod.hosts=1 x "),
        (["extract.seq_len=0"], "extract.seq_len=0 is too small; use 1 or more"),
        (["extract.layers=[6,6]"], "extract.layers=[6, 6] names a layer twice"),
        (["pod.port=70000"], "pod.port=70000 is not a port"),
        (["extract.layers=["], "'extract.layers=['"),
        (["extract.layers=6"], "extract.layers is a list; write extract.layers=[...]"),
    ],
)
def test_bad_overrides_are_refused_in_one_line(overrides: list[str], says: str) -> None:
    with pytest.raises(JobError) as refused:
        load([*ENOUGH, *overrides])
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_value_that_is_not_set_is_named() -> None:
    with pytest.raises(JobError, match=r"^model.path is not set; give model.path="):
        load(["tasks.path=t", "storage.run_dir=r"])
