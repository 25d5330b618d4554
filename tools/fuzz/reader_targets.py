"""The readers that are fuzzed by themselves: sound inputs of each, and a function that reads one of them."""

import bz2
import gzip
import importlib.util
import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pod_job.checking.verify import read_report
from pod_job.config.tasks import OnBroken, TaskFormat, TasksConfig
from pod_job.errors import JobError
from pod_job.finishing.compact import compact
from pod_job.formats import norm_sketch, statistics
from pod_job.formats.quantized import EightBit, groups
from pod_job.formats.records import decode, encode
from pod_job.formats.rows_table import from_parquet, to_parquet
from pod_job.formats.safetensors import map_tensors
from pod_job.interop.pickle_import import import_pickles
from pod_job.interop.pickle_metadata import PickleEntry, read_pickle_metadata
from pod_job.interop.pickle_reader import read_pickle
from pod_job.interop.pickle_writer import PickleWriter, new_item
from pod_job.interop.shard_reader import read_shard, read_shard_metadata
from pod_job.prompts.samples import without_broken
from pod_job.prompts.sources import listing
from pod_job.prompts.tasks import read_tasks
from pod_job.run_folder import layout
from pod_job.run_folder.commit import read_record
from pod_job.run_folder.compaction import read_compaction
from pod_job.run_folder.completions import Completion, read_completions, store_completions
from pod_job.run_folder.entries import read_rows, read_vectors
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.metadata import read_any
from pod_job.run_folder.parity import ParityRecord, TapErrors, read_all_parity
from pod_job.run_folder.pods import PodRecord, read_pods
from pod_job.run_folder.start import StartRecord, read_start
from pod_job.run_folder.status import HostStatus, Phase, read_status, write_status
from pod_job.run_folder.tap_file import tap_parts, vectors_in
from pod_job.run_folder.timeline import Timeline, read_timelines, write_timeline
from pod_job.storage.open import open_folder
from tools.fuzz.model_targets import decoded, tokens_of, training_of, write_model, write_run_tokenizer, write_training
from tools.fuzz.mutate import mutate, mutate_behind_checksum
from tools.fuzz.sae_targets import mutate_member, saes_of, write_gemma, write_native, write_set, write_torch
from tools.random_run import RunShape, make_rows, make_run, make_vectors

SHAPE = RunShape(batches=2, rows=20, samples=4, width=16, taps=("layer_6", "layer_12"), distinct=True)
CHAT = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True)
class Target:
    """A reader: `make` writes sound inputs into a folder, `read` reads the one at a path; `glob` names the inputs.

    `checked`: the content has a checksum, so that what is read is the original. `damage`: how an input is damaged,
    where not by `mutate`.
    """

    name: str
    glob: str
    make: Callable[[Path], Any]
    read: Callable[[Path, Path], Any]
    checked: bool = False
    damage: Callable[[bytes, random.Random], bytes] | None = None

    def files(self, root: Path) -> list[Path]:
        return sorted(root.glob(self.glob))


def plain_run(root: Path) -> None:
    make_run(open_folder(root), SHAPE)


def compacted_run(root: Path) -> None:
    plain_run(root)
    compact(open_folder(root))


def eight_bits(rows: int) -> EightBit:
    values = (make_vectors(rows, 100).astype(np.float32) * 9).astype(np.int8)
    return EightBit(values, np.ones((rows, groups(100)), ml_dtypes.bfloat16))


def write_tap_files(root: Path) -> None:
    for name, vectors in (("wide", make_vectors(20, 16)), ("quantized", eight_bits(20))):
        (root / f"{name}.safetensors").write_bytes(b"".join(tap_parts(vectors, "layer_6", 1)))


def vectors_of(root: Path, path: Path) -> bytes:
    return np.asarray(vectors_in(path.read_bytes(), path.name), np.float32).tobytes()


def tensors_of(root: Path, path: Path) -> list[Any]:
    return [(name, array.shape, array.tobytes()) for name, array in map_tensors(path).items()]


def entries_of(root: Path, path: Path) -> list[Any]:
    """Returns the content of the run by the entries of its metadata.json, of unchanged files."""
    run = open_folder(root)
    described = read_any(run)
    vectors = [np.asarray(read_vectors(run, entry), np.float32).tobytes() for entry in described.batches]
    return [vectors, [read_rows(run, entry).token_id.tolist() for entry in described.rows_files]]


def records_of(root: Path, path: Path) -> list[Any]:
    """Returns the records with a checksum of their own."""
    run = open_folder(root)
    return [read_any(run), read_record(run, 1), read_record(run, 2), read_compaction(run)]


def write_records(root: Path) -> None:
    folder = open_folder(root)
    plain_run(root)
    folder.replace(layout.START, encode(StartRecord({"model": {"path": "a"}, "mesh": {"data": 2}})))
    errors = {"layer_6": TapErrors(0.1, float("inf"))}
    parity = ParityRecord("a", "hf", "1x1", "replicated", "cpu", 2, 3, 0.01, False, errors, "2026")
    folder.replace(layout.parity_file("a"), encode(parity))
    pod = PodRecord("n", "z", "v5e", "spot", 1.0, 2.0)
    folder.replace(layout.pod_file(pod.key, "ended"), encode(pod))
    status = HostStatus(host=0, attempt="a", phase=Phase.extracting, rows=3)
    write_status(folder, status)
    timeline = Timeline(host=0, attempt="a")
    timeline.enter(Phase.weights, 1.0)
    timeline.add_point(status, 2.0)
    write_timeline(folder, timeline)
    store_completions(folder, 1, [Completion("t", 0, 3, [1, 2], "x", "stop")])


def plain_records_of(root: Path, path: Path) -> list[Any]:
    """Returns the records without a checksum; those that a reader tolerates are left out by it."""
    run = open_folder(root)
    strict = [read_run(run), read_start(run), read_all_parity(run), read_pods(run), read_completions(run, 1)]
    return [*strict, read_status(run, 0, "a"), list(read_timelines(run)), read_report(run)]


def write_statistics(root: Path) -> None:
    record = statistics.to_record(statistics.compute(make_vectors(200, 16)))
    (root / "statistics.json").write_bytes(encode(record))


def statistics_of(root: Path, path: Path) -> Any:
    record = decode(path.read_bytes(), statistics.StatisticsRecord, path.name)
    try:
        tally = statistics.Tally(16)
        tally.add(statistics.from_record(record))
    except ValueError as error:  # the readers of records name the file
        raise JobError(f"{path.name}: {error}") from error
    return msgspec.to_builtins(tally.summary())


def write_norms(root: Path) -> None:
    keys = norm_sketch.keys_of(np.linspace(1, 100, 500).astype(np.float64))
    (root / "norms.txt").write_text(norm_sketch.to_text(keys))


def norms_of(root: Path, path: Path) -> list[int]:
    try:
        return norm_sketch.from_text(path.read_bytes().decode("latin1"), 500).tolist()
    except ValueError as error:
        raise JobError(f"{path.name}: {error}") from error


def write_pickles(root: Path) -> None:
    writer = PickleWriter(open_folder(root), 3)
    for layer in (6, 12):
        writer.add(f"layer_{layer}", [new_item(f"t{i}", i, np.arange(4.0) + i + layer) for i in range(5)])
    writer.finish("m", [6, 12], 4)


def pickle_of(root: Path, path: Path) -> list[Any]:
    items = read_pickle(path).activations
    return [(item.task_id, item.sample_idx, item.activation.tobytes(), item.timestamp) for item in items]


def imported(root: Path, path: Path) -> list[Any]:
    """Returns the vectors of the run that is made of the pickles, which have checksums in their metadata.json."""
    out = root / "run"
    try:
        import_pickles(root, out)
        return entries_of(out, path)[0]
    finally:
        shutil.rmtree(out, ignore_errors=True)


def listed_of(root: Path, path: Path) -> Any:
    if "shards" in path.name:
        (root / "metadata.json").write_bytes(path.read_bytes())
        return read_shard_metadata(root)
    return read_pickle_metadata(path)


def write_lists(root: Path) -> None:
    entry = msgspec.to_builtins(PickleEntry(1, "layer_6", "a.pkl", 3, "AAAAAA=="))
    described = {"model_name": "m", "layers_extracted": [6], "hidden_dim": 4, "total_samples": 3, "batches": [entry]}
    (root / "pickles.json").write_text(json.dumps(described))
    shard = {"filename": "shard_0001.pkl", "layers": [6], "samples_per_layer": {"6": 2}, "num_samples": 2}
    (root / "shards.json").write_text(json.dumps({"extraction_config": {"model_name": "m"}, "shards": [shard]}))
    (root / "shard_0001.pkl").write_bytes(b"")


def write_shards(root: Path) -> None:
    items = [{"sample_idx": i, "activation": np.ones((3, 4), np.float16) * i, "text": "x"} for i in range(3)]
    data = pickle.dumps({6: items, "layer_12": items}, protocol=4)
    (root / "shard_0001.pkl").write_bytes(data)
    (root / "shard_0002.pkl.gz").write_bytes(gzip.compress(data, mtime=0))


def shard_of(root: Path, path: Path) -> list[Any]:
    return [(tap, [item.activation.values.tobytes() for item in items]) for tap, items in read_shard(path).items()]


def mutate_inside(data: bytes, rng: random.Random) -> bytes:
    """Returns a damaged shard; of half of those with gzip the content is damaged."""
    if data[:2] != b"\x1f\x8b" or rng.random() < 0.5:
        return mutate(data, rng)
    return gzip.compress(mutate(gzip.decompress(data), rng), mtime=0)


def write_tokens(root: Path) -> None:
    from safetensors.numpy import save_file

    tokens = np.arange(24).reshape(6, 4)
    np.save(root / "tokens.npy", tokens)
    np.savez(root / "tokens.npz", tokens=tokens, lengths=np.array([4, 3, 2, 1, 4, 4]))
    save_file({"tokens": tokens, "attention_mask": np.ones_like(tokens)}, root / "tokens.safetensors")


def samples_of(format: TaskFormat) -> Callable[[Path, Path], Any]:
    def read(root: Path, path: Path) -> list[bytes]:
        return [sample.content() for sample in read_tasks(TasksConfig(format=format, path=str(path)), 2**31).samples]

    return read


def write_lines(root: Path) -> None:
    lines = [
        {"text": "some text", "task_id": "a", "sample_idx": 1},
        {"text": [1, 2, 3], "attention_mask": [1, 1, 0]},
        {"text": CHAT, "tools": "[]"},
    ]
    for number, line in enumerate(lines):
        (root / f"tasks_{number}.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps({**line, 'task_id': 'b'})}\n")


def write_texts(root: Path) -> None:
    """Writes a table of texts in every format of one, and compressed lines."""
    table = pa.table({"text": [f"text {number}" for number in range(40)], "task_id": list(map(str, range(40)))})
    pq.write_table(table, root / "texts.parquet", compression="zstd", row_group_size=16)
    pq.write_table(table, root / "plain.parquet", compression="none", use_dictionary=False, data_page_version="2.0")
    for name, codec in (("texts.arrow", None), ("small.arrow", "zstd"), ("file.feather", "lz4")):
        make = pa.ipc.new_file if name.startswith("file") else pa.ipc.new_stream
        with make(root / name, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
            writer.write_table(table, max_chunksize=16)
    pyarrow.csv.write_csv(table, root / "texts.csv")
    lines = "".join(f'{{"text": "text {number}"}}\n' for number in range(40)).encode()
    (root / "texts.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    (root / "texts.jsonl.zst").write_bytes(pa.compress(lines, codec="zstd", asbytes=True))
    (root / "texts.jsonl.bz2").write_bytes(bz2.compress(lines))


def texts_of(root: Path, path: Path) -> list[Any]:
    """Returns the samples of a file as a small source is read, and as a large one is, by an index."""
    found = []
    for small_bytes in (listing.SMALL_BYTES, -1):
        with patched(listing, "SMALL_BYTES", small_bytes):
            samples = read_tasks(TasksConfig(path=str(path), on_broken=OnBroken.skip), 2**31).samples
            found.append([sample.content() for sample in without_broken(samples.load(range(len(samples))))[0]])
    return found


@contextmanager
def patched(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def write_tables(root: Path) -> None:
    (root / "rows.parquet").write_bytes(to_parquet(make_rows(SHAPE, 1)))


def rows_of(root: Path, path: Path) -> list[Any]:
    rows = from_parquet(path.read_bytes(), path.name, SHAPE.rows)
    return [rows.task_id.tolist(), rows.position.tolist(), rows.token_id.tolist(), rows.special.tolist()]


VECTORS, RECORD_FILES = f"{layout.ACTIVATIONS}[lr]*", "[acr]*/[mbr]*.json"
ALL = [
    Target("safetensors", "*.safetensors", write_tap_files, tensors_of),
    Target("tap file, plain and quantized", "*.safetensors", write_tap_files, vectors_of),
    Target("rows table", "*.parquet", write_tables, rows_of),
    Target("entries of metadata.json", VECTORS, plain_run, entries_of, checked=True),
    Target("entries, compacted", VECTORS, compacted_run, entries_of, checked=True),
    Target("checksummed records", RECORD_FILES, compacted_run, records_of, checked=True),
    Target(
        "records behind their checksum",
        RECORD_FILES,
        compacted_run,
        records_of,
        False,
        mutate_behind_checksum,
    ),
    Target("other records", "[rlpsto]*/*[.]json*", write_records, plain_records_of),
    Target("run.json", "run.json", write_records, plain_records_of),
    Target("statistics", "statistics.json", write_statistics, statistics_of),
    Target("norm sketch", "norms.txt", write_norms, norms_of),
    Target("pickle", "*.pkl", write_pickles, pickle_of),
    Target("pickle import", "*.pkl", write_pickles, imported, checked=True),
    Target("metadata.json of pickles and shards", "*s.json", write_lists, listed_of),
    Target("shard", "shard_*", write_shards, shard_of, False, mutate_inside),
    Target("token arrays", "tokens.*", write_tokens, samples_of(TaskFormat.tokens)),
    Target("JSON lines", "*.jsonl", write_lines, samples_of(TaskFormat.jsonl)),
    Target("tables of texts, compressed lines", "*.*", write_texts, texts_of),
    Target("tokenizer of a run", "tokenizer/*.json", write_run_tokenizer, decoded),
    Target("tokenizer of a model", "tokenizer*.json", write_model, tokens_of),
    Target("records of a training", "trained/[ste]*/*.json", write_training, training_of),
    Target("SAE of SAELens", "*/*.*", write_native, saes_of),
    Target("SAE of Gemma Scope", "*/params.*", write_gemma, saes_of, damage=mutate_member),
    Target("transcoders of circuit-tracer", "*.*", write_set, saes_of),
]
if importlib.util.find_spec("torch"):
    ALL.append(Target("SAE of dictionary_learning", "*.*", write_torch, saes_of, damage=mutate_member))
TARGETS = {target.name: target for target in ALL}
