"""A run, its pods and what they cost at one moment: from the run folder and the API, without a login to any host."""

from collections.abc import Mapping, Sequence

import msgspec

from launch.cloud.observe import latest_statuses
from launch.cloud.pod_records import all_records, record_of
from launch.cloud.pods import Pod
from launch.cloud.request import pod_name
from launch.hosts_file import UNREAD
from launch.slices import has_slices, slice_jobs
from launch.view.status_view import PodHours, PodStatus, RunStatus, SliceStatus
from pod_job.config.schema import JobConfig
from pod_job.planning.batches import total_batches
from pod_job.preflight.prices import hours, pod_usd_per_hour, spent
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.layout import RUN, committed
from pod_job.run_folder.status import HostStatus, batches_computed
from pod_job.storage.folder import Folder, exists


def planned_batches(config: JobConfig, folder: Folder) -> int:
    """Returns the planned number of batches, or of training steps: by run.json, or by the inputs before a start."""
    if not exists(folder, RUN):
        from pod_job.planning.task_index import ESTIMATED
        from pod_job.planning.training import read_job_inputs  # tables of tasks, which a started run does not need

        return read_job_inputs(config, reading=ESTIMATED).total_batches
    identity = read_run(folder).identity
    if identity.train is not None:
        return identity.train.steps
    return total_batches(identity.tasks.samples, identity.save_every_n_samples)


def read_run_status(config: JobConfig, folder: Folder, batches: int, pods: Sequence[Pod], now: float) -> RunStatus:
    """Returns the run as it is now, at the Unix time `now`; `batches`: its planned number."""
    statuses = latest_statuses(folder, config)
    hosts = [status for of_slice in statuses.values() for status in of_slice]
    run = run_status(config, folder, batches, hosts, pods, now)
    return msgspec.structs.replace(run, slices=slices_of(statuses, pods, config))


def slices_of(
    statuses: Mapping[str | None, list[HostStatus | None]], pods: Sequence[Pod], config: JobConfig
) -> list[SliceStatus]:
    """Returns the slices that have reported or are planned, with their pods; none of a run on one pod."""
    named = has_slices(config) and config.pod.hosts_file != UNREAD
    planned = {job.name: job.config for job in slice_jobs(config, [])} if named else {}
    by_name = {pod.name: pod for pod in sorted(pods, key=lambda pod: pod.ready)}  # of two zones, the one that is READY
    slices = []
    for name in sorted({*statuses, *planned} - {None}, key=lambda name: (len(name), name)):
        pod = by_name.get(pod_name(planned[name])) if name in planned else None
        place = (pod.zone, pod.state) if pod is not None else ("", "")
        slices.append(SliceStatus(name, *place, statuses.get(name, [None] * config.pod.hosts)))
    return slices


def run_status(
    config: JobConfig,
    folder: Folder,
    batches: int,
    hosts: Sequence[HostStatus | None],
    pods: Sequence[Pod],
    now: float,
) -> RunStatus:
    """Returns the run at the Unix time `now`: from its hosts' latest statuses, and its pods as the API has them."""
    reported = [host for host in hosts if host is not None]
    seconds = max((host.seconds for host in reported), default=0.0)
    training = max((host.training for host in reported if host.training), key=lambda at: at.step, default=None)
    done = training.step if training else len(committed(folder))
    counted = max(host.steps for host in reported) if training else batches_computed(reported)
    ahead = 0.0 if training else max(0.0, counted - sum(host.batches for host in reported))  # not yet committed
    batches_per_s = counted / seconds if seconds else 0.0
    left_s = 0.0 if done == batches else max(0.0, batches - done - ahead) / batches_per_s if batches_per_s else None
    cloud = config.cloud
    alive = {record_of(pod, cloud.capacity).key for pod in pods}
    last_heard = max((host.updated for host in reported), default=0.0)
    paid = hours(all_records(folder, pods, config), alive, last_heard, now)
    so_far = spent(paid, cloud.price_per_chip_hour) if paid else None
    hourly = pod_usd_per_hour(config, pods[0].zone if pods else None)
    expected = None
    if so_far is not None and hourly is not None and left_s is not None:
        expected = so_far + hourly * max(1, len(alive)) * left_s / 3600
    return RunStatus(
        run=config.storage.run_dir,
        batches_done=done,
        batches=batches,
        batches_per_hour=3600 * batches_per_s or None,
        tokens_per_s=sum(host.tokens for host in reported) / seconds if seconds else None,
        left_s=left_s,
        ready_at=now + left_s if left_s else None,
        cost_so_far=so_far,
        cost_expected=expected,
        pod_hours=[PodHours(record.zone, round(time_h, 3)) for record, time_h in paid],
        pods=[pod_status(pod) for pod in pods],
        hosts=list(hosts),
        training=training,
    )


def pod_status(pod: Pod) -> PodStatus:
    return PodStatus(
        name=pod.name,
        zone=pod.zone,
        state=pod.state,
        queued=pod.queued_state,
        health=pod.health,
        symptoms=pod.symptoms,
        maintenance=pod.maintenance,
    )
