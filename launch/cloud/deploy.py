"""The job on a pod in the cloud: code, environment and secrets to every host, then one start for all.

Each step can be repeated: code and environments that exist are reused, and a job that runs is not started again.
"""

import os
import secrets
import shlex
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from launch.cloud import gcloud
from launch.cloud.bundle import HOST_PYTHON, Bundle, make_bundle
from launch.cloud.gcloud import Reach
from launch.cloud.pods import gcloud_error
from launch.cloud.remote import Answer, ask, ask_each, script
from launch.shell import call
from launch.view.timed_log import Log
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.run_folder.layout import code_file
from pod_job.storage.folder import Folder


def deploy(config: JobConfig, overrides: Sequence[str], reach: Reach, folder: Folder, attempt: str, log: Log) -> str:
    """Starts the job on every host of a pod that is READY; returns the attempt that runs, which may be an earlier one.

    Raises:
        JobError: a host that cannot be reached or prepared, by its index; hosts that run different attempts.
    """
    bundle = make_bundle(config.tasks)
    values = place_bundle(bundle, reach, folder) | common_values(config, bundle)
    prepared = expect(ask(reach, config.pod.hosts, script("prepare", values)), {"READY"})
    made = sum(answer.detail == "made" for answer in prepared.values())
    log(f"code {bundle.name[:12]} ({len(bundle.data):,} bytes) on {len(prepared)} hosts, environment made on {made}")
    if config.cloud.secrets:
        send_secrets(config, reach)
        log(f"{', '.join(config.cloud.secrets)} sent to {config.pod.hosts} hosts")
    values = common_values(config, bundle) | {"ATTEMPT": attempt, "JOB": list(overrides)}
    values |= {"RUN": config.storage.run_dir}
    answers = expect(
        ask(reach, config.pod.hosts, script("start", values)), {"LAUNCHED", "ALREADY_RUNNING", "ALREADY_COMPLETE"}
    )
    counts = Counter(answer.word for answer in answers.values())
    log(f"{len(answers)} of {config.pod.hosts} hosts: " + ", ".join(f"{n} {word}" for word, n in counts.items()))
    attempts = {answer.detail for answer in answers.values()}
    if len(attempts) > 1:
        older = [host for host, answer in answers.items() if answer.detail != attempt]
        raise JobError(f"worker {', '.join(map(str, older))} still runs an earlier start; `pod-job stop` first")
    return attempts.pop()


def common_values(config: JobConfig, bundle: Bundle) -> dict[str, str]:
    """Returns the scripts' values that name the code and its Python."""
    return {
        "BUNDLE": bundle.name,
        "PYTHON": config.cloud.python or "",
        "ENVIRONMENT": bundle.environment,
        "HOST_PYTHON": HOST_PYTHON,
    }


def place_bundle(bundle: Bundle, reach: Reach, folder: Folder) -> dict[str, str]:
    """Puts the archive into the run's bucket, else on the hosts by scp; returns BUNDLE_URL, empty for scp."""
    if folder.url.startswith("gs://"):
        name = code_file(bundle.name)
        folder.create(name, [bundle.data])
        bucket, _, prefix = folder.url.removeprefix("gs://").partition("/")
        object_name = quote(f"{prefix}/{name}".lstrip("/"), safe="")
        return {"BUNDLE_URL": f"/storage/v1/b/{bucket}/o/{object_name}?alt=media"}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / bundle.file
        path.write_bytes(bundle.data)
        done = call(gcloud.scp(reach, str(path), f".pod_job-{bundle.file}"))
    if done.code:
        raise JobError(f"the code could not be copied to {reach.name}: {gcloud_error(done.err)}")
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
    """Returns the answers if all are among `words`; else raises JobError, naming the first worker whose is not."""
    for host, answer in sorted(answers.items()):
        if answer.word not in words:
            raise JobError(f"worker {host}: {answer.word.lower()}: {answer.detail or 'no reason given'}")
    return answers
