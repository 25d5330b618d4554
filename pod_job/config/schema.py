"""The job's configuration: one schema, composed by Hydra from conf/, checked once, then plain values.

In: a list of Hydra overrides. Out: a `JobConfig` whose every field has been range-checked. No jax here: the
launcher on a workstation and the job on every host compose the same configuration.
"""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from pod_job.config.cloud import CloudConfig
from pod_job.config.generate import GenerateConfig, Mode
from pod_job.config.preflight import PreflightConfig
from pod_job.config.tasks import TasksConfig
from pod_job.errors import JobError, at_least


class Sharding(Enum):
    """How weights use the mesh axis `model` (see mesh.py for the rules)."""

    replicated = "replicated"
    fsdp = "fsdp"
    tensor = "tensor"


class Dtype(Enum):
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Stored(Enum):
    """Of stored vectors. Those of eight bits have a scale for every 64 columns of a row."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"
    int8 = "int8"
    float8 = "float8_e4m3fn"


class Positions(Enum):
    """Which token positions are stored.

    `last`: the last one of each forward pass: with mode=generate, where each new token was chosen; `all`: of the prompt
    and of what was generated; `generated`: the new tokens' own.
    """

    last = "last"
    all = "all"
    generated = "generated"


class TooLong(Enum):
    """What happens to a prompt of more than `extract.seq_len` tokens: refuse the run, or keep its last tokens."""

    refuse = "refuse"
    cut = "cut"


class Exclude(Enum):
    """Rows that are not stored: `special`, of tokens that belong to the tokenizer and not to the text."""

    special = "special"


class OnNonfinite(Enum):
    """What happens to a vector with a NaN or an infinity: the run fails and names it, or it is stored and flagged."""

    fail = "fail"
    flag = "flag"


class PodKind(Enum):
    """`local`: processes with CPU devices on this machine; `tpu`: a Cloud TPU pod slice."""

    local = "local"
    tpu = "tpu"


@dataclass(kw_only=True)
class MeshConfig:
    """Sizes of the two mesh axes; their product is the pod's number of devices."""

    data: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        for name in ("data", "model"):
            at_least(f"mesh.{name}", getattr(self, name), 1)


@dataclass(kw_only=True)
class PodConfig:
    kind: PodKind = PodKind.local
    hosts: int = 1
    devices_per_host: int = 1
    accelerator_type: str | None = None  # Cloud TPU's name, v5litepod-64
    runtime_version: str | None = None  # the TPU VM's image, `gcloud compute tpus tpu-vm versions list`
    port: int = 0  # of the coordinator on host 0; 0: a free one (local) or jax's own choice (tpu)
    arrival_timeout_s: int = 300  # how long the present hosts wait for the missing

    def __post_init__(self) -> None:
        for name in ("hosts", "devices_per_host", "arrival_timeout_s"):
            at_least(f"pod.{name}", getattr(self, name), 1)
        if not 0 <= self.port <= 65535:
            raise JobError(f"pod.port={self.port} is not a port; use 0 (any free one) or 1024..65535")

    @property
    def devices(self) -> int:
        return self.hosts * self.devices_per_host


@dataclass(kw_only=True)
class ModelConfig:
    path: str = MISSING  # a Hugging Face folder, or one from pod_job.convert, here or at gs://; or a hub name
    revision: str | None = None  # of the hub's repository
    dtype: Dtype = Dtype.bfloat16  # of weights and compute


@dataclass(kw_only=True)
class ExtractConfig:
    layers: list[int] | None = None  # resid_post of these layers; null: of all, unless `taps` names some
    taps: list[str] = field(default_factory=list)  # further taps by name, wildcards allowed: "layer_*.attn_out"
    positions: Positions = Positions.last
    dtype: Stored = Stored.bfloat16  # of the stored vectors
    save_every_n_samples: int = 512
    seq_len: int = 1024
    rows_per_device: int = 1  # rows of seq_len tokens in one step
    prompts_per_row: int = 64  # at most, when short prompts are packed into one row
    too_long: TooLong = TooLong.refuse
    exclude: list[Exclude] = field(default_factory=list)  # rows that are not stored
    on_nonfinite: OnNonfinite = OnNonfinite.fail

    def __post_init__(self) -> None:
        for name in ("save_every_n_samples", "seq_len", "rows_per_device", "prompts_per_row"):
            at_least(f"extract.{name}", getattr(self, name), 1)
        if self.layers is not None and len(set(self.layers)) != len(self.layers):
            raise JobError(f"extract.layers={self.layers} names a layer twice; name each once")


@dataclass(kw_only=True)
class StorageConfig:
    run_dir: str = MISSING  # a folder every host sees, or gs://bucket/prefix
    writers: int = 4  # uploads in flight per host
    compile_cache: str | None = None  # a folder or gs://bucket/prefix where compiled programs are kept

    def __post_init__(self) -> None:
        at_least("storage.writers", self.writers, 1)


@dataclass(kw_only=True)
class ParityConfig:
    """Before a run, its first prompts go through an independent float32 reference."""

    samples: int = 2  # prompts; 0 leaves the comparison out
    limit: float | None = None  # largest relative L2 error of a vector; by default what the dtypes' rounding explains

    def __post_init__(self) -> None:
        at_least("parity.samples", self.samples, 0)


@dataclass(kw_only=True)
class JobConfig:
    mode: Mode = Mode.prefill
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sharding: Sharding = Sharding.replicated
    pod: PodConfig = field(default_factory=PodConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    parity: ParityConfig = field(default_factory=ParityConfig)
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    cloud: CloudConfig = field(default_factory=CloudConfig)

    def __post_init__(self) -> None:
        mesh, pod = self.mesh, self.pod
        if mesh.data * mesh.model != pod.devices:
            raise JobError(
                f"mesh.data={mesh.data} x mesh.model={mesh.model} is {mesh.data * mesh.model} devices, but the pod has "
                f"pod.hosts={pod.hosts} x pod.devices_per_host={pod.devices_per_host} = {pod.devices}; "
                f"make the product {pod.devices}"
            )
        if self.extract.positions is Positions.generated and self.mode is not Mode.generate:
            raise JobError("extract.positions=generated needs generated tokens; set mode=generate, or use last or all")
