"""JobSet on GKE: one indexed Job, a pod for every VM of the slice.

GKE's webhook gives such pods TPU_WORKER_ID and TPU_WORKER_HOSTNAMES, by which the hosts find each other. A spot slice
that is taken away, a lost host or a bad machine restarts all pods; a bug or a user's error ends the JobSet.
https://jobset.sigs.k8s.io, https://cloud.google.com/kubernetes-engine/docs/concepts/tpus
"""

from pathlib import Path

from launch.cloud.checks import shared
from launch.cloud.request import pod_name
from launch.manifests.job_facts import GRACE_S, JobFacts, Values
from pod_job import environment
from pod_job.config.cloud import Capacity
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.preflight.tpu_facts import TPU7X, V4, V5E, V5P, V6E

ACCELERATORS = {
    V4.name: "tpu-v4-podslice",
    V5E.name: "tpu-v5-lite-podslice",
    V5P.name: "tpu-v5p-slice",
    V6E.name: "tpu-v6e-slice",
    TPU7X.name: "tpu7x",
}
"""Values of the node label cloud.google.com/gke-tpu-accelerator."""
TPU = "google.com/tpu"
ENDS_THE_JOB = (1, 2)
"""Exit codes of a bug and of bad input, which the next start would meet too."""
SECRET = "pod-job"
"""Kubernetes secret with the variables of cloud.secrets."""


def jobset(job: JobFacts, image: str, service_account: str | None) -> Values:
    """Returns the manifest.

    Args:
        image: of tools/docker.
        service_account: of Kubernetes, which may read and write the bucket; None: the namespace's default.
    """
    config, hosts = job.config, job.config.pod.hosts
    check_in_image(config)
    pods = {
        **{"completionMode": "Indexed", "completions": hosts, "parallelism": hosts, "backoffLimit": 0},
        **({} if job.seconds is None else {"activeDeadlineSeconds": job.seconds}),
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "host", "operator": "In", "values": list(ENDS_THE_JOB)},
                }
            ]
        },
        "template": {"spec": pod_spec(job, image, service_account)},
    }
    cloud = config.cloud
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": pod_name(config),
            "labels": {"made-by": "pod-job"} | dict(cloud.labels),
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": cloud.preemptions + cloud.bad_machines + cloud.failures,
                "rules": [
                    {
                        "name": "noRestartOfErrorsOfTheUser",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"],
                    }
                ],
            },
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": pods}}],
        },
    }


def check_in_image(config: JobConfig) -> None:
    """Raises JobError for task files of this machine: the launcher sends them to its pods, an engine does not."""
    for path in config.tasks.paths:
        if Path(path).exists() and not shared(path, config):
            raise JobError(
                f"tasks.path={path} is on this machine, and the image does not have it; give it as gs://bucket/file, "
                "or list its folder in cloud.shared_folders where every pod has it mounted"
            )


def pod_spec(job: JobFacts, image: str, service_account: str | None) -> Values:
    chips = job.sold.chips_per_host // job.sold.chip.devices
    cloud = job.config.cloud
    spot = [{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_S,
        **({} if service_account is None else {"serviceAccountName": service_account}),
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[job.sold.chip.name],
            "cloud.google.com/gke-tpu-topology": "x".join(map(str, job.sold.grid)),
            **capacity_labels(cloud.capacity, cloud.reservation),
        },
        "tolerations": [
            {"key": TPU, "operator": "Exists", "effect": "NoSchedule"},
            *(spot if cloud.capacity is Capacity.spot else []),
        ],
        "containers": [
            {
                "name": "host",
                "image": image,
                "args": [literal(word) for word in job.overrides],
                "env": variables(job),
                "ports": [{"containerPort": int(job.environment[environment.JAX_PORT])}],
                "resources": {"requests": {TPU: chips}, "limits": {TPU: chips}},
            }
        ],
    }


def literal(text: str) -> str:
    """Returns the text as Kubernetes takes it for itself: it would put a variable's value in place of $(NAME)."""
    return text.replace("$(", "$$(")


def capacity_labels(capacity: Capacity, reservation: str | None) -> dict[str, str]:
    """Returns the labels of nodes of that kind of capacity."""
    if capacity is Capacity.spot:
        return {"cloud.google.com/gke-spot": "true"}
    if capacity is Capacity.flex_start:
        return {"cloud.google.com/gke-flex-start": "true"}
    return {} if reservation is None else {"cloud.google.com/reservation-name": reservation.rpartition("/")[2]}


def variables(job: JobFacts) -> list[Values]:
    """Returns the environment of a pod; the attempt is the Job's own identity, which a restart makes another."""
    label = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/controller-uid']"}}
    return [
        {"name": environment.ATTEMPT, "valueFrom": label},
        *({"name": name, "value": literal(value)} for name, value in job.environment.items()),
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": SECRET, "key": name}}}
            for name in job.config.cloud.secrets
        ),
    ]
