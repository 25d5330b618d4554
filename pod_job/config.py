"""The job's configuration: one schema, composed by Hydra from conf/, checked once, then plain values.

In: a list of Hydra overrides. Out: a `JobConfig` whose every field has been range-checked. No jax here: the
launcher on a workstation and the job on every host compose the same configuration.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pod_job.cloud_config import CloudConfig
from pod_job.errors import JobError, at_least
from pod_job.generation.generate_config import GenerateConfig, Mode
from pod_job.preflight.preflight_config import PreflightConfig
from pod_job.prompts.tasks_config import TasksConfig


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


def conf_dir() -> Path:
    """The folder of Hydra files: inside the installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "conf"


def load(overrides: Sequence[str]) -> JobConfig:
    """The checked configuration for Hydra `overrides` such as `["experiment=demo", "mesh.data=4"]`.

    Raises JobError in one line for a misspelt key, an unknown choice, a wrong type, a missing or out-of-range value.
    """
    ConfigStore.instance().store(name="schema", node=JobConfig)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            tree = compose("job", list(overrides))
        if missing := sorted(OmegaConf.missing_keys(tree)):
            raise JobError(not_set(missing[0]))
        config = OmegaConf.to_object(tree)
    except (HydraException, OmegaConfBaseException) as error:
        raise JobError(explain(error, overrides)) from error
    assert isinstance(config, JobConfig)
    return config


def to_json(config: JobConfig) -> dict[str, Any]:
    """The configuration as JSON values, for `from_json`."""
    tree = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


def from_json(recorded: dict[str, Any], overrides: Sequence[str] = ()) -> JobConfig:
    """The configuration that `to_json` recorded, with `key=value` overrides. JobError where either does not fit."""
    try:
        tree = OmegaConf.merge(OmegaConf.structured(JobConfig), recorded, OmegaConf.from_dotlist(list(overrides)))
        config = OmegaConf.to_object(tree)
    except OmegaConfBaseException as error:
        raise JobError(explain(error, overrides)) from error
    assert isinstance(config, JobConfig)
    return config


def not_set(key: str) -> str:
    return f"{key} is not set; give {key}=... or an experiment=... that sets it"


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's error as one line that names the override and the nearest valid key or choice."""
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} is not an override; write key=value, and quote it for the shell"
    text = str(error.__cause__ or error)
    if missing := re.search(r"Missing mandatory value: (\S+)", text):  # of a field that another one refers to
        return not_set(missing[1])
    if unknown := re.search(r"Key '([^']+)' (?:is not in struct|not in 'JobConfig')", text) or re.search(
        r"Could not override '([^']+)'", str(error)
    ):
        key = next((o.split("=")[0].lstrip("+~") for o in overrides if unknown[1] in o.split("=")[0]), unknown[1])
        near = difflib.get_close_matches(key, keys(JobConfig), n=1, cutoff=0.0)
        return f"{key} is not a field of the configuration; did you mean {near[0]}?"
    if missing := re.search(r"Could not find '([^']+)'", str(error)):
        group, _, name = missing[1].partition("/")
        choices = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        return f"{group}={name} is not one of the choices: {', '.join(choices)}"
    key = re.search(r"full_key: (\S+)", text)
    if key and "is not a ListConfig" in text:
        return f"{key[1]} is a list; write {key[1]}=[...]"
    reason = text.splitlines()[0]
    return f"{key[1]}: {reason}" if key else reason


def keys(schema: Any, prefix: str = "") -> list[str]:
    """Dotted names of every field of a dataclass tree."""
    found = []
    for item in fields(schema):
        found.append(prefix + item.name)
        if is_dataclass(item.type):
            found += keys(item.type, f"{prefix}{item.name}.")
    return found
