"""Memory that a run holds, from its configuration, and the settings that lower it. No jax.

Shown before a run starts, and again where memory ran out. What the compiler needs for itself comes on top; for a TPU
the preflight reports that too.
"""

import bisect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from pod_job.config.generate import Mode, cache_slots, call_tokens, prefill_length, prefill_prompts, prefix_slots
from pod_job.config.schema import JobConfig, Positions, Sharding
from pod_job.errors import JobError, first_line
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.models.arch import Arch
from pod_job.models.sharding import rules
from pod_job.planning.inputs import Inputs, Outline, Sizes
from pod_job.planning.model_cost import prefill_positions, step_positions, stored_rows, vector_bytes
from pod_job.units import size_text

Run = TypeVar("Run", bound=Sizes)

MOST_ROWS = 64
"""Rows of a device that are chosen at most: more would have few prompts to go round."""
MOST_LOCAL_ROWS = 16
"""Rows of a CPU device that are chosen at most: it computes rows without a prompt, too."""
SHARE_FOR_ROWS = 0.8
"""Part of a device's memory up to which rows are chosen; the compiler's temporaries come on top."""
DEVICE_IS_FULL = "RESOURCE_EXHAUSTED"
"""Beginning of jax's error."""


@dataclass(frozen=True)
class RunMemory:
    """Bytes that a run holds.

    Attributes:
        weights: on each device.
        cache: keys and values, on each device, those of a shared prefix included.
        states: of gated delta rules, on each device.
        vectors: on each device, of two steps: one leaves while the next is computed.
        batches: on each host at most, vectors on their way to files.
    """

    weights: int
    cache: int
    states: int
    vectors: int
    batches: int

    @property
    def device(self) -> int:
        """Bytes on each device; what the compiler needs for itself comes on top."""
        return self.weights + self.cache + self.states + self.vectors


def run_memory(run: Sizes) -> RunMemory:
    """Returns what the run holds; a batch's rows are counted as if every prompt had `extract.seq_len` tokens."""
    config, arch, extract = run.config, run.arch, run.config.extract
    item = DTYPE_OF[config.model.dtype.value].itemsize
    split = rules(run.table, config.mesh.model, config.sharding)
    weights = sum(
        math.prod(weight.shape) * item // (config.mesh.model if any(axis in split for axis in weight.axes) else 1)
        for weight in run.table.values()
    )
    kept = 0
    if config.mode is Mode.generate:
        slots = cache_slots(extract.seq_len, config.generate.max_new_tokens)
        read = max(slots, prefill_length(extract.rows_per_device, extract.seq_len))  # keys and values of prefill
        kept = slots * extract.rows_per_device + read + prefix_slots(len(run.prefix))
    heads = arch.kv_heads // (config.mesh.model if "kv_heads" in split else 1)
    cache = 2 * (arch.layers - arch.delta_layers) * heads * arch.head_dim * item * kept
    vector = vector_bytes(arch, run.taps, extract)
    batch = stored_positions(config) * extract.save_every_n_samples * vector
    return RunMemory(
        weights=weights,
        cache=cache,
        states=state_bytes(arch, item, config) // (config.mesh.model if "delta_keys" in split else 1),
        vectors=2 * computed_positions(config) * vector,
        batches=batches_in_flight(config) * batch,
    )


def state_bytes(arch: Arch, item: int, config: JobConfig) -> int:
    """Returns the bytes of states of gated delta rules, whole, of a device's rows and of the prompts being read."""
    if (sizes := arch.delta) is None or config.mode is not Mode.generate:
        return 0
    own, S = config.extract.rows_per_device, config.extract.seq_len
    sequences = own + prefill_prompts(own, S, config.extract.prompts_per_row)
    keys, values = sizes.key_heads * sizes.key_size, sizes.value_heads * sizes.value_size
    of_layer = 4 * sizes.key_size * values + (sizes.kernel - 1) * (2 * keys + values) * item
    return arch.delta_layers * of_layer * sequences


def computed_positions(config: JobConfig) -> int:
    """Returns the positions of a device whose vectors one step gives; of generation, prefill and a call of decode."""
    rows = config.extract.rows_per_device
    if config.mode is not Mode.generate:
        return rows * step_positions(config.extract)
    return prefill_positions(config.extract) + rows * call_tokens(config.generate.max_new_tokens)


def stored_positions(config: JobConfig) -> int:
    """Returns the number of rows that a sample has at most."""
    new = config.generate.max_new_tokens if config.mode is Mode.generate else 0
    if config.extract.positions is Positions.all:
        return config.extract.seq_len + new
    return max(stored_rows(config.extract, 1, config.extract.seq_len), new)


def batches_in_flight(config: JobConfig) -> int:
    """Returns how many batches a host has in memory at most: with a writer, waiting for one, and under assembly."""
    return config.storage.writers + 2


def weights_on_host(run: Outline, on_cpu: bool) -> int:
    """Returns the bytes of weights in the memory of a machine.

    On a TPU weights pass through the host's memory one by one; CPU devices keep them there, and all hosts of a local
    pod are on one machine.
    """
    config = run.config
    item = DTYPE_OF[config.model.dtype.value].itemsize
    sizes = [math.prod(weight.shape) * item for weight in run.table.values()]
    parts = 1 if config.sharding is Sharding.replicated else config.mesh.model
    return sum(sizes) * config.pod.devices // parts if on_cpu else 2 * max(sizes)


def check_rows(run: Outline, available: int, where: str) -> None:
    """Raises JobError where the run takes more than the `available` bytes of each device, with the rows that fit.

    `where` names what has these bytes, for the message.
    """
    memory, rows = run_memory(run), run.config.extract.rows_per_device
    if memory.device <= available:
        return
    fits = bisect.bisect_right(range(1, rows), available, key=lambda count: with_rows(run, count).device)
    if fits:
        fix = f"use extract.rows_per_device={fits} or less"
    else:
        fix = "not one row fits: lower extract.seq_len or generate.max_new_tokens, or split the weights (sharding=fsdp)"
    taken = f"{size_text(memory.device)} ({on_device(memory)})"
    raise JobError(
        f"extract.rows_per_device={rows}: the run takes {taken} of each device, and {where} has "
        f"{size_text(available)}; {fix}"
    )


def with_rows(run: Sizes, rows: int) -> RunMemory:
    """Returns what the run would hold with so many rows of each device."""
    return run_memory(replace(run, config=config_with_rows(run.config, rows)))


def config_with_rows(config: JobConfig, rows: int) -> JobConfig:
    return replace(config, extract=replace(config.extract, rows_per_device=rows))


def with_fitting_rows(run: Run, bytes_of_device: int, most: int = MOST_ROWS) -> Run:
    """Returns the run, with as many rows of each device as fit where its configuration leaves them to be chosen.

    The number follows from the configuration, the model and the device alone, so that all hosts and starts choose the
    same; neither tokens nor vectors depend on it.

    Args:
        bytes_of_device: memory of each device, used or not.
        most: rows that are chosen at most.
    """
    if run.config.extract.rows_per_device:
        return run
    room = int(SHARE_FOR_ROWS * bytes_of_device)
    fits = bisect.bisect_right(range(1, most + 1), room, key=lambda count: with_rows(run, count).device)
    return replace(run, config=config_with_rows(run.config, max(1, fits)))


def on_device(memory: RunMemory) -> str:
    sizes = {
        "weights": memory.weights,
        "keys and values": memory.cache,
        "states": memory.states,
        "vectors": memory.vectors,
    }
    return ", ".join(f"{size_text(size)} {name}" for name, size in sizes.items() if size)


def described(memory: RunMemory) -> str:
    """Returns one line for people: the bytes on each device and on each host."""
    batches = size_text(memory.batches)
    return f"each device: {on_device(memory)}; each host: up to {batches} of vectors on their way to files"


def remedies(config: JobConfig) -> str:
    """Returns the settings that lower memory, for people."""
    extract = config.extract
    return (
        f"for less on a device lower extract.rows_per_device={extract.rows_per_device}, "
        f"on a host lower extract.save_every_n_samples={extract.save_every_n_samples}; "
        "on both extract fewer layers (extract.layers)"
    )


@contextmanager
def explaining_memory(inputs: Inputs) -> Iterator[None]:
    """Turns running out of memory into a JobError with what the run holds and what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith(DEVICE_IS_FULL):
            raise
        where = "this host" if isinstance(error, MemoryError) else "a device"
        reason = first_line(error).removeprefix(f"{DEVICE_IS_FULL}: ")
        raise JobError(
            f"{where} is out of memory ({reason}); {described(run_memory(inputs))}; {remedies(inputs.config)}"
        ) from error
