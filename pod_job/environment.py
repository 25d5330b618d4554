"""Every environment variable that passes between the launcher and a host, by name.

The command line of all hosts is the same; only these differ. On a TPU VM none is needed: jax finds its cluster itself.
"""

ATTEMPT = "POD_JOB_ATTEMPT"  # token of this start, the same on every host: separates live status files from old ones
RUN = "POD_JOB_RUN"  # the run folder: on a TPU VM it tells a job of this run from one of another
HOST = "POD_JOB_HOST"  # this host's index, 0 .. pod.hosts - 1
HOSTS = "POD_JOB_HOSTS"  # names of all hosts of this slice, with commas, where they are those of pod.hosts_file
LEFT_S = "POD_JOB_LEFT_S"  # seconds after which the run has cost what it may; the host then stops
LIMIT = "POD_JOB_LIMIT"  # that limit, for people: cloud.max_hours=2 is reached
RESTART_STATUS = "POD_JOB_RESTART_STATUS"  # exit status that asks an engine, such as JobSet, for another start
COORDINATOR = "POD_JOB_COORDINATOR"  # host 0's address:port
STORAGE_EMULATOR = "STORAGE_EMULATOR_HOST"  # google-cloud-storage's own: an endpoint in place of GCS
TENSORSTORE_EMULATOR = "TENSORSTORE_GCS_HTTP_URL"  # the same for tensorstore, which reads converted checkpoints
TENSORSTORE_TOKEN = "GOOGLE_AUTH_TOKEN_FOR_TESTING"  # tensorstore's: what it shows in place of credentials
METADATA_SERVER = "GCE_METADATA_IP"  # Google's own: host:port in place of the metadata server
JAX_COORDINATOR = "JAX_COORDINATOR_ADDRESS"  # jax's own: host 0's address:port
JAX_PORT = "JAX_COORDINATOR_PORT"  # jax's own, where it finds host 0 by itself
KUBERNETES_INDEX = "JOB_COMPLETION_INDEX"  # set by Kubernetes on the pods of an indexed job
SKYPILOT_RANK = "SKYPILOT_NODE_RANK"  # set by SkyPilot
SKYPILOT_ADDRESSES = "SKYPILOT_NODE_IPS"  # set by SkyPilot: a line for each host
SKYPILOT_TASK = "SKYPILOT_TASK_ID"  # set by SkyPilot: the same on all hosts of a task, after a recovery too
TPU_WORKER = "TPU_WORKER_ID"  # set on TPU VMs by Google: the index of this VM in its slice
BLAS_THREADS = "OPENBLAS_NUM_THREADS"  # NumPy's own: 1, as writers are threads already and BLAS threads wait in loops

COORDINATOR_PORT = 8476
"""Port of host 0 on a TPU VM, which the firewall rule that Google makes for TPUs opens; jax's own, 8482, stays shut."""


def local_host(host: int, devices: int, coordinator: str, attempt: str) -> dict[str, str]:
    """Returns the variables that make one process a host with `devices` CPU devices of a pod on this machine."""
    return {
        HOST: str(host),
        COORDINATOR: coordinator,
        ATTEMPT: attempt,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        BLAS_THREADS: "1",
    }


# What lets libtpu compile on a machine that has no TPU: no look for a TPU VM's metadata, no lock on a chip.
COMPILE_ONLY = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
