"""`pod-job stop`: asks the job to end after the batches that it holds."""

import json
import shlex
from collections.abc import Sequence

from launch.cloud import gcloud
from launch.cloud.pods import find_pods
from launch.cloud.remote import ask, script
from launch.cloud.request import pod_name, reach
from launch.options import Options
from pod_job.config.load import load
from pod_job.errors import JobError


def stop(overrides: Sequence[str], options: Options) -> int:
    """Asks the job on every host to end after the batches it holds; the pod stays."""
    config = load(overrides)
    pod = next((pod for pod in find_pods(pod_name(config), config.cloud.project) if pod.ready), None)
    if pod is None:
        raise JobError(f"{pod_name(config)} is not READY in any zone; there is nothing to stop")
    text = script("stop", {"SIGNAL": "TERM"})
    if options.dry_run:
        print(shlex.join(gcloud.ssh(reach(config, pod.zone), "all", f"... # {len(text)} characters: stop.sh")))
        return 0
    answers = ask(reach(config, pod.zone), pod.workers, text)
    if options.as_json:
        print(json.dumps({host: answer.word for host, answer in sorted(answers.items())}))
    else:
        for host, answer in sorted(answers.items()):
            print(f"host {host}: {answer.word} {answer.detail}".rstrip())
    return 0
