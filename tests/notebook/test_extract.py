"""`extract` in this process: vectors of the hooked model, in a temporary or a named run folder."""

import gc
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.dataset import ActivationDataset
from pod_job.errors import JobError
from pod_job.hooks import extract, load_model
from tools.tiny_model import write_tiny_model

pytestmark = pytest.mark.slow

TEXTS = ["The capital of France is", "a much longer text, " * 30, 'with "quotes", ${braces} and\nlines']


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), layers=4)


def test_vectors_are_those_of_the_loaded_model(model: Path) -> None:
    loaded = load_model(str(model), layers_to_extract=[1, 3])
    dataset = extract(TEXTS, loaded, layers=[3, 1])
    other = ActivationDataset(dataset.folder.url, layer=1)
    rows = dataset.rows(slice(None))
    tasks = list(dict.fromkeys(rows["task_id"].tolist()))
    for task, text in zip(tasks, TEXTS, strict=True):
        ids = loaded.tokenizer(text, return_tensors="np")["input_ids"]
        _, expected = loaded.model.apply(loaded.params, jnp.asarray(ids), return_activations=True)
        chosen = rows["task_id"] == task
        assert rows["token_id"][chosen].tolist() == ids[0].tolist()
        np.testing.assert_allclose(dataset[chosen], expected["layer_3"][0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(other[chosen], expected["layer_1"][0], rtol=1e-5, atol=1e-5)


def test_a_temporary_folder_goes_with_its_dataset(model: Path) -> None:
    dataset = extract("one text", model, layers=[1], positions="last")
    assert dataset.shape[0] == 1
    folder = Path(dataset.folder.url)
    assert folder.is_dir()
    del dataset
    gc.collect()
    assert not folder.exists()


def test_a_named_folder_is_continued_and_refuses_other_texts(model: Path, tmp_path: Path) -> None:
    first = extract(TEXTS, model, layers=[1], run_dir=tmp_path / "run")
    again = extract(TEXTS, model, layers=[1], run_dir=tmp_path / "run")
    np.testing.assert_array_equal(first[:], again[:])
    with pytest.raises(JobError, match="belongs to another run"):
        extract([*TEXTS, "one more"], model, layers=[1], run_dir=tmp_path / "run")


@pytest.mark.parametrize(
    ("texts", "message"), [([], "texts is empty"), (["a", 3], r"texts\[1\] is a int"), ([""], "non-empty text")]
)
def test_texts_that_cannot_be_used_are_refused(texts: list, message: str, model: Path) -> None:
    with pytest.raises(JobError, match=message):
        extract(texts, model, layers=[1])


def test_a_layer_that_is_not_there_is_refused_and_leaves_no_folder(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(JobError, match="layer"):
        extract(TEXTS, model, layers=[9])
    assert list(tmp_path.iterdir()) == []
