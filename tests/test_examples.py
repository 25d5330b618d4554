"""The programs in docs/examples train autoencoders that explain the variance of a run of sparse vectors."""

import importlib.util
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pod_job.errors import JobError
from pod_job.interop.sae_lens import export_sae_lens, hook_of
from pod_job.reading.dataset import ActivationDataset
from tests.sparse_run import ROWS, TAP, sparse_run
from tools.peers import is_made, python_of, quiet_environment

EXAMPLES = Path(__file__).parent.parent / "docs/examples"
SMALL: dict[str, Any] = {"steps": 300, "batch_size": 256, "latents": 64, "k": 6, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse_run(tmp_path_factory.mktemp("examples") / "run")


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_jax_and_optax(run: Path) -> None:
    _, before, after = example("sae_jax").train(run, 6, **SMALL)
    assert before < 0.7
    assert after > 0.9


@pytest.mark.pod
def test_torch_and_its_data_loader(run: Path, torch_there: None) -> None:
    _, explained = example("sae_torch").train(run, 6, **SMALL, workers=0)
    assert explained > 0.9


TRAINERS = ("sae_lens_sae", "sae_lens_sae, cached", "dictionary_learning_sae", "sparsify_sae")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_imports_from_public_addresses(path: Path) -> None:
    modules = re.findall(r"^(?:from|import) (pod_job[\w.]*)", path.read_text(), re.MULTILINE)
    assert modules
    assert all(module.count(".") == 1 for module in modules)


@pytest.mark.pod
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_of_the_field(trainer: str, run: Path, tmp_path: Path, require: Callable[[bool, str], None]) -> None:
    require(is_made("trainers"), "other trainers: python -m tools.peers trainers")
    name, _, cached = trainer.partition(", ")
    arguments: dict[str, Any] = {**SMALL, "save_dir": str(tmp_path / "sae")}
    if cached:
        export_sae_lens(run, tmp_path / "cached", 6, exclude=["sink"])
        arguments["cached"] = str(tmp_path / "cached")
    program = f"import json, {name}; print(json.dumps({name}.train({str(run)!r}, 6, **{arguments!r})))"
    process = subprocess.run(
        [python_of("trainers"), "-c", program],
        env=quiet_environment() | {"PYTHONPATH": f"{EXAMPLES}:{EXAMPLES.parent.parent}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) > 0.8


def test_sae_lens_cached_activations_hold_the_rows_in_order(run: Path, tmp_path: Path) -> None:
    import datasets

    written = export_sae_lens(run, tmp_path / "cached", 6, context_size=64)
    cached = datasets.load_from_disk(tmp_path / "cached").with_format("numpy")
    dataset = ActivationDataset(run, TAP)
    assert written == 64 * len(cached) == 3 * ROWS // 64 * 64
    vectors = np.asarray(cached[:]["blocks.6.hook_resid_post"]).reshape(written, -1)
    np.testing.assert_array_equal(vectors, dataset[:written].astype(np.float32))
    np.testing.assert_array_equal(np.ravel(cached[:]["token_ids"]), dataset.rows(slice(0, written))["token_id"])


def test_large_exports_are_cut_into_files(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("pod_job.interop.sae_lens.PART_BYTES", 200_000)
    written = export_sae_lens(run, tmp_path / "cached", 6)
    names = sorted(path.name for path in (tmp_path / "cached").iterdir())
    assert names[:2] == ["data-00000.arrow", "data-00001.arrow"]
    assert names[-2:] == ["dataset_info.json", "state.json"]
    cached = datasets.load_from_disk(tmp_path / "cached").with_format("numpy")
    vectors = np.asarray(cached[:]["blocks.6.hook_resid_post"]).reshape(written, -1)
    np.testing.assert_array_equal(vectors, ActivationDataset(run, TAP)[:written].astype(np.float32))


def test_what_cannot_be_exported_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(JobError, match="is not empty"):
        export_sae_lens(run, tmp_path / "full", 6)
    with pytest.raises(JobError, match=r"context_size=10000: more than the 4500 rows"):
        export_sae_lens(run, tmp_path / "cached", 6, context_size=10_000)
    with pytest.raises(JobError, match=r"layer_6\.q: TransformerLens has no equal of it"):
        hook_of("layer_6.q", 30)
