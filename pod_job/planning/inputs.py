"""Everything a run reads and everything that can be wrong with it, checked before a device or a weight is touched.

In: the configuration. Out: `Inputs`, or one JobError. No jax: the launcher calls it on a workstation, before any host
starts, and every host calls it again for itself.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pod_job.checkpoints.checkpoint import Checkpoint, check_checkpoint, fingerprint, model_name, read_checkpoint
from pod_job.checkpoints.locate import ModelFiles, find_model
from pod_job.config.generate import Mode
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.models.arch import Arch, read_arch_file
from pod_job.models.sharding import check_divides
from pod_job.models.taps import Tap, resolve
from pod_job.models.weight_table import Weight, weight_table
from pod_job.planning.batches import batch_count
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tasks import Tasks, read_tasks
from pod_job.prompts.tokens import check_template, end_tokens, load_tokenizer, tokenize, tokenizer_fingerprint
from pod_job.run_folder import layout
from pod_job.run_folder.identity import confirm
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder


@dataclass(frozen=True)
class Outline:
    """What is known of a run without its weights: the shapes that config.json gives, and the tasks."""

    arch: Arch
    taps: tuple[Tap, ...]
    table: dict[str, Weight]
    tasks: Tasks
    total_batches: int


@dataclass(frozen=True)
class Inputs:
    """What the job starts from; `identity` is what its activations depend on."""

    arch: Arch
    taps: tuple[Tap, ...]
    tasks: Tasks
    total_batches: int
    folder: Folder
    model_dir: Path
    checkpoint: Checkpoint
    table: dict[str, Weight]
    end_tokens: tuple[int, ...]
    identity: dict[str, Any]

    @property
    def widths(self) -> dict[str, int]:
        return {tap.name: tap.width(self.arch) for tap in self.taps}


def read_inputs(config: JobConfig) -> Inputs:
    """Reads config.json, checkpoint headers and tasks; the run folder must be writable, and empty or this run's.

    Raises:
        JobError: in one line, the first thing that is missing, malformed or does not fit together.
        NoWeights: where no weights are found but the rest is sound.
    """
    files = find_model(config.model.path, config.model.revision)
    found = outline_of(config, files.directory)
    checkpoint = read_checkpoint(files.weights)
    check_checkpoint(checkpoint, found.table)
    if found.tasks.chat:
        check_template(files.directory)
    folder = writable_run_folder(config)
    ends = end_tokens(files.directory)
    identity = run_identity(config, found, files, checkpoint)
    if config.mode is Mode.generate:
        identity["generate"] = {**asdict(config.generate), "end_tokens": ends}
    confirm(folder, identity)
    return Inputs(
        arch=found.arch,
        taps=found.taps,
        tasks=found.tasks,
        total_batches=found.total_batches,
        folder=folder,
        model_dir=files.directory,
        checkpoint=checkpoint,
        table=found.table,
        end_tokens=ends,
        identity=identity,
    )


def read_outline(config: JobConfig) -> Outline:
    """The same without weights, tokenizer and what only they can tell. JobError as `read_inputs`."""
    found = outline_of(config, find_model(config.model.path, config.model.revision).directory)
    writable_run_folder(config)
    return found


def outline_of(config: JobConfig, model_dir: Path) -> Outline:
    extract = config.extract
    arch = read_arch_file(model_dir / "config.json")
    taps = resolve(extract.layers, extract.taps, arch.layers)
    check_context(config, arch)
    table = weight_table(arch)
    check_divides(table, config.mesh, config.sharding)
    tasks = read_tasks(config.tasks, arch.vocab, token_counter(config, model_dir))
    return Outline(arch, taps, table, tasks, total_batches(len(tasks.samples), extract.save_every_n_samples))


def total_batches(samples: int, save_every_n_samples: int) -> int:
    """How many batches the run has. JobError where they are more than a run may have."""
    batches = batch_count(samples, save_every_n_samples)
    if batches > layout.MAX_BATCHES:
        raise JobError(
            f"extract.save_every_n_samples={save_every_n_samples} cuts {samples:,} samples into {batches:,} batches, a "
            f"run has at most {layout.MAX_BATCHES:,}; raise it to {-(-samples // layout.MAX_BATCHES)} or more"
        )
    return batches


def writable_run_folder(config: JobConfig) -> Folder:
    """The run folder; JobError where it, or the folder of compiled programs, cannot be written to."""
    folder = open_folder(config.storage.run_dir)
    folder.check_writable()
    if config.storage.compile_cache is not None:
        open_folder(config.storage.compile_cache, "storage.compile_cache").check_writable()
    return folder


def check_context(config: JobConfig, arch: Arch) -> None:
    """Raises JobError where prompts, or prompts and what is generated after them, are more than the model can see."""
    seq_len, most = config.extract.seq_len, arch.max_positions
    if config.mode is Mode.generate and seq_len + config.generate.max_new_tokens > most:
        raise JobError(
            f"extract.seq_len={seq_len} and generate.max_new_tokens={config.generate.max_new_tokens} are "
            f"{seq_len + config.generate.max_new_tokens} in sum, more than the model's max_position_embeddings={most}; "
            "lower one of them"
        )
    if seq_len > most:
        raise JobError(
            f"extract.seq_len={seq_len} is more than the model's max_position_embeddings={most}; use at most {most}"
        )


def token_counter(config: JobConfig, model_dir: Path) -> Callable[[Sample], int] | None:
    """How many tokens of a sample the job computes; None where no budget asks for it."""
    if config.tasks.max_tokens is None:
        return None
    tokenizer, extract = load_tokenizer(model_dir), config.extract
    return lambda sample: len(tokenize(tokenizer, [sample], extract.seq_len, extract.too_long)[0].token_ids)


def run_identity(config: JobConfig, found: Outline, files: ModelFiles, checkpoint: Checkpoint) -> dict[str, Any]:
    """What the activations depend on, as JSON values: two runs with equal identities give equal datasets.

    Mesh, sharding, hosts and rows per step are not in it: a run may go on with others.
    """
    extract = config.extract
    return {
        "model": {
            "name": model_name(files.name, checkpoint),
            "family": found.arch.family,
            "layers": found.arch.layers,
            "hidden_dim": found.arch.hidden,
            "dtype": config.model.dtype.value,
            "weights_fingerprint": fingerprint(checkpoint),
        },
        "tokenizer": tokenizer_fingerprint(files.directory),
        "tasks": {
            "format": config.tasks.format.value,
            "fingerprint": found.tasks.fingerprint,
            "samples": len(found.tasks.samples),
            "skipped": found.tasks.skipped,
        },
        "taps": [tap.name for tap in found.taps],
        "positions": extract.positions.value,
        "dtype": extract.dtype.value,
        "seq_len": extract.seq_len,
        "too_long": extract.too_long.value,
        "exclude": sorted({kind.value for kind in extract.exclude}),
        "save_every_n_samples": extract.save_every_n_samples,
    }
