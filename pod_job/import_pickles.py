"""The pickle files of the extraction document as a run: the way back from `python -m pod_job.export`.

The metadata.json beside the files says which there are. They do not tell positions and tokens, which become -1; of
the times in a batch the first is kept, and float32 unless another dtype is asked for. Nothing that a pickle names is
ever called.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pod_job.command_line import exit_status, make_parser
from pod_job.errors import JobError
from pod_job.merge import merge
from pod_job.reading.pickle_reader import read_pickle
from pod_job.run_folder import rows as rows_table
from pod_job.run_folder import rundir
from pod_job.run_folder.commit import Batch, commit_batch, wrong_fields
from pod_job.run_folder.rundir import committed
from pod_job.run_folder.tensorfile import DTYPE_OF
from pod_job.storage import checksum, open_folder

FLOATS = ("float32", "bfloat16", "float16")
UNKNOWN = -1
"""Position and token of an imported row."""
_FIELDS = {"model_name": str, "layers_extracted": list, "hidden_dim": int, "total_samples": int, "batches": list}
_ENTRY = {"batch_id": int, "layer": str, "file": str, "n_samples": int}


def import_pickles(pickles: str | Path, out_dir: str | Path, dtype: str = "float32") -> dict[str, Any]:
    """Write the run and return its metadata; one batch is in memory at a time, and what is there already is left alone.

    Raises JobError for a metadata.json or a pickle that is missing or not as documented, layers of a batch with other
    samples than its first, batches of unequal size, or an `out_dir` that belongs to another run.
    """
    if dtype not in FLOATS:
        raise JobError(f"dtype={dtype}: not one to import to; use {', '.join(FLOATS)}")
    folder, out = Path(pickles), open_folder(out_dir)
    described = _read_metadata(folder / "metadata.json")
    batches = _by_batch(described, folder / "metadata.json")
    rundir.claim(out, _identity(described, batches, dtype))
    done = committed(out)
    for number, entries in batches.items():
        if number not in done:
            batch = _batch(folder, number, entries, described["hidden_dim"], DTYPE_OF[dtype])
            commit_batch(out, batch, host=0)
    return merge(out)


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_bytes())
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror}); it must lie beside the pickle files") from error
    except ValueError as error:
        raise JobError(f"{path}: not JSON ({error})") from error
    if wrong := wrong_fields(described, _FIELDS):
        raise JobError(f"{path}: {wrong} missing or of another type; it must be as the document says")
    for number, entry in enumerate(described["batches"]):
        if wrong := wrong_fields(entry, _ENTRY):
            raise JobError(f"{path}: {wrong} of batches[{number}] missing or of another type")
        if "/" in entry["file"] or entry["file"] in ("", "..", "."):
            raise JobError(f"{path}: file={entry['file']!r} of batches[{number}] is not the name of a file beside it")
    return described


def _by_batch(described: dict[str, Any], path: Path) -> dict[int, list[dict[str, Any]]]:
    """The entries of each batch, the same taps in the same order in all. Batches are of equal size, but the last."""
    batches: dict[int, list[dict[str, Any]]] = {}
    for entry in described["batches"]:
        batches.setdefault(entry["batch_id"], []).append(entry)
    numbers = sorted(batches)
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise JobError(f"{path}: batch_id must run from 1 without gaps, found {numbers[:5]}")
    taps, size = [entry["layer"] for entry in batches[1]], batches[1][0]["n_samples"]
    for number in numbers:
        if [entry["layer"] for entry in batches[number]] != taps:
            raise JobError(f"{path}: batch {number} has other layers than batch 1, which has {', '.join(taps)}")
        counts = {entry["n_samples"] for entry in batches[number]}
        if len(counts) > 1 or not (counts == {size} or (number == numbers[-1] and 1 <= min(counts) < size)):
            raise JobError(f"{path}: n_samples of batch {number} must be {size}, as in batch 1 (less only in the last)")
    return {number: batches[number] for number in numbers}


def _identity(described: dict[str, Any], batches: dict[int, list[dict[str, Any]]], dtype: str) -> dict[str, Any]:
    """What the imported activations depend on: all that is known of it."""
    listed = checksum([json.dumps(described["batches"], sort_keys=True).encode()]).crc32c
    samples = [entries[0]["n_samples"] for entries in batches.values()]
    return {
        "model": {"name": described["model_name"], "hidden_dim": described["hidden_dim"]},
        "tasks": {"format": "pickles", "fingerprint": listed, "samples": sum(samples)},
        "taps": [entry["layer"] for entry in batches[1]],
        "positions": "imported",
        "dtype": dtype,
        "save_every_n_samples": samples[0],
    }


def _batch(folder: Path, number: int, entries: list[dict[str, Any]], hidden_dim: int, dtype: np.dtype) -> Batch:
    columns: dict[str, list] = {}
    timestamp, taps = "", {}
    for entry in entries:
        items = _items(folder / entry["file"], entry["layer"])
        found = {name: [item[name] for item in items] for name in ("task_id", "sample_idx")}
        if taps and found != columns:
            raise JobError(f"{folder / entry['file']}: has other samples than {entries[0]['file']}, or another order")
        columns, timestamp = found, items[0]["timestamp"] if items else ""
        # A batch without rows does not tell how wide they would be.
        vectors = np.stack([item["activation"] for item in items]) if items else np.zeros((0, hidden_dim))
        taps[entry["layer"]] = vectors.astype(dtype)
    unknown = dict.fromkeys(("position", "token_id"), [UNKNOWN] * len(columns["task_id"]))
    return Batch(number, entries[0]["n_samples"], rows_table.from_columns(columns | unknown, timestamp), taps)


def _items(path: Path, tap: str) -> list[dict[str, Any]]:
    content = read_pickle(path)
    if content["layer"] != rundir.layer_number(tap):
        raise JobError(f"{path}: is of layer {content['layer']}, metadata.json says {tap}")
    items = content["activations"]
    if len({item["activation"].shape for item in items}) > 1:
        raise JobError(f"{path}: its activations differ in length")
    return items


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = make_parser(
        "import_pickles", __doc__ or "", ["activations runs/imported", "activations gs://my-bucket/run"]
    )
    parser.add_argument("pickles", metavar="PICKLES", help="the folder with metadata.json and the pickle files")
    parser.add_argument("out", metavar="OUT", help="the new run, a local folder or gs://bucket/prefix")
    parser.add_argument("--dtype", default="float32", help=f"of the stored vectors: {', '.join(FLOATS)}")
    options = parser.parse_args(argv)

    def command() -> int:
        described = import_pickles(options.pickles, options.out, options.dtype)
        print(f"{described['rows']:,} rows in {described['total_batches']} batches")
        return 0

    return exit_status(command)


if __name__ == "__main__":
    sys.exit(main())
