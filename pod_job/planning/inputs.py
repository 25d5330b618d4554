"""Everything a run reads and everything that can be wrong with it, checked before a device or a weight is touched.

In: the configuration. Out: `Inputs`, or one JobError. No jax: the launcher calls it on a workstation, before any host
starts, and every host calls it again for itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from pathlib import Path

from pod_job.checkpoints.checkpoint import Checkpoint, check_checkpoint, fitted, read_checkpoint, unread
from pod_job.checkpoints.locate import find_model
from pod_job.config.extract import Positions, TooLong
from pod_job.config.generate import Mode
from pod_job.config.load import to_json
from pod_job.config.schema import JobConfig
from pod_job.config.tasks import OnBroken, TasksConfig
from pod_job.errors import JobError
from pod_job.models.arch import Arch, read_arch_file
from pod_job.models.sharding import check_divides
from pod_job.models.taps import Tap, check_exact, resolve
from pod_job.models.weight_table import Weight, weight_table
from pod_job.planning.batches import batch_samples, total_batches
from pod_job.planning.identity import (
    generate_identity,
    model_identity,
    package_versions,
    recorded_positions,
    tasks_identity,
    template_identity,
    token_probe,
    tokenizer_files,
)
from pod_job.planning.shared_prefix import common_prefix, compared_samples, shares
from pod_job.planning.task_index import COUNTED_HERE, TaskReading, find_tasks
from pod_job.planning.template_date import date_to_record, template_date
from pod_job.planning.token_budget import TokenCounter
from pod_job.planning.training_schedule import check_step_rows, stream_identity
from pod_job.prompts.chat import check_values
from pod_job.prompts.concat import joined
from pod_job.prompts.prompt import Prompt, PromptRules, Tokenized
from pod_job.prompts.samples import without_broken
from pod_job.prompts.sources.sample import BrokenTask, Sample
from pod_job.prompts.stop_texts import check_stop_texts
from pod_job.prompts.tasks import Tasks
from pod_job.prompts.text_ends import check_ends
from pod_job.prompts.tokenizer import Tokenizer, TokenizerFolder, check_template, end_tokens, tokenizer_fingerprint
from pod_job.prompts.tokens import usable_prompts
from pod_job.run_folder.accepted import check_acceptable
from pod_job.run_folder.identity import Identity, RunRecord, claim, confirm, find_run
from pod_job.run_folder.train_identity import TrainIdentity
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder


@dataclass(frozen=True)
class Sizes:
    """A run's configuration, the sizes that config.json gives, and the tokens that prompts share as a prefix."""

    config: JobConfig
    arch: Arch
    taps: tuple[Tap, ...]
    table: dict[str, Weight]
    prefix: tuple[int, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Outline(Sizes):
    """A run without its weights: its sizes, and the tasks."""

    tasks: Tasks
    total_batches: int

    @property
    def tasks_config(self) -> TasksConfig:
        """The configuration of the tasks, with the format that they were found to have."""
        return replace(self.config.tasks, format=self.tasks.format)

    @property
    def widths(self) -> dict[str, int]:
        """Size of a stored vector of each tap."""
        return {tap.name: tap.width(self.arch) for tap in self.taps}

    @property
    def compared_widths(self) -> dict[str, int]:
        """Width of everything that is held against a reference: the taps, and one of the columns by the model."""
        return self.widths | dict.fromkeys(self.config.extract.token_facts, 1)


@dataclass(frozen=True)
class Inputs(Outline):
    """Everything that the job starts from, opened and read once; `recorded`: run.json, None before the first start.

    `train`: with mode=train the SAEs and their schedule.
    """

    folder: Folder
    model_name: str
    model_dir: Path
    checkpoint: Checkpoint
    tokenizer_folder: TokenizerFolder
    end_tokens: tuple[int, ...]
    template_date: date
    recorded: RunRecord | None
    train: TrainIdentity | None = None

    @cached_property
    def identity(self) -> Identity:
        """Everything that the activations depend on; the first use on a machine reads weights on its disk whole."""
        return run_identity(self)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; JobError where it has none."""
        return self.tokenizer_folder.tokenizer

    def prompts(self, batch: int) -> Tokenized:
        """Returns the tokenized prompts of a batch (from 1): its `samples`, tokenized."""
        return joined([self.tokenize(self.samples(batch))])

    def samples(self, batch: int) -> list[Sample | BrokenTask]:
        """Returns the samples of a batch (from 1), read from the source; for any thread.

        One that is broken comes as what is wrong with it; under `tasks.on_broken=refuse` it raises JobError.
        """
        samples = self.tasks.samples
        return samples.load(batch_samples(batch, len(samples), self.config.extract.save_every_n_samples))

    def first_prompts(self, count: int) -> list[Prompt]:
        """Returns the first prompts that can be used, at most `count`."""
        prompts, samples = [], self.tasks.samples
        for start in range(0, len(samples), count):
            prompts += self.tokenize(samples.load(range(len(samples))[start : start + count])).prompts
            if len(prompts) >= count:
                break
        return prompts[:count]

    def tokenize(self, samples: Sequence[Sample | BrokenTask]) -> Tokenized:
        """Returns the prompts of samples, as every host and every start of the run makes them; for any thread.

        What `samples` says of broken ones is with those that cannot be tokenized. A sample's prompts
        depend on that sample alone: a batch may be tokenized in parts, `joined` afterwards.
        """
        rules = PromptRules.of(self.config, self.arch.vocab, self.template_date)
        usable, broken = without_broken(samples)
        tokenized = usable_prompts(self.tokenizer, usable, rules)
        return replace(tokenized, skipped=[*broken, *tokenized.skipped])


def read_inputs(config: JobConfig, folder: Folder | None = None, reading: TaskReading = COUNTED_HERE) -> Inputs:
    """Reads config.json, checkpoint headers and tasks; the run folder must be writable, and empty or this run's.

    Args:
        folder: the run folder, where it is open already.
        reading: who counts the samples of a large source.
    Raises:
        JobError: in one line, the first thing that is missing, malformed or does not fit together.
        NoWeights: where no weights are found but the rest is sound.
    """
    files = find_model(config.model.path, config.model.revision)
    tokenizer_folder = TokenizerFolder(files.directory)
    run_folder = folder or open_folder(config.storage.run_dir)
    recorded = find_run(run_folder)
    outline = read_sizes_and_tasks(config, tokenizer_folder, run_folder, recorded, reading)
    checkpoint = read_checkpoint(files.weights)
    arch, table = fitted(outline.arch, checkpoint, head=needs_head(config))
    check_divides(table, config.mesh, config.sharding)
    check_checkpoint(checkpoint, table)
    outline = replace(outline, arch=arch, table=table)
    check_tokenizer(outline, tokenizer_folder)
    if folder is None:
        run_folder.check_writable()
    check_compile_cache(config)
    check_too_long(config, recorded)
    check_acceptable(config.storage.accept_identity)
    inputs = Inputs(
        **vars(outline),
        folder=run_folder,
        model_name=files.name,
        model_dir=files.directory,
        checkpoint=checkpoint,
        tokenizer_folder=tokenizer_folder,
        end_tokens=end_tokens(files.directory),
        template_date=template_date(recorded),
        recorded=recorded,
        train=stream_identity(config, outline.widths) if config.mode is Mode.train else None,
    )
    if recorded is not None and inputs.train is not None:
        check_step_rows(config, inputs.train, recorded.identity.train)
    if recorded is not None:
        confirm(run_folder.url, recorded, inputs.identity, config.storage.accept_identity, package_versions())
    return replace(inputs, prefix=find_prefix(inputs))


def find_prefix(inputs: Inputs) -> tuple[int, ...]:
    """Returns the tokens that prompts of the run share as a prefix; none where they share none.

    A sample that cannot be used is named, or skipped, by the host that needs it.
    """
    if not shares(inputs.config, inputs.arch):
        return ()
    samples = inputs.tasks.samples.load(compared_samples(inputs.tasks.samples))
    rules = PromptRules.of(inputs.config, inputs.arch.vocab, inputs.template_date)
    usable, _ = without_broken(samples)
    return common_prefix(usable_prompts(inputs.tokenizer, usable, replace(rules, on_broken=OnBroken.skip)).prompts)


def read_outline(config: JobConfig, reading: TaskReading = COUNTED_HERE) -> Outline:
    """Reads config.json and tasks, and checks all that can be checked without weights. JobError as `read_inputs`."""
    tokenizer_folder = TokenizerFolder(find_model(config.model.path, config.model.revision).directory)
    folder = open_folder(config.storage.run_dir)
    recorded = find_run(folder)
    outline = read_sizes_and_tasks(config, tokenizer_folder, folder, recorded, reading)
    folder.check_writable()
    check_compile_cache(config)
    check_too_long(config, recorded)
    return outline


def read_sizes_and_tasks(
    config: JobConfig,
    tokenizer_folder: TokenizerFolder,
    folder: Folder,
    recorded: RunRecord | None,
    reading: TaskReading,
) -> Outline:
    extract = config.extract
    arch = read_arch_file(tokenizer_folder.path / "config.json")
    taps = resolve(extract.layers, extract.taps, arch)
    check_exact(taps, arch, extract.dtype.value, extract.positions is Positions.mean)
    check_context(config, arch)
    table = needed_weights(config, arch)
    check_divides(table, config.mesh, config.sharding)
    counter = None
    if config.tasks.max_tokens is not None:
        counter = token_counter(config, tokenizer_folder, template_date(recorded))
    tasks = find_tasks(config.tasks, arch.vocab, counter, folder, reading)
    batches = total_batches(len(tasks.samples), extract.save_every_n_samples)
    return Outline(config, arch, taps, table, tasks, batches)


def needed_weights(config: JobConfig, arch: Arch) -> dict[str, Weight]:
    """Returns the weights that a run computes with."""
    return weight_table(arch, head=needs_head(config))


def needs_head(config: JobConfig) -> bool:
    """Returns whether a run computes with the output matrix: to generate tokens, or for facts of tokens."""
    return config.mode is Mode.generate or bool(config.extract.token_facts)


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


def check_too_long(config: JobConfig, recorded: RunRecord | None) -> None:
    """Raises JobError where a new run would drop the begin token of long prompts."""
    if config.extract.too_long is TooLong.cut and recorded is None:
        raise JobError(
            "extract.too_long=cut drops the begin token of long prompts, and is only for runs that were begun with it; "
            "use tail, head or split"
        )


def check_context(config: JobConfig, arch: Arch) -> None:
    """Raises JobError where prompts, or prompts and what is generated after them, are more than the model can see."""
    seq_len, most = config.extract.seq_len, arch.max_positions
    if config.mode is Mode.generate and seq_len + config.generate.max_new_tokens > most:
        raise JobError(
            f"extract.seq_len={seq_len} and generate.max_new_tokens={config.generate.max_new_tokens} are "
            f"{seq_len + config.generate.max_new_tokens} in sum, more than the model's max_position_embeddings={most}; "
            "lower one of them"
        )
    if config.mode is Mode.generate and seq_len + config.generate.max_new_tokens > (most := arch.one_rope):
        raise JobError(
            f"extract.seq_len={seq_len} and generate.max_new_tokens={config.generate.max_new_tokens} are more than "
            f"{most} in sum, past which longrope changes the rotation of {arch.family} keys in the cache; lower one"
        )
    if seq_len > arch.max_positions:
        raise JobError(
            f"extract.seq_len={seq_len} is more than the model's max_position_embeddings={arch.max_positions}; "
            f"use at most {arch.max_positions}"
        )


def check_tokenizer(outline: Outline, tokenizer_folder: TokenizerFolder) -> None:
    """Raises JobError for a tokenizer that does not go with the run's prompts, or end tokens the model has not."""
    path, vocab = tokenizer_folder.path, outline.arch.vocab
    tasks = outline.config.tasks
    if outline.tasks.chat:
        check_template(tokenizer_folder)
        check_values(tasks.template_values, tokenizer_folder.tokenizer.chat_template)
    elif tasks.system is not None or tasks.template_values:
        name = "system" if tasks.system is not None else "template_kwargs"
        raise JobError(f"tasks.{name} is for chats, and the prompts are none; leave it out")
    if outline.tasks.text:
        check_ends(path, tokenizer_folder.tokenizer)
    generates = outline.config.mode is Mode.generate
    if generates:
        check_stop_texts(outline.config.generate.stop, tokenizer_folder.tokenizer)
    ends = end_tokens(path) if generates else ()
    if outside := [token for token in ends if token >= vocab]:
        raise JobError(
            f"model.path={path}: eos_token_id={outside[0]} is none of the {vocab} rows of the model's embedding; "
            "correct generation_config.json or config.json"
        )


def token_counter(
    config: JobConfig, tokenizer_folder: TokenizerFolder, template_date: date | None = None
) -> TokenCounter | None:
    """Returns what counts the tokens of a sample that the job computes; None where no budget asks for it."""
    if config.tasks.max_tokens is None:
        return None
    return TokenCounter(tokenizer_folder.tokenizer, PromptRules.of(config, template_date=template_date))


def run_identity(inputs: Inputs) -> Identity:
    """Returns what the activations depend on: two runs with equal identities give equal datasets.

    Mesh, sharding, hosts and rows per step are not in it: a run may go on with others. Where the folder holds a run of
    0.1.0, model and tokenizer are identified as it records them.
    """
    config, extract = inputs.config, inputs.config.extract
    recorded = inputs.recorded and inputs.recorded.identity
    older_tokenizer = recorded is not None and recorded.tokenizer_files is None and recorded.tokenizer is not None
    return Identity(
        model=model_identity(
            config.model.dtype.value, inputs.arch, inputs.checkpoint, inputs.model_name, recorded and recorded.model
        ),
        tokenizer=tokenizer_fingerprint(inputs.model_dir) if older_tokenizer else None,
        tokenizer_files=None if older_tokenizer else tokenizer_files(inputs.model_dir),
        token_probe=token_probe(config, inputs.tasks.samples, inputs.tokenizer_folder, inputs.template_date),
        template_date=date_to_record(inputs.recorded, inputs.tasks, inputs.tokenizer_folder, inputs.template_date),
        tasks=tasks_identity(config, inputs.tasks, recorded and recorded.tasks),
        taps=[tap.name for tap in inputs.taps],
        positions=recorded_positions(extract),
        sample_seed=extract.sample_seed if extract.positions is Positions.sample else None,
        dtype=extract.dtype.value,
        seq_len=extract.seq_len,
        too_long=extract.too_long.value,
        overlap=extract.overlap or None,
        roles=extract.roles or None,
        columns=sorted(column.value for column in set(extract.columns)) or None,
        chat_template=template_identity(config),
        concat=config.tasks.separator.value if config.tasks.concat else None,
        exclude=sorted({kind.value for kind in extract.exclude}),
        save_every_n_samples=extract.save_every_n_samples,
        generate=generate_identity(config, inputs.model_dir),
        train=inputs.train,
    )


def claim_run(inputs: Inputs) -> None:
    """Makes the run folder this run's, or confirms that it is. JobError where it is another's."""
    claim(
        inputs.folder,
        inputs.identity,
        to_json(inputs.config),
        inputs.config.storage.accept_identity,
        package_versions(),
        unread(inputs.checkpoint, inputs.table),
    )
