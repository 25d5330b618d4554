"""Sound folders that are spoilt, and their content: runs of every kind, finished or killed, SAEs, pickles, shards."""

import contextlib
import gzip
import io
import json
import logging
import pickle
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from pod_job.__main__ import main as job_main
from pod_job.checking.verify import store, verify
from pod_job.checkpoints.random_model import byte_tokenizer
from pod_job.config.load import load, to_json
from pod_job.config.schema import ConfigValues
from pod_job.finishing.compact import compact
from pod_job.finishing.merge import merge
from pod_job.formats.records import encode
from pod_job.interop.pickle_export import export_pickles
from pod_job.interop.pickle_import import import_pickles
from pod_job.interop.pickle_reader import read_pickle
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.accepted import write_accepted
from pod_job.run_folder.commit import Batch, commit_batch
from pod_job.run_folder.completions import Completion, store_completions
from pod_job.run_folder.identity import claim, read_run
from pod_job.run_folder.metadata import read_any
from pod_job.run_folder.parity import ParityRecord, TapErrors
from pod_job.run_folder.pods import PodRecord
from pod_job.run_folder.status import HostStatus, Phase, write_status
from pod_job.run_folder.timeline import COUNTERS, Timeline, write_timeline
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder
from tools.random_run import RunShape, identity, make_batch
from tools.tiny_model import write_tiny_model

OLD_RUNS = Path(__file__).parent.parent.parent / "tests/data/old_runs"
SHAPE = RunShape(batches=3, rows=20, samples=4, width=16, taps=("layer_0", "layer_1"), distinct=True)
ATTEMPT = "20261126T090000Z-0a1b2c"
PICKLES, SHARDS = "pickles", "shards"
HALFWAY, HALF_IMPORTED = "halfway", "half_imported"
"""A job and an import that were killed: some batches are committed, one has files and no record, one has none."""
EXTRACTED, TRAINED, TRAINING = "extracted", "trained", "training"
"""A finished job, SAEs as a training on it leaves them, and such a training that was killed."""
MODEL = "model"
"""Folder of the model and the tasks of the job."""
APART = (PICKLES, SHARDS, HALFWAY, HALF_IMPORTED, TRAINED, TRAINING, MODEL)
"""Folders that are no finished runs of activations."""
KILLED_IN = 3
"""Batch in which a killed job had begun to store files."""

Content = object
"""Everything that a reader of a folder gets from it, as values that can be compared."""


@dataclass(frozen=True)
class Corpus:
    """Sound folders by name, below `root`: runs, and pickles."""

    root: Path

    @cached_property
    def runs(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.name not in APART)

    @cached_property
    def content(self) -> dict[str, Content]:
        """Content of each run."""
        return {name: run_content(self.root / name) for name in self.runs}

    def folder(self, name: str) -> Path:
        """Returns the sound folder; that of the killed training takes seconds, and is made when it is first wanted."""
        if name == TRAINING and not (self.root / name).exists():
            run_to_its_end(training_words(self.root / EXTRACTED, self.root / TRAINING))
            kill_training(self.root / TRAINING)
        return self.root / name


def make_corpus(root: Path) -> Corpus:
    """Writes the folders: those of `tests/data/old_runs` are of 0.1.0, the others of this version.

    `other` has the shape of `full` and other rows, as the run of another model.
    """
    for run in sorted(OLD_RUNS.iterdir()):
        shutil.copytree(run, root / run.name)
    write_full_run(open_folder(root / "full"))
    shutil.copytree(root / "full", root / "joined")
    compact(open_folder(root / "joined"))
    write_run(open_folder(root / "other"), first=SHAPE.batches + 1, model="another")
    export_pickles(root / "full", root / PICKLES)
    write_shards(root / SHARDS)
    import_pickles(root / PICKLES, root / HALF_IMPORTED)
    kill(root / HALF_IMPORTED)
    write_tiny_model(root / MODEL, layers=2)
    tasks = [json.dumps({"text": f"task {number} " + "x" * number}) for number in range(8)]
    (root / MODEL / "tasks.jsonl").write_text("\n".join(tasks))
    run_to_its_end(job_words(root / MODEL, root / EXTRACTED))
    shutil.copytree(root / EXTRACTED, root / HALFWAY)
    kill(root / HALFWAY)
    from tools.corruption.trained_run import write_trained  # jax, whose platform is not set before

    write_trained(open_folder(root / EXTRACTED), open_folder(root / TRAINED))
    return Corpus(root)


def job_words(model: Path | str, run: Path | str) -> list[str]:
    """Returns the command line of the job that is killed and started again: four batches of two samples."""
    extract = ["extract.layers=[0,1]", "extract.positions=all", "extract.seq_len=32", "extract.save_every_n_samples=2"]
    places = [f"model.path={model}", f"tasks.path={model}/tasks.jsonl", f"storage.run_dir={run}"]
    return [*places, *extract, "model.dtype=float32", "parity.samples=0"]


def training_words(source: Path | str, run: Path | str) -> list[str]:
    """Returns the command line of a training of six steps, with a checkpoint after each two."""
    steps = ["train.steps=6", "train.warmup_steps=1", "train.checkpoint_steps=2", "train.log_steps=1", "train.epochs=9"]
    rows = ["train.batch_rows=16", "train.buffer_rows=64", "train.statistics_rows=32", "train.dtype=float32"]
    places = ["mode=train", "train.source=run", f"train.run={source}", f"storage.run_dir={run}"]
    return [*places, "train.saes=[{tap:layer_0,latents:32,k:4}]", *steps, *rows]


def run_to_its_end(words: Sequence[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as log:
        if run_job(words):
            raise RuntimeError(log.getvalue())


def run_job(words: Sequence[str]) -> int:
    """Runs the job in this process, its log on stdout; returns its exit status."""
    logger = logging.getLogger()
    before, level = logger.handlers, logger.level
    logger.handlers = []  # for the stdout of this moment
    try:
        return job_main([*words])
    finally:
        logger.handlers, _ = before, logger.setLevel(level)


def kill(run: Path) -> None:
    """Removes from a finished run what a job that died while it stored batch KILLED_IN would not have written."""
    folder = open_folder(run)
    folder.remove(layout.METADATA)
    last = last_tap(run)
    for path in sorted(run.rglob("*batch_*")):
        number = int(path.stem.rpartition("_")[2])
        if number > KILLED_IN or (
            number == KILLED_IN and (path.parent.name == "commits" or path.name.startswith(last))
        ):
            path.unlink()


def kill_training(run: Path) -> None:
    """Removes from a finished training what one that died before its last checkpoint would not have written."""
    shutil.rmtree(run / layout.SAES)
    last = max((run / layout.CHECKPOINTS).iterdir())
    shutil.rmtree(last)


def last_tap(run: Path) -> str:
    """Returns the name of the tap that is stored last."""
    return read_run(open_folder(run)).identity.taps[-1]


def write_shards(folder: Path) -> None:
    """Writes two shards of two layers, one with gzip, as another program does, and their metadata.json."""
    folder.mkdir(parents=True)
    rng, entries = np.random.default_rng(0), []
    for shard, name in enumerate(("shard_0001.pkl.gz", "shard_0002.pkl"), 1):
        samples = {
            layer: [
                {"sample_idx": 3 * shard + at, "activation": rng.standard_normal((4, 8)).astype(np.float32)}
                for at in range(3)
            ]
            for layer in (5, 6)
        }
        data = pickle.dumps(samples)
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        entries.append({"filename": name, "layers": [5, 6], "num_samples": 3})
    (folder / "metadata.json").write_text(json.dumps({"shards": entries}))


def write_run(folder: Folder, first: int = 1, model: str = "random") -> None:
    """Writes a finished run, with the rows that are those of the batches from `first` on."""
    what = identity(SHAPE)
    words = ["experiment=demo", f"storage.run_dir={folder.url}"]
    claim(folder, msgspec.structs.replace(what, model=msgspec.structs.replace(what.model, name=model)), recorded(words))
    write_accepted(folder, [("model.weights", "a", "b")])
    for number in range(SHAPE.batches):
        made = make_batch(SHAPE, first + number)
        commit_batch(folder, Batch(number + 1, made.n_samples, made.rows, made.taps), host=number % 2)
    merge(folder)


def recorded(words: Sequence[str]) -> ConfigValues:
    """Returns the configuration of a start with these overrides, as run.json has it."""
    return to_json(load(words))


def write_full_run(folder: Folder) -> None:
    """Writes a finished run with a file of every kind that a job, its hosts, its launcher and its readers leave."""
    folder.create(layout.TOKENIZER, [byte_tokenizer().to_str().encode()])
    error = {tap: TapErrors(0.001, 0.002) for tap in SHAPE.taps}
    parity = ParityRecord(ATTEMPT, "torch", "1x1", "replicated", "1 cpu", 2, 30, 0.01, True, error, "2026-11-26")
    folder.create(layout.parity_file(ATTEMPT), [encode(parity)])
    for host in (0, 1):
        write_status(folder, HostStatus(host=host, attempt=ATTEMPT, phase=Phase.done, batches=2, tokens=40, seconds=9))
        timeline = Timeline(host=host, attempt=ATTEMPT, device="cpu", devices=1)
        timeline.phases.update({"checking": 1e9, "extracting": 1e9 + 10.0, "done": 1e9 + 70.0})
        timeline.points += [[1e9 + 10.0 + 30 * at, *[20.0 * at] * len(COUNTERS)] for at in range(3)]
        write_timeline(folder, timeline)
        folder.replace(
            layout.log_file(host), b"2026-11-26 09:00:00,000 INFO begun\n2026-11-26 09:01:00,000 INFO done\n"
        )
    pod = PodRecord("sae", "us-west4-a", "v5litepod-64", "spot", 1e9)
    for moment, ended in (("created", None), ("ended", 1e9 + 100.0)):
        folder.create(layout.pod_file(pod.key, moment), [encode(msgspec.structs.replace(pod, ended=ended))])
    completions = [Completion(f"task_{sample:08d}", sample, 5, [1, 2], "x", "length") for sample in range(4)]
    for number in range(1, SHAPE.batches + 1):
        store_completions(folder, number, completions)
    write_run(folder)
    store(verify(folder.url))


def run_content(run: Path) -> Content:
    """Returns rows and vectors of every tap, as a trainer reads them. JobError where the run is damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an unfinished run says so
        datasets = [ActivationDataset(run, tap) for tap in read_any(open_folder(run)).taps]
    columns = datasets[0].rows(slice(None))
    vectors = {dataset.tap: dataset[:].tobytes() for dataset in datasets}
    return {name: column.tolist() for name, column in columns.items()}, vectors


def pickle_content(folder: Path) -> Content:
    """Returns the activations of every pickle, by the name of its file, and what metadata.json lists."""
    activations = {
        path.name: [
            (item.task_id, item.sample_idx, item.activation.tobytes()) for item in read_pickle(path).activations
        ]
        for path in sorted(folder.glob("*.pkl"))
    }
    return activations, json.loads((folder / "metadata.json").read_text())["batches"]


def sae_content(run: Path) -> Content:
    """Returns shape and parameters of each SAE."""
    from pod_job.training.layouts.read import read_saes  # jax, whose platform is not set before

    return {
        name: (sae.shape, {key: values.tobytes() for key, values in sae.parameters.items()})
        for name, sae in read_saes(run).items()
    }


def file_content(folder: Path) -> Content:
    """Returns the bytes of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
