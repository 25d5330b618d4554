"""The schema of the job's configuration: every field with its type, default, meaning and range check.

Imports no jax: the launcher on a workstation and the job on every host compose the same configuration. The comments
behind fields and the docstrings become docs/configuration.md.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from pod_job.config.cloud import CloudConfig
from pod_job.config.extract import Exclude as Exclude
from pod_job.config.extract import ExtractConfig as ExtractConfig
from pod_job.config.extract import OnNonfinite as OnNonfinite
from pod_job.config.extract import Positions as Positions
from pod_job.config.extract import StoredDtype as StoredDtype
from pod_job.config.extract import TooLong as TooLong
from pod_job.config.generate import GenerateConfig, Mode
from pod_job.config.preflight import PreflightConfig
from pod_job.config.tasks import TasksConfig
from pod_job.config.train import TrainConfig, TrainSource, taps_of
from pod_job.errors import JobError, at_least

ConfigValues = dict[str, Any]
"""A configuration as JSON values."""


class Sharding(Enum):
    """Layout of the weights: `replicated` on every device; `fsdp`: split over the axis `model` and gathered layer by
    layer; `tensor`: heads, mlp and vocabulary split over `model` (see pod_job/models/sharding.py)."""

    replicated = "replicated"
    fsdp = "fsdp"
    tensor = "tensor"


class Dtype(Enum):
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


SLICE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")


OF_OWN_PODS = (
    *("zones", "reservation", "flex_hours", "service_account", "network", "subnetwork", "tags", "create_flags"),
    *("internal_ip", "iap", "max_hours", "max_usd"),
)
"""Fields of `cloud` for pods that the launcher creates and pays for: hosts of a file have nothing to do with them."""


class PodKind(Enum):
    """`local`: processes with CPU devices on this machine; `tpu`: a Cloud TPU pod slice."""

    local = "local"
    tpu = "tpu"


@dataclass(kw_only=True)
class MeshConfig:
    """Sizes of the two mesh axes; their product is the pod's number of devices."""

    data: int = 1  # size of the axis that splits the rows of a step
    model: int = 1  # size of the axis that splits the weights; the rows too, unless sharding=tensor

    def __post_init__(self) -> None:
        for name in ("data", "model"):
            at_least(f"mesh.{name}", getattr(self, name), 1)


@dataclass(kw_only=True)
class PodConfig:
    kind: PodKind = PodKind.local
    hosts: int = 1  # processes of the job
    devices_per_host: int = 1  # chips, or CPU devices, of each host
    accelerator_type: str | None = None  # Cloud TPU's name of the slice: v5litepod-64
    runtime_version: str | None = None  # image of the TPU VM, see `gcloud compute tpus tpu-vm versions list`
    port: int = 0  # port of the coordinator on host 0; 0: a free one (local) or 8476 (tpu)
    arrival_timeout_s: int = 300  # longest wait for all hosts to arrive
    slices: int = 1  # pods of this shape that compute the run together, each a cluster of its own
    slice: str | None = None  # name of this pod among those of the run; the launcher gives one where slices > 1
    hosts_file: str | None = None  # TPU VMs you have started, reached by ssh: one NAME or USER@NAME:PORT per line
    lease_timeout_s: int = 90  # time without a sign of life after which the other slices take a slice's batches

    def __post_init__(self) -> None:
        for name in ("hosts", "devices_per_host", "arrival_timeout_s", "slices", "lease_timeout_s"):
            at_least(f"pod.{name}", getattr(self, name), 1)
        if self.slice is not None and not SLICE_NAME.fullmatch(self.slice):
            raise JobError(f"pod.slice={self.slice} is no name of a slice; use up to 40 of a-z, 0-9 and -, as in a-1")
        if not 0 <= self.port <= 65535:
            raise JobError(f"pod.port={self.port} is not a port; use 0 (any free one) or 1024..65535")

    @property
    def devices(self) -> int:
        return self.hosts * self.devices_per_host


@dataclass(kw_only=True)
class ModelConfig:
    path: str = MISSING  # a Hugging Face folder or one from `pod-job convert`, local or at gs://; or a hub name
    revision: str | None = None  # commit, tag or branch of the hub's repository
    dtype: Dtype = Dtype.bfloat16  # dtype of weights and compute
    kernels: bool = True  # this package's own kernels on TPU; false: slower programs that XLA makes of the same sums


@dataclass(kw_only=True)
class StorageConfig:
    run_dir: str = MISSING  # the run folder: a folder that every host sees, or gs://bucket/prefix
    writers: int = 4  # files that a host writes or uploads at the same time
    accept_identity: list[str] = field(default_factory=list)  # fields of the identity that may differ from run.json
    compile_cache: str | None = None  # a folder or gs://bucket/prefix that caches compiled programs

    def __post_init__(self) -> None:
        at_least("storage.writers", self.writers, 1)


@dataclass(kw_only=True)
class ParityConfig:
    """Comparison of the first prompts with an independent float32 reference, before anything is stored."""

    samples: int = 2  # prompts to compare; 0 skips the comparison
    limit: float | None = None  # largest allowed relative L2 error of a vector; null: measured on the model itself
    send_reference: bool = True  # for a pod: torch, where installed, computes the reference where the run is started

    def __post_init__(self) -> None:
        at_least("parity.samples", self.samples, 0)
        if self.limit is not None and not self.limit > 0:
            raise JobError(f"parity.limit={self.limit} is not above 0; use null, or the largest error to allow")


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
    train: TrainConfig = field(default_factory=TrainConfig)
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
        if pod.hosts_file is not None:
            self._check_hosts_file(pod.hosts_file)
        self._check_mode()

    def _check_hosts_file(self, path: str) -> None:
        if self.pod.kind is not PodKind.tpu:
            raise JobError(
                f"pod.hosts_file={path} lists TPU VMs, and pod.kind={self.pod.kind.value} is this machine; use "
                "pod=v5e_8 or another TPU pod, the shape of each slice"
            )
        for name in OF_OWN_PODS:
            if value := getattr(self.cloud, name):
                shown = f"[{','.join(value)}]" if isinstance(value, list) else str(value)
                raise JobError(
                    f"cloud.{name}={shown} is of pods that are created, and the hosts of pod.hosts_file={path} are "
                    "there already; leave one out"
                )

    def _check_mode(self) -> None:
        extract = self.extract
        if self.tasks.concat:
            self._check_concat()
        if self.mode is Mode.train:
            self._check_train()
        elif self.train.saes:
            raise JobError("train.saes are trained with mode=train; set it, or leave train.saes out")
        if self.mode is Mode.prefill and extract.positions is Positions.generated:
            raise JobError("extract.positions=generated needs generated tokens; set mode=generate, or use last or all")
        if self.mode is not Mode.generate:
            if not extract.rows_per_device:
                raise JobError("extract.rows_per_device=0 chooses rows with mode=generate only; use 1 or more")
            return
        if extract.positions not in (Positions.last, Positions.all, Positions.generated):
            raise JobError(
                f"extract.positions={extract.positions.value} needs mode=prefill; with mode=generate use last, all or "
                "generated"
            )
        if extract.roles:
            raise JobError("extract.roles need mode=prefill; the tokens that a model writes are positions=generated")
        if extract.columns:
            names = ",".join(column.value for column in extract.columns)
            raise JobError(f"extract.columns=[{names}] need mode=prefill; leave them out with mode=generate")
        if extract.too_long is TooLong.split:
            raise JobError(
                "extract.too_long=split needs mode=prefill, as every window would be continued; with mode=generate use "
                "tail"
            )

    def _check_train(self) -> None:
        extract, train = self.extract, self.train
        train.check_required()
        if self.pod.slices > 1:
            raise JobError(
                f"pod.slices={self.pod.slices} share an extraction; mode=train takes one slice, use pod.slices=1"
            )
        if train.source is TrainSource.run:
            return
        if extract.positions.one_per_prompt or extract.positions is Positions.generated:
            raise JobError(
                f"extract.positions={extract.positions.value} does not go with mode=train, which trains on the vectors "
                "of all tokens; use extract=all_tokens"
            )
        taps = taps_of(train.specs)
        if extract.layers not in (None, []) or extract.taps not in ([], taps):
            name = "layers" if extract.layers else "taps"
            raise JobError(f"extract.{name} is of vectors that are stored; with mode=train the taps are in train.saes")
        if extract.columns:
            raise JobError("extract.columns are of rows that are stored; leave them out with mode=train")
        # As an extraction of these taps would have it; rows of special tokens are never trained on.
        extract.layers, extract.taps, extract.exclude = [], taps, [Exclude.special]
        extract.dtype = StoredDtype.float32 if self.model.dtype is Dtype.float32 else StoredDtype.bfloat16

    def _check_concat(self) -> None:
        extract = self.extract
        if self.mode is Mode.generate:
            raise JobError("tasks.concat=true needs mode=prefill; with mode=generate each prompt is continued alone")
        if extract.positions.one_per_prompt:
            raise JobError(
                f"extract.positions={extract.positions.value} is one vector per prompt, and tasks.concat=true joins "
                "prompts; use all, every or sample"
            )
        if extract.too_long.drops or extract.overlap:
            name, value = ("overlap", extract.overlap) if extract.overlap else ("too_long", extract.too_long.value)
            raise JobError(
                f"extract.{name}={value} does not go with tasks.concat=true, which continues a long document in the "
                "next row; leave it out"
            )
