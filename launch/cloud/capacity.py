"""Creates the pod in the first zone that has capacity, and deletes it."""

from collections.abc import Callable, Collection, Sequence
from typing import NoReturn

from launch import clock
from launch.cloud import gcloud
from launch.cloud.api_time import api_now
from launch.cloud.calls import (
    CREATE_TIMEOUT_S,
    PATIENCE_S,
    REQUEST_TIMEOUT_S,
    call_api,
    from_network,
    gcloud_error,
    passes_by_itself,
)
from launch.cloud.own_hosts import clear, not_cleared, own_pod
from launch.cloud.pod_records import note_end, note_start, record_of
from launch.cloud.pods import Pod, delete, find_pods
from launch.cloud.refusal import Refusal, Scope, read_refusal
from launch.cloud.request import pod_name, pod_spec
from launch.view.timed_log import Log
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError, first_line
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

POLL_S = 5.0
PAUSE_S, LONGEST_PAUSE_S = 30.0, 600.0  # between two rounds through the zones
LISTED_S = 60.0  # from a request until the API lists it
CREATING_S = 3600.0  # for a node that is being made; a large slice takes minutes


class NoPod(Exception):
    """A zone has no pod for the job; the message says why. `for_good`: no later round will find one there."""

    def __init__(self, reason: str, for_good: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good


class NoCapacity(JobError):
    """No zone has a pod for the job; `zones`: those that have refused."""

    def __init__(self, message: str, zones: Collection[str]) -> None:
        super().__init__(message)
        self.zones = zones


class NotWanted(Exception):
    """Nobody wants the pod any more that was to be brought up; its request may exist."""


def take_down(pods: Sequence[Pod], config: JobConfig, log: Log) -> None:
    """Deletes all pods of a job that can be, or clears the user's own hosts; JobError for those that cannot."""
    if config.pod.hosts_file is not None:
        if uncleared := clear(config, log):
            raise JobError(not_cleared(config, uncleared))
        return
    errors = []
    for pod in pods:
        log(f"deleting {pod.name} in {pod.zone} ({pod.state})")
        try:
            delete_and_record(pod, config, log)
        except JobError as error:
            errors.append(str(error))
    if errors:
        raise JobError("; ".join(errors))
    log(f"{pod_name(config)} is gone")


def always() -> bool:
    return True


def bring_up(config: JobConfig, log: Log, wanted: Callable[[], bool] = always) -> Pod:
    """Returns the pod of this job, READY: the existing one, else a new one in the first zone that has capacity.

    On hosts that the user has started, these.

    Args:
        wanted: asked before each request, and while the pod is waited for.
    Raises:
        NoCapacity: no zone had one within `cloud.rounds` rounds, with each zone's reason.
        NotWanted: it is no longer `wanted`.
        JobError: the request itself is wrong.
    """
    if config.pod.hosts_file is not None:
        return own_pod(config)
    spec = pod_spec(config)
    reasons: dict[str, str] = {}
    closed: set[str] = set()  # zones that refuse for good
    for attempt in range(config.cloud.rounds):
        if attempt:
            pause = min(LONGEST_PAUSE_S, PAUSE_S * 2 ** (attempt - 1))
            log(f"no zone has a pod; trying again in {pause:.0f} s")
            clock.sleep(pause)
        existing = delete_dead(find_pods(spec.name, config.cloud.project), config, log)
        zones = [existing.zone] if existing else [zone for zone in config.cloud.zones if zone not in closed]
        for zone in zones:
            try:
                pod = wait(config, zone, log, wanted) if existing else request(spec, zone, config, log, wanted)
            except NoPod as error:
                reasons[zone] = str(error)
                closed |= {zone} if error.for_good else set()
                log(f"{zone}: {error}")
            else:
                record = record_of(pod, config.cloud.capacity)
                note(config, log, lambda folder, record=record: note_start(folder, record))
                return pod
        if closed >= set(config.cloud.zones):
            break
    zone_reasons = "; ".join(f"{zone}: {reason}" for zone, reason in reasons.items())
    message = f"cloud.zones: none has a {spec.accelerator_type} ({zone_reasons}); add zones, or try later"
    raise NoCapacity(message, [*reasons])


def delete_dead(pods: Sequence[Pod], config: JobConfig, log: Log) -> Pod | None:
    """Deletes pods that will not come (again): preempted, failed, stopped; of several, those that are not READY yet.

    Returns one that is or will be READY. Of two that are READY a job may run on either: both stay, and that is said.
    """
    living = [pod for pod in pods if pod.ready or pod.coming]
    chosen = max(living, key=lambda pod: pod.ready, default=None)
    for pod in pods:
        if pod is not chosen and pod.ready:
            log(
                f"{pod.name} is READY in {pod.zone} too, and costs the same again until this job ends or `pod-job down`"
            )
        elif pod is not chosen:
            log(f"{pod.name} in {pod.zone} is {pod.state}; deleting it")
            delete_and_record(pod, config, log)
    return chosen


def delete_and_record(pod: Pod, config: JobConfig, log: Log) -> None:
    """Deletes a pod and records when; one that was taken away before ended with the last status of its hosts."""
    living = pod.ready or pod.coming
    delete(pod, config.cloud.project, log)
    if living:
        note(config, log, lambda folder: note_end(folder, record_of(pod, config.cloud.capacity), api_now()))


def note(config: JobConfig, log: Log, write: Callable[[Folder], None]) -> None:
    """Lets `write` record something about a pod in the run folder, if that can be written from here."""
    try:
        write(open_folder(config.storage.run_dir))
    except Exception as error:
        if not (isinstance(error, JobError) or from_network(error)):
            raise
        log(f"what this pod costs will not be in `status`: {first_line(error)}")


def request(spec: gcloud.PodSpec, zone: str, config: JobConfig, log: Log, wanted: Callable[[], bool] = always) -> Pod:
    """Requests the pod in one zone; returns it once READY.

    Raises:
        NoPod: this zone has none.
        NotWanted: as `bring_up`.
        JobError: the request is wrong, or the API cannot be reached.
    """
    if not wanted():
        raise NotWanted
    request_text = f"{spec.accelerator_type} ({spec.capacity.value}{', queued' if config.cloud.queued else ''})"
    log(f"asking {zone} for {spec.name}, {request_text}")
    create = gcloud.create_queued if config.cloud.queued else gcloud.create_node
    timeout_s = REQUEST_TIMEOUT_S if config.cloud.queued else CREATE_TIMEOUT_S
    # A request whose answer was lost is found the second time: it has the pod's name.
    done = call_api(create(spec, zone, config.cloud.project), timeout_s, PATIENCE_S + timeout_s, log)
    if done.code and "ALREADY_EXISTS" not in done.err:
        if passes_by_itself(done):
            raise JobError(f"{zone} gives no answer: {gcloud_error(done.err)}; run it again")
        raise_refusal(read_refusal(gcloud_error(done.err)), zone, spec.name)
    return wait(config, zone, log, wanted)


def raise_refusal(refusal: Refusal, zone: str, name: str) -> NoReturn:
    """Raises NoPod, or JobError where no other zone would take the request either."""
    if refusal.scope is Scope.request:
        raise JobError(f"{zone} refuses {name}: {refusal.reason}")
    raise NoPod(refusal.reason, for_good=refusal.scope is Scope.zone)


def wait(config: JobConfig, zone: str, log: Log, wanted: Callable[[], bool] = always) -> Pod:
    """Waits for the pod in `zone`; returns it once READY.

    Raises:
        NoPod: it will not come; its request is deleted.
        NotWanted: as `bring_up`.
        JobError: the request is wrong; it is deleted.
    """
    began = clock.monotonic()
    granted_at: float | None = None
    shown = ""
    while True:
        if not wanted():
            raise NotWanted
        pod = next((pod for pod in find_pods(pod_name(config), config.cloud.project) if pod.zone == zone), None)
        now = clock.monotonic()
        if pod is not None and pod.state != shown:
            shown = pod.state
            log(f"{pod.name} in {zone}: {shown}")
        if pod is not None and pod.granted and granted_at is None:
            granted_at = now
        refusal = hopeless(pod, now - began, None if granted_at is None else now - granted_at, config.cloud.zone_wait_s)
        if refusal is not None:
            if pod is not None:
                delete_and_record(pod, config, log)
            raise_refusal(refusal, zone, pod_name(config))
        if pod is not None and pod.ready:
            return pod
        clock.sleep(POLL_S if pod is None or pod.node is None else POLL_S / 5)


def hopeless(pod: Pod | None, waited_s: float, granted_s: float | None, zone_wait_s: float) -> Refusal | None:
    """Returns why a pod is not worth waiting for any longer; None where it is READY, or may still come.

    Args:
        waited_s: seconds since it was requested.
        granted_s: seconds since its node has been in the making, which the wait for capacity does not bound.
    """
    if pod is None:
        return Refusal(Scope.now, "the request is gone") if waited_s > LISTED_S or granted_s is not None else None
    if pod.ready:
        return None
    if not pod.coming:
        return read_refusal(pod.error, otherwise=Scope.zone) if pod.error else Refusal(Scope.now, pod.state)
    if granted_s is not None:
        late = granted_s > CREATING_S
        return Refusal(Scope.now, f"{pod.state} for {granted_s:.0f} s") if late else None
    late = waited_s > zone_wait_s
    return Refusal(Scope.now, f"not served within cloud.zone_wait_s={zone_wait_s:g}") if late else None
