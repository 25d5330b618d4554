"""The parts of the engines' schemas that manifests use, written after those; a field that is not there is refused.

JobSet: config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of kubernetes-sigs/jobset (v0.9), whose Jobs and pods
are those of Kubernetes, batch/v1 and core/v1. SkyPilot: sky/utils/schemas.py of skypilot 0.14.1.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Label = Annotated[str, Meta(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
Variable = Annotated[str, Meta(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]
Count = Annotated[int, Meta(ge=0)]


class Strict(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """A mapping with no other keys."""


class FieldRef(Strict):
    field_path: str


class SecretKeyRef(Strict):
    name: Name
    key: Variable


class Source(Strict):
    field_ref: FieldRef | None = None
    secret_key_ref: SecretKeyRef | None = None


class Environment(Strict):
    name: Variable
    value: str | None = None
    value_from: Source | None = None


class Port(Strict):
    container_port: Annotated[int, Meta(ge=1, le=65535)]


class Resources(Strict):
    requests: dict[str, int]
    limits: dict[str, int]


class Container(Strict):
    name: Name
    image: str
    args: list[str]
    env: list[Environment]
    ports: list[Port]
    resources: Resources


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"]
    value: str | None = None


class PodSpec(Strict):
    restart_policy: Literal["Never"]
    termination_grace_period_seconds: Count
    node_selector: dict[str, Label]
    tolerations: list[Toleration]
    containers: list[Container]
    service_account_name: Name | None = None


class PodTemplate(Strict):
    spec: PodSpec


class ExitCodes(Strict):
    container_name: Name
    operator: Literal["In", "NotIn"]
    values: Annotated[list[Annotated[int, Meta(ge=1, le=255)]], Meta(min_length=1)]


class PodFailureRule(Strict):
    action: Literal["FailJob", "FailIndex", "Ignore", "Count"]
    on_exit_codes: ExitCodes


class PodFailurePolicy(Strict):
    rules: Annotated[list[PodFailureRule], Meta(max_length=20)]


class JobSpec(Strict):
    completion_mode: Literal["Indexed"]
    completions: Count
    parallelism: Count
    backoff_limit: Count
    pod_failure_policy: PodFailurePolicy
    template: PodTemplate
    active_deadline_seconds: Annotated[int, Meta(ge=1)] | None = None


class JobTemplate(Strict):
    spec: JobSpec


class ReplicatedJob(Strict):
    name: Name
    replicas: Count
    template: JobTemplate


class FailureRule(Strict):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=128)]
    action: Literal["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    on_job_failure_reasons: list[
        Literal["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded"]
        | Literal["PodFailurePolicy"]
    ]


class FailurePolicy(Strict):
    max_restarts: Count
    rules: list[FailureRule]


class JobSetSpec(Strict):
    failure_policy: FailurePolicy
    replicated_jobs: list[ReplicatedJob]


class Metadata(Strict):
    name: Name
    labels: dict[str, Label]
    annotations: dict[str, str]


class JobSet(Strict):
    api_version: Literal["jobset.x-k8s.io/v1alpha2"]
    kind: Literal["JobSet"]
    metadata: Metadata
    spec: JobSetSpec


class StrictSnake(msgspec.Struct, forbid_unknown_fields=True):
    """A mapping with no other keys, whose names are as they stand here."""


class AcceleratorArgs(StrictSnake):
    runtime_version: str
    tpu_vm: bool


class Place(StrictSnake):
    infra: Annotated[str, Meta(pattern=r"^gcp(/[a-z0-9-]+(/[a-z0-9-]+)?)?$")]


class JobRecovery(StrictSnake):
    max_restarts_on_errors: Count
    recover_on_exit_codes: list[Annotated[int, Meta(ge=0, le=255)]]


class SkyResources(StrictSnake):
    accelerators: Annotated[dict[str, int], Meta(max_length=1)]
    accelerator_args: AcceleratorArgs
    use_spot: bool
    job_recovery: JobRecovery
    infra: str | None = None
    any_of: list[Place] | None = None


class SkyTask(StrictSnake):
    name: str
    workdir: str
    num_nodes: int
    resources: SkyResources
    envs: dict[Variable, str]
    setup: str
    run: str
    secrets: dict[str, str | None] | None = None
