"""Creates the pod in the first zone that has capacity, and deletes it."""

import time
from collections.abc import Callable, Sequence

from launch.cloud import gcloud
from launch.cloud.pod_records import note_end, note_start, record_of
from launch.cloud.pods import Pod, delete, find_pods, gcloud_error
from launch.cloud.request import pod_name, pod_spec
from launch.shell import call
from launch.view.timed_log import Log
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

POLL_S = 5.0
PAUSE_S, LONGEST_PAUSE_S = 30.0, 600.0  # between two rounds through the zones
# In gcloud's error when another zone may well have what this one lacks.
NO_CAPACITY = ("no more capacity", "RESOURCE_EXHAUSTED", '"code": 8,', "quota", "stockout", "not enough resources")


class NoPod(Exception):
    """A zone has no pod for the job now; the message says why."""


def take_down(pods: Sequence[Pod], config: JobConfig, log: Log) -> None:
    """Deletes pods of a job."""
    for pod in pods:
        log(f"deleting {pod.name} in {pod.zone} ({pod.state})")
        delete_and_record(pod, config, log)
    log(f"{pod_name(config)} is gone")


def bring_up(config: JobConfig, log: Log) -> Pod:
    """Returns the pod of this job, READY: the existing one, else a new one in the first zone that has capacity.

    Raises:
        JobError: no zone had one within `cloud.rounds` rounds, with each zone's reason; or the request itself is wrong.
    """
    spec = pod_spec(config)
    reasons: dict[str, str] = {}
    for attempt in range(config.cloud.rounds):
        if attempt:
            pause = min(LONGEST_PAUSE_S, PAUSE_S * 2 ** (attempt - 1))
            log(f"no zone has a pod; trying again in {pause:.0f} s")
            time.sleep(pause)
        existing = delete_dead(find_pods(spec.name, config.cloud.project), config, log)
        for zone in [existing.zone] if existing else config.cloud.zones:
            try:
                pod = wait(config, zone, log) if existing else request(spec, zone, config, log)
            except NoPod as error:
                reasons[zone] = str(error)
                log(f"{zone}: {error}")
            else:
                record = record_of(pod, config.cloud.capacity)
                note(config, log, lambda folder, record=record: note_start(folder, record))
                return pod
    zone_reasons = "; ".join(f"{zone}: {reason}" for zone, reason in reasons.items())
    raise JobError(f"cloud.zones: none has a {spec.accelerator_type} ({zone_reasons}); add zones, or try later")


def delete_dead(pods: Sequence[Pod], config: JobConfig, log: Log) -> Pod | None:
    """Deletes pods that will not come (again): preempted, failed, stopped. Returns one that is or will be READY."""
    living = [pod for pod in pods if pod.ready or pod.coming]
    for pod in pods:
        if pod not in living:
            log(f"{pod.name} in {pod.zone} is {pod.state}; deleting it")
            delete_and_record(pod, config, log)
    return max(living, key=lambda pod: pod.ready, default=None)


def delete_and_record(pod: Pod, config: JobConfig, log: Log) -> None:
    """Deletes a pod and records when; one that was taken away before ended with the last status of its hosts."""
    living = pod.ready or pod.coming
    delete(pod, config.cloud.project)
    if living:
        note(config, log, lambda folder: note_end(folder, record_of(pod, config.cloud.capacity), time.time()))


def note(config: JobConfig, log: Log, write: Callable[[Folder], None]) -> None:
    """Lets `write` record something about a pod in the run folder, if that can be written from here."""
    try:
        write(open_folder(config.storage.run_dir))
    except (JobError, OSError) as error:
        log(f"what this pod costs will not be in `status`: {error}")


def request(spec: gcloud.PodSpec, zone: str, config: JobConfig, log: Log) -> Pod:
    """Requests the pod in one zone; returns it once READY.

    Raises:
        NoPod: this zone has none.
        JobError: the request is wrong.
    """
    request_text = f"{spec.accelerator_type} ({spec.capacity.value}{', queued' if config.cloud.queued else ''})"
    log(f"asking {zone} for {spec.name}, {request_text}")
    create = gcloud.create_queued if config.cloud.queued else gcloud.create_node
    done = call(create(spec, zone, config.cloud.project))
    if done.code and "ALREADY_EXISTS" not in done.err:
        reason = gcloud_error(done.err)
        if not any(sign.lower() in reason.lower() for sign in NO_CAPACITY):
            raise JobError(f"{zone} refuses {spec.name}: {reason}")
        raise NoPod(reason)
    return wait(config, zone, log)


def wait(config: JobConfig, zone: str, log: Log) -> Pod:
    """Waits for the pod in `zone`; returns it once READY.

    Raises:
        NoPod: it will not come; its request is deleted.
    """
    deadline = time.monotonic() + config.cloud.zone_wait_s
    shown = ""
    while True:
        pod = next((pod for pod in find_pods(pod_name(config), config.cloud.project) if pod.zone == zone), None)
        if pod is None:
            raise NoPod("the request is gone")
        if pod.state != shown:
            shown = pod.state
            log(f"{pod.name} in {zone}: {shown}")
        if pod.ready:
            return pod
        late = time.monotonic() > deadline
        if late or not pod.coming:
            delete(pod, config.cloud.project)
            waited = f"not served within cloud.zone_wait_s={config.cloud.zone_wait_s}"
            raise NoPod(pod.error or (waited if late else shown))
        time.sleep(POLL_S if pod.node is None else POLL_S / 5)
