"""The verb `watch`: from nothing to a finished dataset, through preemptions, and no pod left behind.

It keeps nothing of its own: killed and started again, it finds the pod, the job and the batches that are done.
"""

import time
from collections.abc import Sequence

from rich.console import Console

from launch.cloud.capacity import take_down
from launch.cloud.job import finish, kill, planned, show_outcome, start, until_end
from launch.cloud.outcome import End, Outcome
from launch.cloud.pods import find_pods
from launch.cloud.request import pod_name, pod_spec
from launch.options import Options
from launch.preflight import preflight_first
from launch.verbs.run import run_here
from launch.view.timed_log import Log, timed_log
from pod_job.config.load import load
from pod_job.config.schema import JobConfig, PodKind


def watch(overrides: Sequence[str], options: Options) -> int:
    """Runs the job to its end; the pod is deleted when the dataset is there or the job has failed.

    A pod taken away is created again, and a job that lost hosts started again, each as often as its own budget
    (cloud.preemptions, cloud.failures) allows. A host that says what is wrong ends the job: the next start would too.
    A local pod is watched in the same way; nobody takes it away.
    """
    config = load(overrides)
    if config.pod.kind is PodKind.local:
        return run_here(config, overrides, options, config.cloud.failures)
    pod_spec(config)
    if options.dry_run:
        print(*planned(config), sep="\n")
        return 0
    began = time.monotonic()
    log = timed_log(began)
    preflight_first(overrides, options, log)
    lost = dict.fromkeys((End.preempted, End.lost), 0)
    budget = {End.preempted: config.cloud.preemptions, End.lost: config.cloud.failures}
    while True:
        started = start(config, overrides, log)
        outcome = until_end(config, started, log, began)
        if outcome.end not in lost:
            break
        lost[outcome.end] += 1
        log(f"{describe(outcome)}; {lost[outcome.end]} of {budget[outcome.end]} {BUDGETS[outcome.end]} used")
        if lost[outcome.end] > budget[outcome.end]:
            log(f"giving up: {BUDGETS[outcome.end]} is spent")
            break
        if outcome.end is End.lost:
            show_outcome(outcome, Console(stderr=True))
            kill(started.reach, config.pod.hosts, log)
    leave(config, log)
    return finish(config, started, outcome, time.monotonic() - began, options)


BUDGETS = {End.preempted: "cloud.preemptions", End.lost: "cloud.failures"}


def describe(outcome: Outcome) -> str:
    if outcome.cause is not None:
        return f"host {outcome.cause.host} {outcome.cause.reason}"
    return f"the pod was taken away ({outcome.node})"


def leave(config: JobConfig, log: Log) -> None:
    """Deletes the pod."""
    take_down(find_pods(pod_name(config), config.cloud.project), config, log)
