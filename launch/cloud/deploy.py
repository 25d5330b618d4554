"""The job on a pod in the cloud: code, environment and secrets to every host, then one start for all.

Each step can be repeated: code and environments that exist are reused, and a job that runs is not started again.
"""

import os
import secrets
import shlex
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import clock
from launch.cloud.bundle import HOST_PYTHON, Bundle, make_bundle
from launch.cloud.calls import patiently
from launch.cloud.environment import object_path, place_environment
from launch.cloud.gcloud import Reach
from launch.cloud.limits import Limit
from launch.cloud.remote import Answer, Refused, addresses, ask, ask_each, copy, first_contact_s, script
from launch.view.timed_log import Log
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.run_folder.layout import code_file
from pod_job.storage.folder import Folder

PREPARE_ROUNDS, PREPARE_PAUSE_S = 3, 10.0


@dataclass(frozen=True)
class Start:
    """A start of the job on a pod that is READY.

    Attributes:
        pod: resource name of the pod in the API, which a host deletes when the limit is reached.
        limit: the limit of the run that is reached first.
    """

    attempt: str
    pod: str
    limit: Limit | None

    @property
    def values(self) -> dict[str, str]:
        """Returns the values of `start.sh`; the limit is in whole seconds from now, as clocks differ."""
        left = "" if self.limit is None else str(max(1, round(self.limit.left_s)))
        reason = "" if self.limit is None else self.limit.reason
        return {"ATTEMPT": self.attempt, "POD": self.pod, "LEFT_S": left, "LIMIT": reason}


def deploy(config: JobConfig, overrides: Sequence[str], reach: Reach, folder: Folder, start: Start, log: Log) -> str:
    """Starts the job on every host of a pod that is READY; returns the attempt that runs, which may be an earlier one.

    Raises:
        NoAnswer: hosts that cannot be reached.
        Refused: a host that cannot be prepared, or that runs an earlier start than others.
    """
    bundle = install(config, reach, folder, log)
    if config.cloud.secrets:
        send_secrets(config, reach)
        log(f"{', '.join(config.cloud.secrets)} sent to {config.pod.hosts} hosts")
    values = common_values(config, bundle) | start.values
    hosts = ",".join(addresses(reach))
    values |= {"JOB": list(overrides), "RUN": config.storage.run_dir, "HOSTS": hosts}
    answers = expect(
        ask(reach, config.pod.hosts, script("start", values)), {"LAUNCHED", "ALREADY_RUNNING", "ALREADY_COMPLETE"}
    )
    counts = Counter(answer.word for answer in answers.values())
    log(f"{len(answers)} of {config.pod.hosts} hosts: " + ", ".join(f"{n} {word}" for word, n in counts.items()))
    attempts = {answer.detail for answer in answers.values()}
    if len(attempts) > 1:
        older = min(host for host, answer in answers.items() if answer.detail != start.attempt)
        raise Refused(older, "still runs an earlier start; `pod-job stop` first", earlier=True)
    return attempts.pop()


def install(config: JobConfig, reach: Reach, folder: Folder, log: Log) -> Bundle:
    """Brings the code and its environment to every host; returns the code. NoAnswer, Refused as `deploy`."""
    bundle, hosts = make_bundle(config.tasks), config.pod.hosts
    values = patiently(lambda: place_bundle(bundle, reach, hosts, folder), log)
    values |= patiently(lambda: place_environment(config, bundle, log), log) | common_values(config, bundle)
    prepared = prepare(reach, hosts, script("prepare", values), log)
    made = sum(answer.detail == "made" for answer in prepared.values())
    log(f"code {bundle.name[:12]} ({len(bundle.data):,} bytes) on {len(prepared)} hosts, environment made on {made}")
    return bundle


def prepare(reach: Reach, hosts: int, text: str, log: Log) -> Mapping[int, Answer]:
    """Returns the hosts' answers when all are prepared; what fails is tried again. Refused: in vain."""
    for _ in range(PREPARE_ROUNDS - 1):
        answers = ask(reach, hosts, text, first_contact_s(reach))
        failed = [answer for answer in answers.values() if answer.word != "READY"]
        if not failed:
            return answers
        log(f"worker {failed[0].host}: {failed[0].detail}; trying again")
        clock.sleep(PREPARE_PAUSE_S)
    return expect(ask(reach, hosts, text), {"READY"})


def common_values(config: JobConfig, bundle: Bundle) -> dict[str, str]:
    """Returns the scripts' values that name the code and its Python."""
    return {
        "BUNDLE": bundle.name,
        "PYTHON": config.cloud.python or "",
        "ENVIRONMENT": bundle.environment,
        "HOST_PYTHON": HOST_PYTHON,
    }


def place_bundle(bundle: Bundle, reach: Reach, hosts: int, folder: Folder) -> dict[str, str]:
    """Puts the archive into the run's bucket, else on the hosts by scp; returns BUNDLE_URL, empty for scp.

    Raises:
        NoAnswer: it could not be copied to all hosts.
    """
    if folder.url.startswith("gs://"):
        name = code_file(bundle.name)
        folder.create(name, [bundle.data])
        return {"BUNDLE_URL": object_path(folder, name)}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / bundle.file
        path.write_bytes(bundle.data)
        copy(reach, hosts, str(path), f".pod_job-{bundle.file}")
    return {"BUNDLE_URL": ""}


def send_secrets(config: JobConfig, reach: Reach) -> None:
    """Sends variables of this machine to every host over stdin. Raises JobError for one that is not set."""
    missing = [name for name in config.cloud.secrets if name not in os.environ]
    if missing:
        raise JobError(f"cloud.secrets: {missing[0]} is not set here; export it, or take it off the list")
    end = f"# end {secrets.token_hex(8)}"
    lines = [f"export {name}={shlex.quote(os.environ[name])}" for name in config.cloud.secrets]
    text = "\n".join([*lines, end, ""])
    expect(ask_each(reach, config.pod.hosts, script("secrets", {"END": end}), text.encode()), {"STORED"})


def expect(answers: Mapping[int, Answer], words: set[str]) -> Mapping[int, Answer]:
    """Returns the answers if all are among `words`; else raises Refused, naming the first worker whose is not."""
    others = {host: answer for host, answer in sorted(answers.items()) if answer.word not in words}
    for host, answer in others.items():
        detail = f"{answer.word.lower()}: {answer.detail or 'no reason given'}"
        raise Refused(host, detail, by_all=len(others) == len(answers))
    return answers
