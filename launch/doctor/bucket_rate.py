"""Rate from the hosts to the run folder: the one that was measured, or a measurement on all hosts of the pod."""

import shlex

from launch.cloud.deploy import common_values, expect, install
from launch.cloud.iam import NotChecked
from launch.cloud.job_pods import pods_of
from launch.cloud.remote import Answer, ask, script
from launch.cloud.request import pod_name, reach
from launch.view.timed_log import timed_log
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.formats.records import decode, now
from pod_job.preflight.tpu_facts import BUCKET_BYTES_S
from pod_job.run_folder.bucket_rate import BucketRate, HostRate, read_rate, write_rate
from pod_job.storage.open import open_folder
from pod_job.units import GB

OBJECTS = 32  # of 64 MiB, that a host writes at most


def check_rate(config: JobConfig) -> str:
    """Returns the rate that `plan` counts with, where it is more than an assumption."""
    if config.preflight.bucket_gb_s is not None:
        return f"preflight.bucket_gb_s={config.preflight.bucket_gb_s:g} GB/s from each host"
    rate = read_rate(open_folder(config.storage.run_dir))
    if rate is None:
        assumed = f"{BUCKET_BYTES_S / GB:g} GB/s from each host to the run folder is assumed"
        raise NotChecked(f"{assumed}; once the pod is READY, `pod-job doctor --measure-bucket` measures it")
    return str(rate)


def measure_rate(config: JobConfig) -> str:
    """Has all hosts of the READY pod write and read at once, and records the rate of the slowest in the run folder.

    Raises:
        JobError: no pod is READY, its hosts cannot be prepared, or a job runs on it.
    """
    pod = next((pod for pod in pods_of(config) if pod.ready), None)
    if pod is None:
        raise JobError(
            f"--measure-bucket: {pod_name(config)} is not READY, and the rate from this machine would say nothing "
            f"about its hosts; `pod-job up {shlex.quote(f'storage.run_dir={config.storage.run_dir}')} ...` first"
        )
    folder, pod_reach = open_folder(config.storage.run_dir), reach(config, pod.zone)
    bundle = install(config, pod_reach, folder, timed_log())
    writers = config.storage.writers
    values = common_values(config, bundle)
    values |= {"RUN": config.storage.run_dir, "WRITERS": str(writers), "OBJECTS": str(OBJECTS)}
    answers = expect(ask(pod_reach, config.pod.hosts, script("bandwidth", values)), {"MEASURED"})
    hosts = [host_rate(answer) for answer in answers.values()]
    rate = BucketRate(
        measured=now(),
        accelerator_type=pod.accelerator_type,
        zone=pod.zone,
        hosts=len(hosts),
        writers=writers,
        host_bytes=min(host.bytes for host in hosts),
        write_bytes_s=min(host.write_bytes_s for host in hosts),
        read_bytes_s=min(host.read_bytes_s for host in hosts),
    )
    write_rate(folder, rate)
    return str(rate)


def host_rate(answer: Answer) -> HostRate:
    return decode(answer.detail, HostRate, f"answer of worker {answer.host}", "`pod-job down`, then `pod-job up`")
