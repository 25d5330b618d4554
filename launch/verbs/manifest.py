"""Writes a manifest with which another engine starts the job: JobSet on GKE (as xpk makes them), SkyPilot or systemd.

For JobSet and SkyPilot it has the slice's topology, the node selectors, the environment of the hosts, and which ends
are started again. The engine owns the slice and its cost: `watch`, `gc` and `down` do not see it; `status`, `logs` and
`verify` take the run folder as ever. For systemd it is a unit that runs `watch` on a small VM, with no workstation.
"""

import getpass
from argparse import ArgumentParser, Namespace
from pathlib import Path

import yaml

from launch.job_config import config_to_start
from launch.manifests.job_facts import job_facts
from launch.manifests.jobset import SECRET, jobset
from launch.manifests.skypilot import skypilot
from launch.manifests.systemd import Watcher, steps, unit
from launch.verbs.arguments import add_accept_identity, start_overrides
from pod_job.commands.command_line import DONE, Command, add_overrides
from pod_job.errors import JobError

EXAMPLES = (
    "--for jobset --image europe-docker.pkg.dev/p/r/pod-job experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run",
    "--for skypilot experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run cloud.zones=us-west4-a",
    "--for systemd experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run cloud.zones=us-west4-a",
)
ENGINES = ("jobset", "skypilot", "systemd")
OPTIONS = {"jobset": ("image", "service_account"), "systemd": ("user", "checkout")}
"""Engine -> the options that are for it alone."""


class Dumper(yaml.SafeDumper):
    """Writes a text of several lines as such."""


def block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, block)


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument(
        "--for", dest="engine", choices=("jobset", "skypilot", "systemd"), required=True, help="the engine"
    )
    parser.add_argument("--image", help="with jobset: the image made from tools/docker/Dockerfile, in a registry")
    parser.add_argument("--service-account", help="with jobset: of Kubernetes, which may read and write the bucket")
    parser.add_argument("--user", help="with systemd: account on the VM that watches; default: the name of yours")
    parser.add_argument("--checkout", help="with systemd: this program on that VM; default: /home/USER/pod-job")
    add_accept_identity(parser)


def manifest(options: Namespace) -> int:
    """Prints the manifest. Raises JobError for a job that the engine could not run."""
    overrides = start_overrides(options)
    refuse_options_of_others(options)
    if options.engine == "systemd":
        config, user = config_to_start(overrides), options.user or getpass.getuser()
        text = unit(config, overrides, Watcher(user, Path(options.checkout or f"/home/{user}/pod-job")))
        print(*(f"# {step}" for step in steps(config)), text, sep="\n", end="")
        return DONE
    job = job_facts(config_to_start(overrides), overrides)
    secrets = job.config.cloud.secrets
    if options.engine == "jobset":
        if options.image is None:
            raise JobError("--image is not given; build tools/docker/Dockerfile, push it, and give its name")
        values = jobset(job, options.image, options.service_account)
        literals = " ".join(f"--from-literal={name}=$" + name for name in secrets)
        before = [f"kubectl create secret generic {SECRET} {literals}"] if secrets else []
        first_steps = [*before, "kubectl apply -f FILE"]
    else:
        values = skypilot(job)
        first_steps = [" ".join(["sky jobs launch", *(f"--secret {name}" for name in secrets), "FILE"])]
    print(*(f"# {step}" for step in first_steps), sep="\n")
    print(yaml.dump(values, Dumper=Dumper, sort_keys=False, width=1000), end="")
    return DONE


def refuse_options_of_others(options: Namespace) -> None:
    """Raises JobError for an option that is for another engine than the one asked for."""
    for engine, names in OPTIONS.items():
        given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None]
        if given and engine != options.engine:
            raise JobError(f"{' and '.join(given)}: only for {engine}, not for {options.engine}; leave it out")


COMMAND = Command("manifest", __doc__, EXAMPLES, add_arguments, manifest)
