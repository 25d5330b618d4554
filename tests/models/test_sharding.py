"""Every mesh and sharding gives equal rows, also with heads that do not divide the mesh; what cannot fit is refused."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from pod_job.checkpoints.checkpoint import read_checkpoint
from pod_job.checkpoints.load import load_params
from pod_job.config.schema import ExtractConfig, MeshConfig, Positions, Sharding, StoredDtype
from pod_job.errors import JobError
from pod_job.extraction.feeding import StepRows
from pod_job.extraction.step import compile_step
from pod_job.models import layer_loop
from pod_job.models.arch import read_arch_file
from pod_job.models.decoder import Decoder
from pod_job.models.mesh import make_mesh, placement, row_sharding, weight_shardings
from pod_job.models.sharding import check_divides, rules, sharding_line
from pod_job.models.taps import resolve
from pod_job.models.weight_table import Weight, weight_table
from tools.tiny_model import write_tiny_model

ROWS, SEQ = 8, 12
EXTRACT = ExtractConfig(positions=Positions.all, dtype=StoredDtype.float32, seq_len=SEQ, prompts_per_row=2)
# name: family and sizes. 14 query and 2 key/value heads are those of Qwen2.5-0.5B.
MODELS = {
    "14 and 2 heads": ("qwen2", {"heads": 14, "kv_heads": 2, "hidden": 112}),
    "8 and 8 heads": ("gemma3_text", {"heads": 8, "kv_heads": 8, "head_dim": 8}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @functools.cache
    def write(name: str) -> Path:
        family, sizes = MODELS[name]
        return write_tiny_model(tmp_path_factory.mktemp("model") / family, family, layers=3, **sizes)

    return write


@pytest.fixture(scope="module")
def on_one_device(folder: Callable[[str], Path]) -> Callable[[str], dict[str, np.ndarray]]:
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    return functools.cache(lambda name: run_step(folder(name), mesh, Sharding.replicated))


def run_step(model_dir: Path, mesh: Mesh, sharding: Sharding) -> dict[str, np.ndarray]:
    """Every tap of the job's own step over rows of two packed prompts each."""
    arch = read_arch_file(model_dir / "config.json")
    table, rows = weight_table(arch), row_sharding(mesh, sharding)
    shardings = weight_shardings(mesh, sharding, table)
    params = load_params(read_checkpoint(model_dir), table, np.float32, shardings)
    model = Decoder(arch, resolve(None, ["*"], arch), jnp.float32, placement(mesh, sharding, shardings))
    step = compile_step(model, params, StepRows(ROWS, rows), EXTRACT)
    ids = np.random.default_rng(0).integers(0, 256, (ROWS, SEQ)).astype(np.int32)
    prompt = np.repeat([[1] * 7 + [2] * 5], ROWS, axis=0).astype(np.int32)
    position = np.repeat([[*range(7), *range(5)]], ROWS, axis=0).astype(np.int32)
    nothing = np.zeros((ROWS, EXTRACT.prompts_per_row), np.int32), np.zeros(ROWS, np.int32)
    activations = step(params, *(jax.device_put(a, rows) for a in (ids, prompt, position, *nothing))).activations
    return {name: np.asarray(value) for name, value in activations.items()}


@pytest.mark.slow
@pytest.mark.parametrize("sharding", Sharding)
@pytest.mark.parametrize("shape", [(1, 8), (2, 4)], ids=lambda shape: f"{shape[0]}x{shape[1]}")
@pytest.mark.parametrize("name", MODELS)
def test_every_tap_is_the_same_on_a_mesh_as_on_one_device(
    name: str, shape: tuple[int, int], sharding: Sharding, folder, on_one_device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_loop, "MOST_PIECES", 0)  # one loop: the smaller program, the quicker to compile
    found = run_step(folder(name), make_mesh(MeshConfig(data=shape[0], model=shape[1])), sharding)
    for tap, expected in on_one_device(name).items():
        error = np.linalg.norm(found[tap] - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
        assert error.max() <= 1e-5, tap


def table_of(folder: Callable[[str], Path], name: str) -> dict[str, Weight]:
    return weight_table(read_arch_file(folder(name) / "config.json"))


def test_what_divides_is_split_and_weights_are_really_smaller(folder) -> None:
    table = table_of(folder, "14 and 2 heads")
    assert rules(table, 8, Sharding.tensor).keys() == {"mlp", "vocab"}
    assert rules(table, 2, Sharding.tensor).keys() == {"heads", "kv_heads", "mlp", "vocab"}
    assert rules(table, 14, Sharding.tensor) == {}, "14 divides the query heads, but not the keys that they need"
    split = weight_shardings(make_mesh(MeshConfig(data=1, model=8)), Sharding.tensor, table)
    assert split["gate"].shard_shape(table["gate"].shape) == (3, 112, 128 // 8)
    assert split["q"].shard_shape(table["q"].shape) == table["q"].shape


def test_what_is_not_split_is_said(folder) -> None:
    line = sharding_line(table_of(folder, "14 and 2 heads"), MeshConfig(data=1, model=8), Sharding.tensor)
    assert line == (
        "weights tensor: split 8 ways over model: mlp size 128, vocabulary 320; "
        "whole on every device, as 8 does not divide it: query heads 14, key/value heads 2"
    )
    assert "whole" not in sharding_line(table_of(folder, "8 and 8 heads"), MeshConfig(data=1, model=8), Sharding.tensor)


@pytest.mark.parametrize(
    ("parts", "sharding", "says"),
    [
        (
            5,
            Sharding.fsdp,
            r"mesh\.model=5 does not divide what sharding=fsdp splits \(hidden size 112\); use 1, 2, 4, or",
        ),
        (3, Sharding.tensor, r"mesh\.model=3 .* vocabulary 320\); use 1, 2, or sharding=replicated"),
        (7, Sharding.tensor, r"mesh\.model=7 .*; use 1, 2, 4, 5, or sharding=fsdp"),
    ],
)
def test_a_mesh_that_divides_nothing_is_refused_with_those_that_do(
    parts: int, sharding: Sharding, says: str, folder
) -> None:
    table = table_of(folder, "14 and 2 heads")
    with pytest.raises(JobError, match=says):
        check_divides(table, MeshConfig(data=8, model=parts), sharding)
    check_divides(table, MeshConfig(data=8, model=parts), Sharding.replicated)
