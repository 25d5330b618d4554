"""Everything a run reads and everything that can be wrong with it, checked before a device or a weight is touched.

In: the configuration. Out: `Inputs`, or one JobError. No jax: the launcher calls it on a workstation, before any host
starts, and every host calls it again for itself.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pod_job.checkpoints.checkpoint import Checkpoint, check_checkpoint, fingerprint, model_name, read_checkpoint
from pod_job.checkpoints.locate import ModelFiles, find_model
from pod_job.config.generate import Mode
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.models.arch import Arch, read_arch_file
from pod_job.models.sharding import check_divides
from pod_job.models.taps import Tap, resolve
from pod_job.models.weight_table import Weight, weight_table
from pod_job.planning.batches import batch_samples, total_batches
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tasks import Tasks, read_tasks
from pod_job.prompts.tokens import (
    Prompt,
    Tokenizer,
    TokenizerFolder,
    check_template,
    end_tokens,
    tokenize,
    tokenizer_fingerprint,
)
from pod_job.run_folder.identity import GenerateIdentity, Identity, ModelIdentity, TasksIdentity, confirm
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder


@dataclass(frozen=True)
class Outline:
    """A run without its weights: its configuration, the sizes that config.json gives, and the tasks."""

    config: JobConfig
    arch: Arch
    taps: tuple[Tap, ...]
    table: dict[str, Weight]
    tasks: Tasks
    total_batches: int

    @property
    def widths(self) -> dict[str, int]:
        """Size of a stored vector of each tap."""
        return {tap.name: tap.width(self.arch) for tap in self.taps}


@dataclass(frozen=True)
class Inputs(Outline):
    """Everything that the job starts from, opened and read once; `identity` is what its activations depend on."""

    folder: Folder
    model_dir: Path
    checkpoint: Checkpoint
    tokenizer_folder: TokenizerFolder
    end_tokens: tuple[int, ...]
    identity: Identity

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; JobError where it has none."""
        return self.tokenizer_folder.tokenizer

    def prompts(self, batch: int) -> list[Prompt]:
        """Returns the tokenized prompts of a batch (from 1)."""
        samples, extract = self.tasks.samples, self.config.extract
        indices = batch_samples(batch, len(samples), extract.save_every_n_samples)
        return tokenize(
            self.tokenizer, [samples[i] for i in indices], extract.seq_len, extract.too_long, self.arch.vocab
        )


def read_inputs(config: JobConfig, folder: Folder | None = None) -> Inputs:
    """Reads config.json, checkpoint headers and tasks; the run folder must be writable, and empty or this run's.

    Args:
        folder: the run folder, where it is open already.
    Raises:
        JobError: in one line, the first thing that is missing, malformed or does not fit together.
        NoWeights: where no weights are found but the rest is sound.
    """
    files = find_model(config.model.path, config.model.revision)
    tokenizer_folder = TokenizerFolder(files.directory)
    outline = read_sizes_and_tasks(config, tokenizer_folder)
    checkpoint = read_checkpoint(files.weights)
    check_checkpoint(checkpoint, outline.table)
    if outline.tasks.chat:
        check_template(tokenizer_folder)
    folder = folder or open_run_folder(config)
    check_compile_cache(config)
    identity = run_identity(outline, files, checkpoint)
    confirm(folder, identity)
    return Inputs(
        **vars(outline),
        folder=folder,
        model_dir=files.directory,
        checkpoint=checkpoint,
        tokenizer_folder=tokenizer_folder,
        end_tokens=end_tokens(files.directory),
        identity=identity,
    )


def read_outline(config: JobConfig) -> Outline:
    """Reads config.json and tasks, and checks all that can be checked without weights. JobError as `read_inputs`."""
    outline = read_sizes_and_tasks(
        config, TokenizerFolder(find_model(config.model.path, config.model.revision).directory)
    )
    open_run_folder(config)
    check_compile_cache(config)
    return outline


def read_sizes_and_tasks(config: JobConfig, tokenizer_folder: TokenizerFolder) -> Outline:
    extract = config.extract
    arch = read_arch_file(tokenizer_folder.path / "config.json")
    taps = resolve(extract.layers, extract.taps, arch)
    check_context(config, arch)
    table = needed_weights(config, arch)
    check_divides(table, config.mesh, config.sharding)
    tasks = read_tasks(config.tasks, arch.vocab, token_counter(config, tokenizer_folder))
    batches = total_batches(len(tasks.samples), extract.save_every_n_samples)
    return Outline(config, arch, taps, table, tasks, batches)


def needed_weights(config: JobConfig, arch: Arch) -> dict[str, Weight]:
    """Returns the weights that a run computes with: the output matrix only where it generates tokens."""
    return weight_table(arch, head=config.mode is Mode.generate)


def open_run_folder(config: JobConfig) -> Folder:
    """Opens the run folder. JobError where it cannot be written to."""
    folder = open_folder(config.storage.run_dir)
    folder.check_writable()
    return folder


def check_compile_cache(config: JobConfig) -> None:
    """Raises JobError where the folder of compiled programs cannot be written to."""
    cache, run_dir = config.storage.compile_cache, config.storage.run_dir.rstrip("/")
    if cache is not None and not cache.startswith(f"{run_dir}/"):  # what lies in the run folder was tried with it
        open_folder(cache, "storage.compile_cache").check_writable()


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


def token_counter(config: JobConfig, tokenizer_folder: TokenizerFolder) -> Callable[[Sample], int] | None:
    """Returns what counts the tokens of a sample that the job computes; None where no budget asks for it."""
    if config.tasks.max_tokens is None:
        return None
    tokenizer, extract = tokenizer_folder.tokenizer, config.extract
    return lambda sample: len(tokenize(tokenizer, [sample], extract.seq_len, extract.too_long)[0].token_ids)


def run_identity(outline: Outline, files: ModelFiles, checkpoint: Checkpoint) -> Identity:
    """Returns what the activations depend on: two runs with equal identities give equal datasets.

    Mesh, sharding, hosts and rows per step are not in it: a run may go on with others.
    """
    config, extract, generate = outline.config, outline.config.extract, None
    if config.mode is Mode.generate:
        generate = GenerateIdentity(**asdict(config.generate), end_tokens=list(end_tokens(files.directory)))
    return Identity(
        model=ModelIdentity(
            name=model_name(files.name, checkpoint),
            family=outline.arch.family,
            layers=outline.arch.layers,
            hidden_dim=outline.arch.hidden,
            dtype=config.model.dtype.value,
            weights_fingerprint=fingerprint(checkpoint),
        ),
        tokenizer=tokenizer_fingerprint(files.directory),
        tasks=TasksIdentity(
            format=config.tasks.format.value,
            fingerprint=outline.tasks.fingerprint,
            samples=len(outline.tasks.samples),
            skipped=outline.tasks.skipped,
        ),
        taps=[tap.name for tap in outline.taps],
        positions=extract.positions.value,
        dtype=extract.dtype.value,
        seq_len=extract.seq_len,
        too_long=extract.too_long.value,
        exclude=sorted({kind.value for kind in extract.exclude}),
        save_every_n_samples=extract.save_every_n_samples,
        generate=generate,
    )
