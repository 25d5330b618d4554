"""A whole run in this process: `extract(texts, "Qwen/Qwen2.5-0.5B", layers=[12])` returns its dataset."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from pod_job.checkpoints.locate import find_model
from pod_job.config.load import load, quoted
from pod_job.errors import JobError
from pod_job.host.tpu_slice import devices_here
from pod_job.notebook.hooked_model import LoadedModel
from pod_job.notebook.job_progress import progress_of
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder.metadata import read_any
from pod_job.storage.open import open_folder

LONGEST_ROW = 1024
ROW_MULTIPLE = 64
TEXTS = "texts.jsonl"


class ExtractOptions(TypedDict, total=False):
    """Keywords of `extract`, with their defaults.

    `taps`: further taps by name or wildcard (none). `positions`: rows that are stored, as `extract.positions` (`all`).
    `dtype`: of weights and vectors (`float32`). `overrides`: any other field, as `["extract.too_long=head"]`; they win.
    """

    taps: Sequence[str]
    positions: str
    dtype: str
    overrides: Sequence[str]


def extract(
    texts: str | Iterable[object],
    model: str | Path | LoadedModel,
    layers: Sequence[int] | None = None,
    run_dir: str | Path | None = None,
    **options: Unpack[ExtractOptions],
) -> ActivationDataset:
    """Runs the model over the texts on all devices of this process; returns the vectors of the first tap.

        dataset = extract(["The capital of France is"], "Qwen/Qwen2.5-0.5B", layers=[12])
        dataset[:]  # [rows, hidden], with dataset.rows(slice(None)) saying which token each is of

    The result is that of `pod-job run`: checked against Hugging Face's model, resumable, readable by every command.
    Texts longer than a row of 1,024 tokens become several windows. Of several layers, the others are read by
    `ActivationDataset(dataset.folder.url, layer=18)`.

    Args:
        texts: strings, one document each.
        model: a Hugging Face folder, a name on the hub, or what `load_model` returned, whose files are read again.
        layers: layers whose output is stored; None with no `taps` means all.
        run_dir: folder of the run, local or gs://, which a second call continues; None: a temporary one, which is
            removed with the dataset.
    Raises:
        JobError: no texts, or what `pod-job plan` would refuse.
    """
    documents: list[str] = []
    for number, text in enumerate([texts] if isinstance(texts, str) else texts):
        if not isinstance(text, str):
            raise JobError(f"texts[{number}] is a {type(text).__name__}; give strings")
        documents.append(text)
    if not documents:
        raise JobError("texts is empty; give at least one string")
    path = str(model.path if isinstance(model, LoadedModel) else model)
    with tempfile.TemporaryDirectory() as inputs:
        tasks = Path(inputs) / TEXTS
        tasks.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        chosen = str(run_dir) if run_dir is not None else tempfile.mkdtemp(prefix="activations-")
        try:
            fields = overrides_for(path, tasks, layers, options)
            row = f"extract.seq_len={row_length(path, documents)}"
            run_here([row, *fields, f"storage.run_dir={quoted(chosen)}"])
            dataset = ActivationDataset(chosen, layers[0] if layers else read_any(open_folder(chosen)).taps[0])
        except BaseException:
            if run_dir is None:
                shutil.rmtree(chosen, ignore_errors=True)
            raise
    if run_dir is None:
        weakref.finalize(dataset, shutil.rmtree, chosen, ignore_errors=True)
    return dataset


def overrides_for(path: str, tasks: Path, layers: Sequence[int] | None, options: ExtractOptions) -> list[str]:
    """Returns the overrides of a run over the documents in `tasks`, without row length and `storage.run_dir`."""
    dtype = options.get("dtype", "float32")
    values = {
        "model.path": quoted(path),
        "model.dtype": dtype,
        "tasks.path": quoted(str(tasks)),
        "tasks.format": "jsonl",
        "extract.layers": "null" if layers is None else list(layers),
        "extract.taps": json.dumps(list(options.get("taps", ()))),
        "extract.positions": options.get("positions", "all"),
        "extract.dtype": dtype,
        "extract.too_long": "split",
    }
    return [*(f"{key}={value}" for key, value in values.items()), *options.get("overrides", ())]


def row_length(path: str, documents: Sequence[str]) -> int:
    """Returns the tokens of a row: as many as the longest text has, rounded up, so that few texts are not padded."""
    tokenizer = load_tokenizer(find_model(path).directory)
    longest = max(len(tokenizer(text, verbose=False)["input_ids"]) for text in documents)
    return min(LONGEST_ROW, -(-max(longest, 1) // ROW_MULTIPLE) * ROW_MULTIPLE)


def run_here(overrides: Sequence[str]) -> None:
    """Runs the job in this process on all of its devices; shows on stderr how far it is."""
    config = load([*overrides, *devices_here()])
    from pod_job.job import run

    with progress_of(config):
        run(config)
