"""Compiles the step of a job for a pod that is not there, and reads from the result what it will cost there.

In: the configuration and the model's sizes. Out: a `Forecast`. Needs libtpu, which compiles on any x86-64 Linux
machine; the environment must hold `environment.COMPILE_ONLY` before jax starts.
"""

import re
import time
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.topologies import get_topology_desc

from pod_job.config import ExtractConfig, JobConfig, Positions, Sharding
from pod_job.errors import JobError
from pod_job.extraction.forward import compile_step
from pod_job.mesh import make_mesh, placement, row_sharding, weight_shardings
from pod_job.models.arch import Arch
from pod_job.models.attention import LANES, products_computed
from pod_job.models.decoder import Decoder
from pod_job.models.layer_loop import layers_needed
from pod_job.models.sharding import row_shards
from pod_job.models.taps import Tap
from pod_job.models.weight_table import weight_table
from pod_job.preflight.compiled_text import Collective, Operation, collectives, read_program, total_cycles
from pod_job.preflight.tpu_facts import BUCKET_BYTES_S, Slice

KERNEL = re.compile(r"^splash_")


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a step takes on the pod. Memory in bytes per chip, times in seconds per step; 0 where it does not fit.

    `seconds` by cause: `compute` (the compiler's estimates of its own operations, and the kernels'), `network` (all
    collectives, as if nothing hid them), `host` (results to the host's memory), `bucket` (results to storage). They
    overlap, so a step takes the longest of them.
    """

    topology: str
    chips: int
    fits: bool
    compile_s: float
    hbm: dict[str, int]
    hbm_available: int
    seconds: dict[str, float] = field(default_factory=dict)
    kernel_s: float = 0.0
    ideal_s: float = 0.0
    tokens: int = 0
    collectives: list[Collective] = field(default_factory=list)
    stored_bytes: int = 0

    @property
    def step_s(self) -> float:
        return max(self.seconds.values(), default=0.0)

    @property
    def bottleneck(self) -> str:
        return max(self.seconds, key=lambda cause: self.seconds[cause], default="memory")

    @property
    def mfu(self) -> float:
        """Model FLOPs of a step over what the chips could do in its time."""
        return self.ideal_s / self.step_s if self.step_s else 0.0

    @property
    def compute_mfu(self) -> float:
        """The same as if nothing but compute took time: how good the compiled program is."""
        return self.ideal_s / self.seconds["compute"] if self.seconds else 0.0


def forecast(config: JobConfig, arch: Arch, taps: tuple[Tap, ...], pod: Slice) -> Forecast:
    """Compiles the job's step for `pod` and reads what it takes. A program too big for a chip's memory does not fit.

    Raises:
        JobError: libtpu is missing, it does not know the topology, or the mesh is not the pod's.
    """
    devices = pod_devices(pod)
    started = time.monotonic()
    try:
        program = compile_for(config, arch, taps, devices)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        need = memory_needed(str(error))
        seconds = time.monotonic() - started
        hbm, available = {"total": need}, pod.chip.hbm_bytes
        return Forecast(
            topology=pod.topology, chips=pod.chips, fits=False, compile_s=seconds, hbm=hbm, hbm_available=available
        )
    compile_s = time.monotonic() - started
    operations = read_program(program.as_text() or "")
    moved = collectives(operations)
    rows = config.extract.rows_per_device * row_shards(config.mesh, config.sharding)
    stored = stored_bytes(arch, taps, rows, config.extract)
    kernel = kernel_seconds(operations, config, arch, layers_run(taps), pod)
    hbm = memory(program)
    return Forecast(
        topology=pod.topology,
        chips=pod.chips,
        fits=hbm["total"] <= pod.chip.hbm_bytes,
        compile_s=compile_s,
        hbm=hbm,
        hbm_available=pod.chip.hbm_bytes,
        seconds={
            "compute": total_cycles(operations) / pod.chip.cycles_s + kernel,
            "network": sum(each.count * each.bytes for each in moved) / pod.chip.network_bytes_s,
            "host": stored / pod.chips / pod.chip.host_bytes_s,
            "bucket": stored / pod.hosts / BUCKET_BYTES_S,
        },
        kernel_s=kernel,
        ideal_s=model_flops(arch, taps, rows, config.extract.seq_len) / pod.chips / pod.chip.peak_flops,
        tokens=rows * config.extract.seq_len,
        collectives=moved,
        stored_bytes=stored,
    )


def pod_devices(pod: Slice) -> list[Any]:
    """The devices of a pod, to compile for. Raises JobError where libtpu is not installed or knows no such pod."""
    options: dict[str, Any] = {}
    if pod.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # as on a TPU VM: the two cores of a chip are one device
    if pod.chips == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        found = get_topology_desc(platform="tpu", topology_name=pod.topology, **options)
    except (ModuleNotFoundError, RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        if "INVALID_ARGUMENT" in reason:
            raise JobError(f"pod.accelerator_type: the compiler refuses topology {pod.topology}: {reason}") from error
        raise JobError(f"no TPU compiler here ({reason}); pip install 'tpu-pod-activations[preflight]'") from error
    return list(found.devices)


def compile_for(config: JobConfig, arch: Arch, taps: tuple[Tap, ...], devices: list[Any]) -> jax.stages.Compiled:
    """The very step that job.py compiles, from shapes alone."""
    mesh, table = make_mesh(config.mesh, devices), weight_table(arch)
    dtype = jnp.dtype(config.model.dtype.value)
    shardings = weight_shardings(mesh, config.sharding, table)
    params = {
        name: jax.ShapeDtypeStruct(weight.shape, dtype, sharding=shardings[name]) for name, weight in table.items()
    }
    model = Decoder(arch, taps, dtype, placement(mesh, config.sharding, shardings))
    global_rows = row_shards(config.mesh, config.sharding) * config.extract.rows_per_device
    rows = row_sharding(mesh, config.sharding)
    return compile_step(model, {"params": params}, mesh, rows, global_rows, config.extract)


def memory(program: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a chip's memory by kind."""
    sizes = program.memory_analysis()
    assert sizes is not None
    kinds = {
        "weights and inputs": sizes.argument_size_in_bytes,
        "results": 2 * sizes.output_size_in_bytes,  # those of the step before are still on their way to the host
        "temporaries": sizes.temp_size_in_bytes,
        "program": sizes.generated_code_size_in_bytes,
    }
    return kinds | {"total": sum(kinds.values())}


def memory_needed(error: str) -> int:
    """Bytes that a program which did not fit asked for; 0 where the compiler does not say."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of", error)
    return int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1)) if found else 0


def layers_run(taps: tuple[Tap, ...]) -> int:
    return max(
        0 if tap.site == "embed" else tap.layer if tap.site == "final_norm" else layers_needed(tap) for tap in taps
    )


def kernel_seconds(operations: list[Operation], config: JobConfig, arch: Arch, layers: int, pod: Slice) -> float:
    """Time of a step's attention kernels on one chip: the FLOPs of the blocks they compute, at the matrix units' rate.

    A head narrower than LANES leaves part of a 128 x 128 matrix unit idle, in both products: H/128 of peak.
    """
    if not any(KERNEL.match(op.name) for op in operations):
        return 0.0
    split = config.mesh.model if config.sharding is Sharding.tensor and arch.kv_heads % config.mesh.model == 0 else 1
    S = config.extract.seq_len
    products = sum(products_computed(S, each.window) for each in arch.attention[:layers])
    flops = 4 * products * arch.head_dim * (arch.heads // split) * config.extract.rows_per_device
    return flops / (pod.chip.peak_flops * min(1.0, arch.head_dim / LANES))


def model_flops(arch: Arch, taps: tuple[Tap, ...], rows: int, seq_len: int) -> float:
    """FLOPs that the taps need and no program could leave out: weights' products, and attention's causal half."""
    layers = layers_run(taps)
    qkvo = 2 * arch.hidden * arch.head_dim * (arch.heads + arch.kv_heads)
    per_token = 2 * (qkvo + 3 * arch.hidden * arch.mlp)
    pairs = sum(seen_pairs(seq_len, each.window) for each in arch.attention[:layers])
    return float(rows) * (layers * per_token * seq_len + 4 * pairs * arch.head_dim * arch.heads)


def seen_pairs(S: int, window: int | None) -> int:
    """(query, key) pairs of a row of one segment that a query may look at."""
    W = min(S, window or S)
    return W * (W + 1) // 2 + (S - W) * W


def stored_bytes(arch: Arch, taps: tuple[Tap, ...], rows: int, config: ExtractConfig) -> int:
    """Bytes that a full step sends to the hosts, over all chips."""
    positions = config.prompts_per_row if config.positions is Positions.last else config.seq_len
    return rows * positions * sum(tap.width(arch) for tap in taps) * jnp.dtype(config.dtype.value).itemsize
