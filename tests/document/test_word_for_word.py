"""The extraction document's own lines, run in one folder as they stand there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.document.activation_extractor import ActivationExtractionConfig, ActivationExtractor
from pod_job.document.small_model import CONFIG, write_small_model, write_small_tasks
from pod_job.errors import JobError
from pod_job.interop.pickle_metadata import read_pickle_metadata
from pod_job.interop.pickle_reader import read_pickle
from pod_job.notebook.hooked_model import load_model
from tools.bucket import bucket_available, bucket_server
from tools.demo import SNIPPET
from tools.tiny_model import write_tiny_model

FOLDER = Path(__file__).parent.parent.parent / "docs/document"
SIMPLE = """
python simple_extraction_inference.py \\
  --model_path Qwen/Qwen2.5-0.5B \\
  --tasks_file arc_tasks.json \\
  --output_dir ./outputs \\
  --activations_dir ./activations \\
  --layers_to_extract 6 12 18 23
"""
DISTRIBUTED = """
python distributed_inference_with_activations.py \\
  --model_path /path/to/model \\
  --tasks_file arc_tasks.json \\
  --output_dir ./outputs \\
  --activations_dir ./activations \\
  --batch_size 8 \\
  --mesh_shape 8,8 \\
  --layers_to_extract 6 12 18 23 \\
  --gcs_bucket gs://your-bucket/activations
"""
EXAMPLES = "python example_activation_extraction.py"
# The loop to the letter, but for the last line: jnp.concatenate takes no [batch] beside a [batch, seq_len].
LOOP = """
for step in range(max_tokens):
    # Forward with extraction
    logits, activations = model.apply(params, generated_ids, return_activations=True)

    # Extract from each layer
    for layer_name, layer_activations in activations.items():
        layer_idx = int(layer_name.replace('layer_', '').replace('_norm', ''))
        if layer_idx in layers_to_extract:
            last_token_activation = layer_activations[:, -1, :]
            activation_extractor.extract_layer_activation(
                layer_idx, last_token_activation, task_id, sample_idx
            )

    # Generate next token
    next_token_id = jnp.argmax(logits[:, -1, :], axis=-1)
    generated_ids = jnp.concatenate([generated_ids, next_token_id[:, None]], axis=1)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents' folder with a model of 24 layers by the name it has on the hub, and a file of tasks."""
    place = tmp_path_factory.mktemp("document")
    for script in FOLDER.glob("*.py"):
        shutil.copy(script, place)
    write_tiny_model(place / "Qwen/Qwen2.5-0.5B", layers=24, hidden=32, mlp=32)
    write_small_tasks(place / "arc_tasks.json")
    return place


def run(line: str, folder: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of the document, on one CPU device unless `variables` say otherwise."""
    program, *words = shlex.split(line.replace("\\\n", " "))
    assert program == "python"
    outside = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    argv = [sys.executable, *words, *more]
    return subprocess.run(argv, cwd=folder, env=outside | variables, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
@pytest.mark.pod
def test_the_simple_command_and_the_snippet_that_loads_its_files(folder: Path) -> None:
    ran = run(SIMPLE, folder, "--max_tokens", "4", "--seq_len", "256")
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^ +\d+\.\d s  ", ran.stderr, re.MULTILINE)
    assert re.search(r"^predictions  2 in ./outputs; \d of 2 known answers are right$", ran.stdout, re.MULTILINE)
    metadata = read_pickle_metadata(folder / "activations/metadata.json")
    assert (metadata.model_name, metadata.layers_extracted) == ("Qwen/Qwen2.5-0.5B", [6, 12, 18, 23])
    for entry in metadata.batches:
        assert entry.n_samples == metadata.total_samples
        assert len(read_pickle(folder / "activations" / entry.file).activations) == entry.n_samples
    shown = subprocess.run([sys.executable, "-I", "-c", SNIPPET], cwd=folder, capture_output=True, text=True)
    assert shown.stdout == f"Layer 12: ({metadata.total_samples}, 32)\n"


@pytest.mark.slow
@pytest.mark.pod
def test_the_distributed_command_with_its_mesh_and_bucket(folder: Path, require: Any) -> None:
    require(bucket_available() is None, str(bucket_available()))
    line = DISTRIBUTED.replace("/path/to/model", str(folder / "Qwen/Qwen2.5-0.5B"))
    with bucket_server(folder / "server", "your-bucket") as endpoint:
        ran = run(
            line, folder, "--max_tokens", "0", "--seq_len", "64", "--too_long", "tail", STORAGE_EMULATOR_HOST=endpoint
        )
        assert ran.returncode == 0, ran.stderr
    assert "pickles      4 files and metadata.json in ./activations and gs://your-bucket/activations" in ran.stdout
    assert read_pickle_metadata(folder / "activations/metadata.json").model_name == str(folder / "Qwen/Qwen2.5-0.5B")


@pytest.mark.slow
@pytest.mark.pod
def test_the_four_examples_without_arguments(folder: Path) -> None:
    ran = run(EXAMPLES, folder)
    assert ran.returncode == 0, ran.stderr
    assert re.findall(r"^\d\. .*$", ran.stdout, re.MULTILINE) == [
        "1. Basic layer extraction",
        "2. Generation with extraction",
        "3. Saving for SAE training",
        "4. Real Hugging Face weights",
    ]
    assert "example/activations_3/layer_3_batch_000001.pkl: (2, 64)" in ran.stdout
    assert ran.stdout.splitlines()[-1].startswith("all four examples are done in ")


def test_the_imports_of_the_document(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    names: dict[str, Any] = {"config": CONFIG | {"num_hidden_layers": 24}}
    exec("from qwen2_jax_with_hooks import create_model_with_hooks, QwenModelWithActivations", names)
    exec("model = create_model_with_hooks(\n    config,\n    layers_to_extract=[6, 12, 18, 23]\n)", names)
    model = names["model"]
    assert isinstance(model, names["QwenModelWithActivations"])
    input_ids = jnp.arange(5)[None]
    params = jax.eval_shape(model.init, jax.random.key(0), input_ids)
    logits, activations = jax.eval_shape(lambda p, i: model.apply(p, i, return_activations=True), params, input_ids)
    assert logits.shape == (1, 5, CONFIG["vocab_size"])
    assert {name: array.shape for name, array in activations.items()} == {
        f"layer_{layer}": (1, 5, 64) for layer in (6, 12, 18, 23)
    }


def test_the_collection_loop_with_real_weights(tmp_path: Path) -> None:
    layers_to_extract = [1, 3]
    model, params, tokenizer = load_model(str(write_small_model(tmp_path / "model")), layers_to_extract)
    config = ActivationExtractionConfig(
        layers_to_extract=[3], activations_dir=str(tmp_path / "activations"), save_every_n_samples=1, model_name="m"
    )
    names: dict[str, Any] = {"jnp": jnp, "model": model, "params": params, "layers_to_extract": layers_to_extract}
    names |= {"generated_ids": jnp.array([tokenizer("1 2")["input_ids"]]), "task_id": "t", "sample_idx": 7}
    with ActivationExtractor(config) as activation_extractor:
        exec(LOOP, names | {"activation_extractor": activation_extractor, "max_tokens": 2})
    metadata = read_pickle_metadata(tmp_path / "activations/metadata.json")
    assert (metadata.model_name, metadata.layers_extracted, metadata.hidden_dim) == ("m", [3], 64)
    assert metadata.total_samples == 2
    assert [(entry.file, entry.n_samples) for entry in metadata.batches] == [
        ("layer_3_batch_000001.pkl", 1),
        ("layer_3_batch_000002.pkl", 1),
    ]
    first = read_pickle(tmp_path / "activations/layer_3_batch_000001.pkl").activations[0]
    _, activations = jax.jit(lambda ids: model.apply(params, ids, return_activations=True))(names["generated_ids"])
    np.testing.assert_allclose(first.activation, activations["layer_3"][0, -1], rtol=1e-5)
    assert (first.task_id, first.sample_idx) == ("t", 7)


def test_what_the_extractor_cannot_store_is_refused(tmp_path: Path) -> None:
    extractor = ActivationExtractor(ActivationExtractionConfig(activations_dir=str(tmp_path)))
    extractor.extract_layer_activation(7, np.zeros((2, 3, 4)), "t", 0)  # not a layer to extract
    with pytest.raises(JobError, match=r"of layer 6 has shape \[2, 3, 4\]; give \[hidden_dim\] or .*\[:, -1, :\]"):
        extractor.extract_layer_activation(6, np.zeros((2, 3, 4)), "t", 0)
    extractor.extract_layer_activation(6, np.zeros(4), "t", 0)
    with pytest.raises(JobError, match=r"of layer 12 has shape \[1, 5\]"):
        extractor.extract_layer_activation(12, np.zeros((1, 5)), "t", 0)


@pytest.mark.parametrize(
    ("layers", "change", "reason"),
    [
        ([9], None, "layer 9 of a 4-layer model: use 0..3"),
        ([1], "tokenizer.json", "has no tokenizer file"),
        ([1], "model.safetensors", "model"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused_in_one_line(
    tmp_path: Path, layers: list[int], change: str | None, reason: str
) -> None:
    model = write_small_model(tmp_path / "model")
    if change is not None:
        (model / change).unlink()
    with pytest.raises(JobError, match=reason) as refused:
        load_model(str(model), layers_to_extract=layers)
    assert "\n" not in str(refused.value)
