"""The job on a pod in the cloud: pod, code, start and, if wanted, its end."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from launch.cloud import gcloud
from launch.cloud.capacity import bring_up
from launch.cloud.deploy import deploy
from launch.cloud.observe import RunningJob, follow
from launch.cloud.outcome import End, Outcome
from launch.cloud.remote import ask_briefly, script
from launch.cloud.request import pod_spec, reach
from launch.host_commands import new_attempt
from launch.view import progress, summary
from launch.view.timed_log import Log
from pod_job.commands.command_line import BAD_INPUT, DONE, FAILED
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.planning.inputs import read_inputs
from pod_job.planning.prompt_survey import survey_run
from pod_job.run_folder.metadata import read_any
from pod_job.terminal import SafeConsole

KILL_TIMEOUT_S = 60.0  # stop.sh waits up to 10 s for the job's end


def start(config: JobConfig, overrides: Sequence[str], log: Log) -> RunningJob:
    """Checks the inputs, brings the pod up and starts the job on all its hosts, or finds it running there."""
    inputs = read_inputs(config)
    survey_run(inputs)
    pod = bring_up(config, log)
    if pod.workers != config.pod.hosts:
        raise JobError(
            f"pod.hosts={config.pod.hosts}, but {pod.name} has {pod.workers} workers; set pod.hosts={pod.workers} "
            f"and a mesh to match, or another pod.accelerator_type"
        )
    pod_reach = reach(config, pod.zone)
    attempt = deploy(config, overrides, pod_reach, inputs.folder, new_attempt(), log)
    return RunningJob(pod_reach, config.pod.hosts, inputs.folder, attempt, inputs.total_batches)


def until_end(config: JobConfig, job: RunningJob, log: Log, began: float) -> Outcome:
    """Shows the hosts' progress until the attempt has ended."""
    with progress.Screen(SafeConsole(stderr=True), began) as screen:
        return follow(
            job, config.cloud.stall_s, lambda statuses: screen.show(progress.bars(statuses, job.batches)), log
        )


def finish(config: JobConfig, job: RunningJob | None, outcome: Outcome, elapsed_s: float, as_json: bool) -> int:
    """Shows the dataset, or why there is none; returns the exit status of the verb. `job`: None if it did not start."""
    if job is None or outcome.end is not End.done:
        show_outcome(outcome, SafeConsole(stderr=True))
        return BAD_INPUT if outcome.cause is not None and outcome.cause.user_error else FAILED
    statuses = [status for status in job.statuses() if status is not None]
    logs = f"{config.storage.run_dir.rstrip('/')}/logs"
    done = summary.summarise(config, read_any(job.folder), statuses, elapsed_s, logs)
    if as_json:
        print(json.dumps(asdict(done), indent=2))
    else:
        summary.show(done, SafeConsole())
    return DONE if done.complete else FAILED


def show_outcome(outcome: Outcome, screen: Console) -> None:
    """Prints the cause in one line and, unless the user's input is at fault, the last lines of that host's log."""
    cause = outcome.cause
    error = f"error: host {cause.host}: {cause.reason}" if cause else f"error: the pod was taken away ({outcome.node})"
    lines = [] if cause is None or cause.user_error else [f"  {line}" for line in outcome.lines]
    for line in [error, *lines]:
        screen.print(line, highlight=False, markup=False, soft_wrap=True)


def kill(job: RunningJob, log: Log) -> bool:
    """Ends the job's processes on every host, at once; returns whether none runs on any host now."""
    answers = ask_briefly(job.reach, script("stop", {"SIGNAL": "KILL"}), KILL_TIMEOUT_S)
    words = [answer.word for answer in answers.values()]
    log(f"ended the job on {words.count('KILLED')} of {job.hosts} hosts, {words.count('NOT_RUNNING')} had ended before")
    return words.count("KILLED") + words.count("NOT_RUNNING") == job.hosts


def planned(config: JobConfig) -> list[str]:
    """Returns the gcloud commands of a start; scripts are named, not shown."""
    spec, zone = pod_spec(config), config.cloud.zones[0]
    create = gcloud.create_queued if config.cloud.queued else gcloud.create_node
    pod_reach = reach(config, zone)
    scripts = ["prepare.sh", *(["secrets.sh"] if config.cloud.secrets else []), "start.sh"]
    commands = [create(spec, zone, config.cloud.project)]
    commands += [gcloud.ssh(pod_reach, "all", f"... # launch/cloud/scripts/{name}") for name in scripts]
    return [shlex.join(command) for command in commands]
