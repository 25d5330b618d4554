"""Asks the job on every host to end after the batches it holds; the pod stays."""

import json
from argparse import ArgumentParser, Namespace
from dataclasses import replace

from launch.cloud.own_hosts import reaches
from launch.cloud.remote import ask, planned_ssh, script
from launch.cloud.request import pod_name, reach
from launch.job_config import pods_of_run
from launch.verbs.arguments import add_dry_run, add_run
from pod_job.commands.command_line import DONE, Command, add_json
from pod_job.config.schema import PodKind
from pod_job.errors import JobError

EXAMPLES = ("gs://my-bucket/run", "experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run --dry-run")


def add_arguments(parser: ArgumentParser) -> None:
    add_run(parser)
    add_dry_run(parser)
    add_json(parser, "the hosts' answers")


def stop(options: Namespace) -> int:
    config, pods = pods_of_run(options.overrides)
    if config.pod.kind is not PodKind.tpu:
        raise JobError("pod.kind=local has no pod in the cloud; stop the job with Ctrl-C where it was started")
    ready, text = [pod for pod in pods if pod.ready], script("stop", {"SIGNAL": "TERM", "RUN": config.storage.run_dir})
    if not ready:
        raise JobError(f"{pod_name(config)} is not READY in any zone; there is nothing to stop")
    own = config.pod.hosts_file is not None
    places = reaches(config) if own else [replace(reach(config, pod.zone), name=pod.name) for pod in ready]
    if options.dry_run:
        print(*(command for hosts in places for command in planned_ssh(hosts, "stop")), sep="\n")
        return DONE
    for pod, hosts in zip(ready, places, strict=True):
        answers = ask(hosts, pod.workers, text)
        if options.json:
            print(json.dumps({host: answer.word for host, answer in sorted(answers.items())}))
            continue
        where = f"{pod.name} " if len(ready) > 1 else ""
        for host, answer in sorted(answers.items()):
            print(f"{where}host {host}: {answer.word} {answer.detail}".rstrip())
    return DONE


COMMAND = Command("stop", __doc__, EXAMPLES, add_arguments, stop)
