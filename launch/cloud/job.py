"""The job on a pod in the cloud: pod, code, start and, if wanted, its end."""

import shlex
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from launch import clock
from launch.cloud import gcloud
from launch.cloud.api_time import api_now
from launch.cloud.calls import patiently
from launch.cloud.checks import slice_of
from launch.cloud.deploy import Start, deploy
from launch.cloud.gcloud import Reach
from launch.cloud.limits import Limit, nearest_limit
from launch.cloud.observe import RunningJob, Statuses, follow, latest_statuses
from launch.cloud.outcome import End, Outcome
from launch.cloud.owner import what_stays
from launch.cloud.pod_records import all_records, record_of
from launch.cloud.pods import Pod, find_all
from launch.cloud.remote import ask_briefly, planned_ssh, script
from launch.cloud.request import pod_name, pod_names, pod_spec, reach
from launch.cloud.uploads import to_upload, upload_line
from launch.host_commands import new_attempt
from launch.merging import completed
from launch.slices import has_slices, slice_jobs
from launch.view import progress, summary
from launch.view.timed_log import Log
from pod_job.commands.command_line import BAD_INPUT, DONE, FAILED
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.planning.task_index import ESTIMATED
from pod_job.planning.training import JobInputs, TrainInputs, is_complete, look_at_prompts, read_job_inputs
from pod_job.planning.training_memory import check_buffer
from pod_job.run_folder.slices import report_folder
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder
from pod_job.terminal import SafeConsole

KILL_TIMEOUT_S = 60.0  # stop.sh waits up to 10 s for the job's end


def read_job(config: JobConfig) -> JobInputs:
    """Reads and checks what the job starts from, with a look at the prompts of a run that is not finished."""
    inputs = read_job_inputs(config, reading=ESTIMATED)
    if not is_complete(inputs.folder, inputs.config.mode):
        look_at_prompts(inputs)
    if isinstance(inputs, TrainInputs) and (wanted := slice_of(config)) is not None:
        check_buffer(inputs, wanted.chip.hbm_bytes, f"a {wanted.chip.name} chip")
    return inputs


def limit_of(config: JobConfig, folder: Folder, pod: Pod | None) -> Limit | None:
    """Returns the limit of the run that is reached first, if any is set. `pod`: its pod that lives."""
    if config.cloud.max_hours is None and config.cloud.max_usd is None:
        return None
    statuses = [status for latest in latest_statuses(folder, config).values() for status in latest]
    heard = max((status.updated for status in statuses if status is not None), default=0.0)
    living = ([pod] if pod else []) if config.pod.slice is None else living_slices(config, pod)
    alive = {record_of(one, config.cloud.capacity).key for one in living}
    return nearest_limit(config, all_records(folder, living, config), alive, heard, api_now())


def living_slices(config: JobConfig, pod: Pod | None) -> list[Pod]:
    """Returns the pods of all slices that are paid for now; `pod`: that of this slice, which may not be listed yet."""
    others = set(pod_names(replace(config, pod=replace(config.pod, slice=None)))) - {pod_name(config)}
    return [one for one in find_all(others, config.cloud.project) if one.ready] + ([pod] if pod else [])


def start(pod: Pod, config: JobConfig, overrides: Sequence[str], inputs: JobInputs, log: Log) -> RunningJob:
    """Starts the job on all hosts of a pod that is READY, or finds it running there.

    Raises:
        NoAnswer, Refused: as `deploy`.
        JobError: the pod is not of the shape that the configuration says.
    """
    if pod.workers != config.pod.hosts:
        raise JobError(
            f"pod.hosts={config.pod.hosts}, but {pod.name} has {pod.workers} workers; set pod.hosts={pod.workers} "
            f"and a mesh to match, or another pod.accelerator_type"
        )
    pod_reach = reach(config, pod.zone)
    limit = limit_of(config, inputs.folder, pod)
    attempt = deploy(config, overrides, pod_reach, inputs.folder, Start(new_attempt(), pod.resource, limit), log)
    ends_at = float("inf") if limit is None else clock.monotonic() + limit.left_s
    stays = what_stays([pod], config, overrides)
    reports = report_folder(inputs.folder, config.pod.slice)
    return RunningJob(
        *(pod_reach, config.pod.hosts, reports, attempt, inputs.total_batches),
        complete=lambda: is_complete(inputs.folder, inputs.config.mode),
        limit=limit,
        ends_at=ends_at,
        stays=stays,
    )


def until_end(config: JobConfig, job: RunningJob, log: Log, began: float) -> Outcome:
    """Shows the hosts' progress until the attempt has ended."""
    with progress.Screen(SafeConsole(stderr=True), began) as screen:
        return follow(
            job, config.cloud.stall_s, lambda statuses: screen.show(progress.bars(statuses, job.batches)), log
        )


def settled(inputs: JobInputs, outcome: Outcome, log: Log) -> Outcome:
    """Returns the outcome; `done` where hosts were lost that had nothing left to do, for the run is complete then."""
    if outcome.end in (End.lost, End.preempted, End.limit) and patiently(lambda: completed(inputs, log), log):
        log(describe(outcome))
        return Outcome(End.done)
    return outcome


def finish(config: JobConfig, job: RunningJob | None, outcome: Outcome, elapsed_s: float, as_json: bool) -> int:
    """Shows the dataset, or why there is none; returns the exit status of the verb. `job`: None if it did not start."""
    if outcome.end is not End.done:
        show_outcome(outcome, SafeConsole(stderr=True))
        return BAD_INPUT if outcome.cause is not None and outcome.cause.user_error else FAILED
    folder = open_folder(config.storage.run_dir)
    return show_dataset(config, folder, [] if job is None else job.statuses(), elapsed_s, as_json)


def show_dataset(config: JobConfig, folder: Folder, statuses: Statuses, elapsed_s: float, as_json: bool) -> int:
    """Shows the dataset; returns the exit status of the verb. `statuses`: of the attempt that finished it, if any."""
    logs = f"{config.storage.run_dir.rstrip('/')}/logs"
    reported = [status for status in statuses if status is not None]
    done = summary.summary_of(config, folder, reported, elapsed_s, logs)
    if as_json:
        print(summary.as_json(done))
    else:
        summary.show(done, SafeConsole())
    return DONE if done.complete else FAILED


def show_outcome(outcome: Outcome, screen: Console) -> None:
    """Prints the cause in one line and, unless the user's input is at fault, the last lines of that host's log."""
    cause = outcome.cause
    error = f"error: {describe(outcome)}"
    lines = [] if cause is None or cause.user_error else [f"  {line}" for line in outcome.lines]
    for line in [error, *lines]:
        screen.print(line, highlight=False, markup=False, soft_wrap=True)


def describe(outcome: Outcome) -> str:
    """Returns the end of a run that was not finished, in one line."""
    if outcome.cause is not None:
        sick = f" (the pod is {outcome.node.sickness})" if outcome.node.sickness else ""
        return f"host {outcome.cause.host}: {outcome.cause.reason}{sick}"
    return outcome.limit or f"the pod was taken away ({outcome.node.state})"


def kill(pod_reach: Reach, config: JobConfig, log: Log) -> bool:
    """Ends the job's processes on every host, at once; returns whether none runs on any host now."""
    hosts = config.pod.hosts
    answers = ask_briefly(pod_reach, script("stop", {"SIGNAL": "KILL", "RUN": config.storage.run_dir}), KILL_TIMEOUT_S)
    words = [answer.word for answer in answers.values()]
    log(f"ended the job on {words.count('KILLED')} of {hosts} hosts, {words.count('NOT_RUNNING')} had ended before")
    return words.count("KILLED") + words.count("NOT_RUNNING") == hosts


def planned(config: JobConfig) -> list[str]:
    """Returns the commands of a start, of all slices; scripts are named, not shown."""
    if has_slices(config):
        return [command for job in slice_jobs(config, []) for command in planned(job.config)]
    scripts = ["prepare", *(["secrets"] if config.cloud.secrets else []), "start"]
    create = []
    if config.pod.hosts_file is None:
        creates = gcloud.create_queued if config.cloud.queued else gcloud.create_node
        create = [shlex.join(creates(pod_spec(config), config.cloud.zones[0], config.cloud.project))]
    pod_reach = reach(config, config.cloud.zones[0] if create else "")
    commands = [command for name in scripts for command in planned_ssh(pod_reach, name)]
    uploads = [f"# {upload_line(sources, config)}"] if (sources := to_upload(config)) else []
    return uploads + create + commands
