"""Hosts that the user has started, as pods: always READY, never created or deleted.

What the launcher does with a pod in the cloud holds for them too, but for two things: a start that needs another pod
is made on the same hosts after a while, and in place of a deletion the hosts are cleared: the job is ended and all that
the launcher keeps there is removed.
"""

from collections.abc import Mapping

from launch import clock
from launch.cloud.gcloud import Reach
from launch.cloud.pods import Pod
from launch.cloud.remote import ask_briefly, script
from launch.cloud.request import pod_name, reach
from launch.cloud.tpu_api import Endpoint, Node
from launch.hosts_file import groups_of
from launch.slices import pod_configs
from launch.view.timed_log import Log
from pod_job.config.schema import JobConfig

CLEAR_TIMEOUT_S = 90.0
LEAVING_S = 20.0  # for a job that is done to end by itself
AGAIN_S = 60.0  # until hosts that were lost are tried again: about as long as a machine takes to start


def own_pods(config: JobConfig) -> list[Pod]:
    """Returns the hosts of the file as pods, one for each slice. JobError for a file that is wrong or does not fit."""
    return [own_pod(of_slice) for of_slice in pod_configs(config)]


def own_pod(config: JobConfig) -> Pod:
    """Returns the hosts of one slice as its pod."""
    (group,) = groups_of(config)
    node = Node(
        name="",
        state="READY",
        accelerator_type=config.pod.accelerator_type or "",
        network_endpoints=[Endpoint(str(host)) for host in group.hosts],
    )
    return Pod(pod_name(config), "", node, None)


def reaches(config: JobConfig) -> list[Reach]:
    """Returns the way to the hosts of each slice."""
    return [reach(of_slice, "") for of_slice in pod_configs(config)]


def wait_for_hosts(log: Log) -> None:
    """Waits before hosts that were lost are tried again."""
    log(f"trying the same hosts again in {AGAIN_S:.0f} s")
    clock.sleep(AGAIN_S)


def clear(config: JobConfig, log: Log, leaving_s: float = LEAVING_S) -> dict[str, str]:
    """Ends the job on all hosts of the file and removes what the launcher keeps there.

    Returns the hosts that were not cleared, and why.

    Args:
        leaving_s: for how long the job may still end by itself.
    """
    uncleared: dict[str, str] = {}
    total = 0
    values = {"LEAVING_S": f"{leaving_s:.0f}", "RUN": config.storage.run_dir}
    for way in reaches(config):
        answers = ask_briefly(way, script("clear", values), CLEAR_TIMEOUT_S)
        cleared = {host for host, answer in answers.items() if answer.word == "CLEARED"}
        for number, host in enumerate(way.hosts):
            if number not in cleared:
                uncleared[str(host)] = answers[number].detail if number in answers else "no answer"
        total += len(way.hosts)
    log(f"nothing of the job is left on {total - len(uncleared)} of {total} hosts of {config.pod.hosts_file}")
    return uncleared


def not_cleared(config: JobConfig, uncleared: Mapping[str, str]) -> str:
    """Returns the hosts that were not cleared, with the reasons and the fix, in one line."""
    reasons = ", ".join(f"{host} ({reason})" for host, reason in uncleared.items())
    return (
        f"pod.hosts_file={config.pod.hosts_file}: not cleared: {reasons}; the job may go on there, and ~/.pod_job is "
        "left: `pod-job down` with the same arguments clears it"
    )


def staying(config: JobConfig, words: str) -> str:
    """Returns in one line that the job goes on, and how it is ended. `words`: the overrides."""
    return f"a job that runs on the hosts of {config.pod.hosts_file} goes on; end it: pod-job down {words}"
