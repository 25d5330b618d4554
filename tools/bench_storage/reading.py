"""Reading a million rows: shuffled epochs of ours beside a memory map, `datasets`, `safe_open`, and the disk."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pod_job.finishing.compact import compact
from pod_job.formats.safetensors import write_parts
from pod_job.reading.dataset import ActivationDataset
from pod_job.reading.row_reader import READS_IN_FLIGHT
from pod_job.run_folder import layout
from pod_job.storage.open import open_folder
from tools.bench_storage.measure import BATCH_ROWS, WIDTH, Cost, evict, files_of, in_turn, make_run, per_gb, timed

BATCH = 4096
READ_BYTES = 8 << 20
SMALL_ROWS, SMALL_BATCHES = 128, 500
"""Of the runs that are compacted: a prompt of 128 tokens is a batch."""
FEW = 8
"""Batches that the slow ways read; their time is scaled up to all rows."""


def reading(scratch: Path, rows: int, rounds: int) -> dict[str, Any]:
    """Seconds per GB, from memory and from disk, and the ratios that are asked for."""
    run = scratch / "reading"
    make_run(open_folder(run), rows)
    dataset = ActivationDataset(run, layer=12)
    others = other_formats(dataset, scratch)
    gigabytes = dataset.shape[0] * WIDTH * 2 / 1e9
    slow = len(dataset) / (FEW * BATCH)
    ours: dict[str, Callable[[], Any]] = {"ours": lambda: exhaust(dataset.batches(BATCH, seed=1))}
    warm = in_turn(ours | {"memory map": memory_map(scratch / "rows.bin", len(dataset))}, rounds)
    warm |= scaled(in_turn(others, rounds), slow)
    cold = in_turn(
        ours | {"disk": lambda: sequentially(run), "memory map": memory_map(scratch / "rows.bin", FEW * BATCH)},
        rounds,
        lambda: evict(run, scratch / "rows.bin"),
    )
    cold["memory map"] = scaled({"": cold["memory map"]}, slow)[""]
    cold |= scaled(in_turn(others, 1, lambda: evict(scratch / "rows.safetensors", scratch / "arrow")), slow)
    return {
        "rows": len(dataset),
        "gigabytes": round(gigabytes, 3),
        "warm_seconds_per_gb": per_gb(warm, gigabytes),
        "cold_seconds_per_gb": per_gb(cold, gigabytes),
        "warm_times_memory_map": ratio(warm, "ours", "memory map"),
        "warm_times_faster_than": {name: ratio(warm, name, "ours") for name in others},
        "cold_share_of_disk": ratio(cold, "disk", "ours"),
        "cold_times_faster_than": {name: ratio(cold, name, "ours") for name in others},
    }


def reading_bucket(scratch: Path, bucket: str, rows: int, rounds: int) -> dict[str, Any]:
    """A shuffled epoch from a bucket beside its objects read whole, as many at a time."""
    folder = open_folder(f"{bucket}/reading")
    make_run(folder, rows)
    dataset = ActivationDataset(folder.url, layer=12)
    names = [layout.activations_file("layer_12", number + 1) for number in range(len(dataset) // BATCH_ROWS)]
    size = BATCH_ROWS * WIDTH * 2
    buffers = [np.empty(size, np.uint8) for _ in names]

    def whole_objects() -> None:
        with ThreadPoolExecutor(READS_IN_FLIGHT) as pool:
            list(pool.map(lambda name, out: folder.read_into(name, 0, out.data), names, buffers))

    costs = in_turn({"ours": lambda: exhaust(dataset.batches(BATCH)), "whole objects": whole_objects}, rounds)
    gigabytes = len(names) * size / 1e9
    return {"seconds_per_gb": per_gb(costs, gigabytes), "share_of_whole_objects": ratio(costs, "whole objects", "ours")}


def reading_compacted(place: str, rounds: int) -> dict[str, Any]:
    """A shuffled epoch over many small batches beside the same run compacted, and what compacting took."""
    runs = {name: open_folder(f"{place}/{name}") for name in ("loose", "compacted")}
    for run in runs.values():
        make_run(run, SMALL_ROWS * SMALL_BATCHES, batch_rows=SMALL_ROWS)
    took = timed(lambda: compact(runs["compacted"]))
    data = {name: ActivationDataset(run.url, 12) for name, run in runs.items()}
    ways = {name: lambda each=each: exhaust(each.batches(BATCH)) for name, each in data.items()}
    in_memory = [Path(run.url) for run in runs.values() if run.local_path(layout.RUN)]
    costs = in_turn(ways, rounds, lambda: evict(*in_memory))
    gigabytes = len(data["loose"]) * WIDTH * 2 / 1e9
    return {
        "files": {name: len({file["file"] for file in each.metadata["batches"]}) for name, each in data.items()},
        "compacting_seconds_per_gb": per_gb({"": took}, gigabytes)[""],
        "cold_seconds_per_gb": per_gb(costs, gigabytes),
        "times_faster": ratio(costs, "loose", "compacted"),
    }


def exhaust(batches: Any) -> None:
    for _ in batches:
        pass


def ratio(costs: dict[str, Cost], one: str, other: str) -> float:
    return round(costs[one].wall_s / costs[other].wall_s, 3)


def scaled(costs: dict[str, Cost], factor: float) -> dict[str, Cost]:
    return {name: Cost(cost.cpu_s * factor, cost.wall_s * factor) for name, cost in costs.items()}


def sequentially(run: Path) -> None:
    """Every file from beginning to end in large reads."""
    buffer = np.empty(READ_BYTES, np.uint8)
    for path in files_of(run / "activations"):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer.data):
                pass


def memory_map(path: Path, rows: int) -> Callable[[], Any]:
    """Gathers so many rows in random order from a NumPy memory map."""

    def gather() -> None:
        mapped = np.memmap(path, np.uint16, "r").reshape(-1, WIDTH)
        order = np.random.default_rng(1).permutation(len(mapped))
        for start in range(0, rows, BATCH):
            mapped[order[start : start + BATCH]]

    return gather


def other_formats(dataset: ActivationDataset, scratch: Path) -> dict[str, Callable[[], Any]]:
    """The same rows as one plain file, one safetensors file and, where installed, an Arrow data set; ways to read FEW
    batches of random rows from the latter two.
    """
    from safetensors import safe_open

    with open(scratch / "rows.bin", "wb") as file:
        for start in range(0, len(dataset), BATCH_ROWS):
            file.write(dataset[start : start + BATCH_ROWS].view(np.uint16).data)
    whole = np.memmap(scratch / "rows.bin", np.float16, "r").reshape(-1, WIDTH)  # safetensors' NumPy has no bfloat16
    with open(scratch / "rows.safetensors", "wb") as file:
        for part in write_parts({"activations": whole}):
            file.write(part)
    order = np.random.default_rng(2).permutation(len(dataset))[: FEW * BATCH].reshape(FEW, BATCH)

    def slices() -> None:
        with safe_open(scratch / "rows.safetensors", "np") as file:
            rows = file.get_slice("activations")
            for batch in order:
                np.concatenate([rows[int(row) : int(row) + 1] for row in batch])

    ways: dict[str, Callable[[], Any]] = {"safe_open": slices}
    if arrow := arrow_dataset(whole, scratch / "arrow"):
        ways["datasets"] = lambda: [arrow[batch]["x"] for batch in order]
    return ways


def arrow_dataset(whole: np.ndarray, path: Path) -> Any:
    """The rows as a `datasets.Dataset` on disk that gives NumPy; None where the library is not installed."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import datasets
    except ImportError:
        return None
    import pyarrow as pa
    from datasets.arrow_writer import ArrowWriter

    path.mkdir()
    features = datasets.Features({"x": datasets.Sequence(datasets.Value("uint16"), length=WIDTH)})
    with ArrowWriter(path=str(path / "rows.arrow"), features=features) as writer:
        for start in range(0, len(whole), BATCH_ROWS):
            values = pa.array(whole[start : start + BATCH_ROWS].view(np.uint16).reshape(-1))
            writer.write_table(pa.table({"x": pa.FixedSizeListArray.from_arrays(values, WIDTH)}))
        writer.finalize()
    return datasets.Dataset.from_file(str(path / "rows.arrow")).with_format("numpy")
