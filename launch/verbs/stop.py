"""Asks the job on every host to end after the batches it holds; the pod stays."""

import json
import shlex
from argparse import ArgumentParser, Namespace

from launch.cloud import gcloud
from launch.cloud.pods import find_pods
from launch.cloud.remote import ask, script
from launch.cloud.request import pod_name, reach
from launch.job_config import config_of_run
from launch.verbs.arguments import add_dry_run, add_run
from pod_job.commands.command_line import DONE, Command, add_json
from pod_job.errors import JobError

EXAMPLES = ("gs://my-bucket/qwen", "experiment=v5e64 storage.run_dir=gs://my-bucket/qwen --dry-run")


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    add_dry_run(parser)
    add_json(parser, "the hosts' answers")


def stop(options: Namespace) -> int:
    config = config_of_run(options.overrides)
    pod = next((pod for pod in find_pods(pod_name(config), config.cloud.project) if pod.ready), None)
    if pod is None:
        raise JobError(f"{pod_name(config)} is not READY in any zone; there is nothing to stop")
    text = script("stop", {"SIGNAL": "TERM"})
    if options.dry_run:
        print(shlex.join(gcloud.ssh(reach(config, pod.zone), "all", f"... # {len(text)} characters: stop.sh")))
        return DONE
    answers = ask(reach(config, pod.zone), pod.workers, text)
    if options.json:
        print(json.dumps({host: answer.word for host, answer in sorted(answers.items())}))
    else:
        for host, answer in sorted(answers.items()):
            print(f"host {host}: {answer.word} {answer.detail}".rstrip())
    return DONE


COMMAND = Command("stop", __doc__, EXAMPLES, add_arguments, stop)
