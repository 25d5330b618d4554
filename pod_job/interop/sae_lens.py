"""Writes one tap of a run as SAELens' cached activations: `pod-job export-sae-lens RUN_DIR OUT --layer 12`.

SAELens reads a folder of Hugging Face `datasets` whose samples are [context_size, D] float32 under the name of a
TransformerLens hook, with `token_ids` beside them (`sae_lens.CacheActivationsRunner` writes it). `datasets` has no
bfloat16, so the copy is twice as large; to train from the run itself, give SAELens' trainer `reading.feed.endless`.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pod_job.errors import JobError
from pod_job.formats.records import encode
from pod_job.models import hook_names
from pod_job.models.taps import available
from pod_job.reading.dataset import ActivationDataset
from pod_job.storage.new_directory import check_new, new_directory

PART_BYTES = 256 << 20
"""Vectors in memory, and in one file."""


class DatasetState(msgspec.Struct, frozen=True, rename=lambda name: f"_{name}"):
    """state.json, which datasets.load_from_disk reads; the fingerprint names the content for its caches."""

    data_files: list[dict[str, str]]
    fingerprint: str
    format_columns: None = None
    format_kwargs: dict[str, str] = msgspec.field(default_factory=dict)
    format_type: None = None
    output_all_columns: bool = False
    split: None = None


def export_sae_lens(
    run_dir: str | Path,
    out_dir: str | Path,
    layer: int | str,
    *,
    context_size: int = 128,
    hook_name: str | None = None,
    exclude: Sequence[str] = (),
) -> int:
    """Writes `out_dir`: rows in the run's order, `context_size` to a sample, without the last that do not fill one.

    Shuffle the run first where SAELens' small mixing buffer is not enough (`pod_job.shuffle`).

    Args:
        hook_name: by default TransformerLens' name of the tap.
        exclude: flags of rows to leave out, as for `ActivationDataset`.
    Returns:
        the number of rows written.
    Raises:
        JobError: `datasets` is not installed, the folder is not empty, there are too few rows, or no name for the tap.
    """
    datasets = _datasets()
    dataset = ActivationDataset(run_dir, layer, exclude=exclude)
    hook = hook_name or hook_of(dataset.tap, dataset.metadata.provenance.model.layers)
    out = Path(out_dir).absolute()
    check_new(out)
    samples, width = len(dataset) // context_size, dataset.shape[1]
    if not samples:
        raise JobError(f"context_size={context_size}: more than the {len(dataset)} rows of {dataset!r}; use less")
    tokens = datasets.Sequence(datasets.Value("int32"), length=context_size)
    features = datasets.Features({hook: datasets.Array2D((context_size, width), "float32"), "token_ids": tokens})
    with new_directory(out) as whole:
        files = [
            _save(datasets.Dataset.from_dict({hook: vectors, "token_ids": token_ids}, features=features), whole, number)
            for number, (vectors, token_ids) in enumerate(_parts(dataset, samples, context_size))
        ]
        (whole / "state.json").write_bytes(encode(_state(files, dataset, hook, context_size), indent=2))
    return samples * context_size


def hook_of(tap: str, layers: int | None) -> str:
    """Returns TransformerLens' name of a tap of a model with this many layers (None: unknown, of an import)."""
    place = None if layers is None else available(layers).get(tap)
    hook = place and hook_names.hook_of(place)
    if hook is None:
        raise JobError(f"layer={tap}: TransformerLens has no equal of it; name the column with hook_name=...")
    return hook


def _parts(dataset: ActivationDataset, samples: int, context_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields vectors [n, context_size, D] and tokens [n, context_size], a few hundred megabytes at a time."""
    width = dataset.shape[1]
    step = max(1, PART_BYTES // (4 * context_size * width))
    for start in range(0, samples, step):
        rows = slice(start * context_size, min(start + step, samples) * context_size)
        vectors = dataset[rows].astype(np.float32).reshape(-1, context_size, width)
        yield vectors, dataset.rows(rows)["token_id"].reshape(-1, context_size)


def _save(piece: Any, out: Path, number: int) -> str:
    """Writes one part and returns its file's name; save_to_disk makes a folder of its own, which is removed."""
    folder, name = out / f"part_{number:05d}", f"data-{number:05d}.arrow"
    piece.save_to_disk(folder, num_shards=1)
    (folder / "data-00000-of-00001.arrow").rename(out / name)
    (folder / "dataset_info.json").replace(out / "dataset_info.json")
    (folder / "state.json").unlink()
    folder.rmdir()
    return name


def _state(files: Sequence[str], dataset: ActivationDataset, hook: str, context_size: int) -> DatasetState:
    source = [msgspec.to_builtins(dataset.metadata.provenance), dataset.tap, len(dataset), hook, context_size]
    fingerprint = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]
    return DatasetState([{"filename": name} for name in files], fingerprint)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise JobError(
            "SAELens' format needs the package datasets; pip install 'tpu-pod-activations[datasets]'"
        ) from None
    datasets.disable_progress_bars()
    return datasets
