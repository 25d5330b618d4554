"""What a run holds in memory, from its configuration, and the settings that lower it. No jax.

Said before a run starts, and again where memory ran out. What the compiler needs for itself comes on top; for a TPU
the preflight tells that too.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pod_job.config.generate import Mode, cache_slots, call_tokens
from pod_job.config.schema import JobConfig, PodKind, Positions, Sharding
from pod_job.errors import JobError
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.models.sharding import rules
from pod_job.models.weight_table import Weight
from pod_job.planning.inputs import Inputs, Outline
from pod_job.planning.model_cost import generation_positions, step_positions, vector_bytes
from pod_job.run_folder.layout import committed

DEVICE_IS_FULL = "RESOURCE_EXHAUSTED"
"""What jax's error begins with."""


@dataclass(frozen=True)
class Held:
    """Bytes: `weights`, `cache` (of keys and values) and `vectors` (of two steps: one leaves while the next is
    computed) on each device; on each host at most `batches`, vectors on their way to files.
    """

    weights: int
    cache: int
    vectors: int
    batches: int


def held(config: JobConfig, inputs: Inputs | Outline) -> Held:
    """What the run holds; a batch's rows are counted as if every prompt were of `extract.seq_len` tokens."""
    extract, generate, generating = config.extract, config.generate, config.mode is Mode.generate
    item = DTYPE_OF[config.model.dtype.value].itemsize
    split = rules(inputs.table, config.mesh.model, config.sharding)
    weights = sum(
        math.prod(weight.shape) * item // (config.mesh.model if any(axis in split for axis in weight.axes) else 1)
        for weight in inputs.table.values()
    )
    slots = cache_slots(extract.seq_len, generate.max_new_tokens) if generating else 0
    heads = inputs.arch.kv_heads // (config.mesh.model if "kv_heads" in split else 1)
    row = 2 * inputs.arch.layers * heads * inputs.arch.head_dim * item * slots
    per_row = computed_positions(config)
    vector = vector_bytes(inputs.arch, inputs.taps, extract)
    batch = stored_positions(config) * extract.save_every_n_samples * vector
    # In a host's share of memory; what all hosts of a pod on one machine take is checked when it starts.
    _, batches = memory_needs(config, inputs.table, batch, on_cpu=False)
    return Held(weights, row * extract.rows_per_device, 2 * per_row * extract.rows_per_device * vector, batches)


def computed_positions(config: JobConfig) -> int:
    """Positions of a row whose vectors one step gives; of generation, prefill and one call of decode."""
    extract = config.extract
    if config.mode is Mode.prefill:
        return step_positions(extract)
    return generation_positions(extract) + call_tokens(config.generate.max_new_tokens)


def stored_positions(config: JobConfig) -> int:
    """Rows that a sample has at most."""
    new = config.generate.max_new_tokens if config.mode is Mode.generate else 0
    if config.extract.positions is Positions.all:
        return config.extract.seq_len + new
    return max(1, new)


def described(found: Held) -> str:
    """For people: what is held where."""
    kept = {"weights": found.weights, "keys and values": found.cache, "vectors": found.vectors}
    on_device = ", ".join(f"{gigabytes(size)} {name}" for name, size in kept.items() if size)
    return f"each device: {on_device}; each host: up to {gigabytes(found.batches)} of vectors on their way to files"


def gigabytes(size: int) -> str:
    return f"{size / GB:,.2f} GB" if size >= GB / 100 else f"{size / 1e6:,.2f} MB"


def remedies(config: JobConfig) -> str:
    """The settings that lower what is held."""
    extract = config.extract
    return (
        f"for less on a device lower extract.rows_per_device={extract.rows_per_device}, "
        f"on a host lower extract.save_every_n_samples={extract.save_every_n_samples}; "
        "on both extract fewer layers (extract.layers)"
    )


@contextmanager
def telling_what_is_held(config: JobConfig, inputs: Inputs) -> Iterator[None]:
    """Where memory runs out meanwhile, a JobError with what the run holds and what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(DEVICE_IS_FULL):
            raise
        where = "this host" if isinstance(error, MemoryError) else "a device"
        reason = (str(error).strip() or "MemoryError").splitlines()[0].removeprefix(f"{DEVICE_IS_FULL}: ")
        raise JobError(
            f"{where} is out of memory ({reason}); {described(held(config, inputs))}; {remedies(config)}"
        ) from error


SCRATCH_BYTES = 256 << 20  # compiled programs on their way, logs
GB = 1e9


@dataclass(frozen=True)
class Needs:
    """Bytes that the run takes at least: `disk` by folder, `weights` and `batches` in this machine's memory."""

    disk: dict[Path, int]
    weights: int
    batches: int


def run_needs(config: JobConfig, inputs: Inputs, batch_tokens: Sequence[int]) -> Needs:
    """From below: generated tokens are not counted, whose number nobody knows yet."""
    extract, pod = config.extract, config.pod
    stored_all = extract.positions is Positions.all
    stored_bytes = vector_bytes(inputs.arch, inputs.taps, extract)
    rows = [tokens if stored_all else extract.save_every_n_samples for tokens in batch_tokens]
    # What the other hosts' shares come to is known from this host's: batches are dealt out evenly.
    total_rows = sum(rows) * inputs.total_batches / max(1, len(rows)) if stored_all else len(inputs.tasks.samples)
    disk = {Path(tempfile.gettempdir()): SCRATCH_BYTES}
    if local := inputs.folder.local_path("."):
        done = len(committed(inputs.folder)) / max(1, inputs.total_batches)
        disk[local] = int(total_rows * stored_bytes * (1 - done))
    batch_bytes = max(rows, default=0) * stored_bytes
    return Needs(disk, *memory_needs(config, inputs.table, batch_bytes, pod.kind is PodKind.local))


def memory_needs(config: JobConfig, table: Mapping[str, Weight], batch_bytes: int, on_cpu: bool) -> tuple[int, int]:
    """(weights, batches). On a TPU weights pass through the host's memory one by one; CPU devices keep them there, and
    all hosts of a local pod are on one machine.
    """
    item = DTYPE_OF[config.model.dtype.value].itemsize
    sizes = [math.prod(weight.shape) * item for weight in table.values()]
    split = 1 if config.sharding is Sharding.replicated else config.mesh.model
    weights = sum(sizes) * config.pod.devices // split if on_cpu else 2 * max(sizes)
    batches = batch_bytes * (config.storage.writers + 2)  # with a writer, waiting for one, and under assembly
    return weights, batches * (config.pod.hosts if on_cpu else 1)
