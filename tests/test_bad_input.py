"""Bad input on the command line of `run`: one line of error, status 2, no host started, no file left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.__main__ import main
from tools.tiny_model import write_tiny_model

TASKS = Path("tests/data/arc/arc_sample.json").resolve()
POD = ["pod.hosts=2", "pod.devices_per_host=4"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), layers=4)


@pytest.fixture
def inputs(tiny: Path, tmp_path: Path) -> Path:
    """A folder with a model and a tasks file that a test may corrupt."""
    shutil.copytree(tiny, tmp_path / "model")
    shutil.copy(TASKS, tmp_path / "tasks.json")
    return tmp_path


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(inputs: Path) -> None:
        path = inputs / "model" / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return edit


def cut_weights(inputs: Path) -> None:
    path = inputs / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def write_tasks(text: str) -> Callable[[Path], None]:
    return lambda inputs: (inputs / "tasks.json").write_text(text) and None


def nothing(inputs: Path) -> None:
    """Leaves the files as they are: the fault is on the command line."""


RAGGED = '{"t1": {"train": [], "test": [{"input": [[1, 2], [3]]}]}}'

CASES = {
    "mesh product": (nothing, ["mesh=2x2"], "mesh.data=2 x mesh.model=2 is 4 devices, but the pod has pod.hosts=2 x"),
    "misspelt key": (nothing, ["extract.layrs=[1]"], "extract.layrs is not a field of the configuration; did you mean"),
    "layer out of range": (nothing, ["extract.layers=[4]"], "extract.layers: layer 4 of a 4-layer model: use 0..3"),
    "no such tap": (nothing, ["extract.taps=[layer_1.attn]"], "'layer_1.attn' matches no tap; the nearest are"),
    "unknown family": (edit_config(model_type="mamba"), [], "model_type='mamba' is not one of the families here"),
    "missing key": (edit_config(num_hidden_layers=None), [], "config.json: num_hidden_layers is missing"),
    "no config": (lambda inputs: (inputs / "model" / "config.json").unlink(), [], "config.json is missing"),
    "no weights": (
        lambda inputs: (inputs / "model" / "model.safetensors").unlink(),
        [],
        "has neither model.safetensors",
    ),
    "cut weights": (cut_weights, [], "model.safetensors"),
    "wrong sizes": (edit_config(intermediate_size=96), [], "but config.json says"),
    "no model": (nothing, ["model.path=nowhere"], "model.path=nowhere is not a folder"),
    "no tasks": (nothing, ["tasks.path=nowhere.json"], "tasks.path=nowhere.json does not exist"),
    "empty tasks": (write_tasks("{}"), [], "there is no task in it"),
    "tasks not JSON": (write_tasks("{"), [], "is not readable JSON"),
    "wrong structure": (write_tasks('{"t1": {"train": 3}}'), [], "task t1 must be an object with the lists"),
    "ragged grid": (write_tasks(RAGGED), [], "task t1, test[0].input is not rectangular"),
    "folder is a file": (nothing, ["storage.run_dir='{inputs}/tasks.json'"], "tasks.json"),
    "no bucket name": (nothing, ["storage.run_dir=gs://"], "storage.run_dir=gs://"),
    "longer than the model": (nothing, ["extract.seq_len=9000"], "more than the model's max_position_embeddings=4096"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_left(inputs: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    corrupt, overrides, message = CASES[case]
    corrupt(inputs)
    before = sorted(inputs.rglob("*"))
    job = [
        f"model.path='{inputs}/model'",
        "tasks=arc",
        f"tasks.path='{inputs}/tasks.json'",
        f"storage.run_dir='{inputs}/run'",
    ]
    status = main(["run", *POD, "mesh=8x1", *job, *(text.replace("{inputs}", str(inputs)) for text in overrides)])
    error = capsys.readouterr().err.strip()
    assert status == 2, error
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert sorted(inputs.rglob("*")) == before
