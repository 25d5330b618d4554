"""Checks what a run in the cloud needs from this machine and the project; prints one line a check, with the fix."""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata

from rich.markup import escape

from launch.cloud import gcloud
from launch.cloud.bundle import make_bundle, pinned_versions
from launch.cloud.calls import gcloud_error
from launch.cloud.checks import check_image, check_key, check_limits, check_paths, check_secrets, check_shape
from launch.cloud.iam import NotChecked, check_access
from launch.cloud.pods import Pod, find_pods, list_pods
from launch.cloud.remote import ask_briefly, script
from launch.cloud.request import pod_name, pod_spec, reach
from launch.job_config import config_to_start
from launch.shell import call
from launch.verbs.arguments import add_dry_run
from pod_job.commands.command_line import BAD_INPUT, DONE, Command, add_json, add_overrides
from pod_job.config.cloud import Capacity
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.planning.inputs import read_inputs
from pod_job.planning.prompt_survey import survey_run
from pod_job.planning.task_index import ESTIMATED
from pod_job.preflight.tpu_facts import read_accelerator_type
from pod_job.storage.open import open_folder
from pod_job.terminal import SafeConsole

EXAMPLES = ("experiment=v5e64 storage.run_dir=gs://my-bucket/qwen 'cloud.zones=[us-west4-a]'",)
TESTED_GCLOUD = 528
QUOTA_PAGE = "console.cloud.google.com/iam-admin/quotas?service=tpu.googleapis.com"
# https://cloud.google.com/tpu/docs/quota
QUOTA_KINDS = {
    **{Capacity.spot: "preemptible", Capacity.flex_start: "preemptible"},
    **{Capacity.on_demand: "on-demand", Capacity.reserved: "reserved"},
}
VERSIONS_TIMEOUT_S = 60.0
AT_ONCE = 4  # checks; each waits for gcloud most of the time


@dataclass(frozen=True)
class Finding:
    """Result of one check: what it found, or what is wrong and the fix. `checked`: False where it could not look."""

    check: str
    well: bool
    said: str
    checked: bool = True

    @property
    def mark(self) -> str:
        return "[red]BAD[/] " if not self.well else "[green]ok[/]  " if self.checked else "[yellow]WARN[/]"


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    add_dry_run(parser, "print the names of the checks, make none")
    add_json(parser, "the findings")


def doctor(options: Namespace) -> int:
    """Makes all checks and shows every finding; the exit status is 2 where one is bad."""
    config = config_to_start(options.overrides)
    if options.dry_run:
        print(*CHECKS, sep="\n")
        return DONE
    findings = each_cause_once(all_findings(config))
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            line = f"{finding.mark} {finding.check:<10}{escape(finding.said)}"
            SafeConsole().print(line, highlight=False, soft_wrap=True)
    return DONE if all(finding.well for finding in findings) else BAD_INPUT


def all_findings(config: JobConfig) -> list[Finding]:
    """Makes all checks, those first that others need; what needs one that failed is not made."""
    found: dict[str, Finding] = {}
    left = list(CHECKS)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while left:
            ready = [name for name in left if set(NEEDS.get(name, ())) <= found.keys()]
            made = pool.map(partial(examine, config=config, found=dict(found)), ready)
            found |= {finding.check: finding for finding in made}
            left = [name for name in left if name not in found]
    return [found[name] for name in CHECKS]


def examine(name: str, config: JobConfig, found: Mapping[str, Finding]) -> Finding:
    failed = [needed for needed in NEEDS.get(name, ()) if not (found[needed].well and found[needed].checked)]
    if failed:
        return Finding(name, True, f"not checked: it needs {failed[0]}", checked=False)
    try:
        return Finding(name, True, CHECKS[name](config))
    except NotChecked as error:
        return Finding(name, True, f"not checked: {error}", checked=False)
    except JobError as error:
        return Finding(name, False, str(error))


def each_cause_once(findings: Sequence[Finding]) -> list[Finding]:
    """Returns the findings with every error at the first check that met it."""
    first: dict[str, str] = {}
    shown = []
    for finding in findings:
        met = finding.check if finding.well else first.setdefault(finding.said, finding.check)
        once = Finding(finding.check, True, f"not checked: it needs {met}", checked=False)
        shown.append(finding if met == finding.check else once)
    return shown


def check_gcloud(config: JobConfig) -> str:
    version = json.loads(call(gcloud.version()).out)["Google Cloud SDK"]
    if int(version.split(".")[0]) < TESTED_GCLOUD:
        raise JobError(f"Google Cloud SDK {version} is older than the tested {TESTED_GCLOUD}; gcloud components update")
    return f"Google Cloud SDK {version}"


def check_account(config: JobConfig) -> str:
    core = json.loads(call(gcloud.settings()).out).get("core", {})
    if not core.get("account") and not os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"):
        raise JobError("gcloud has no account; run `gcloud auth login`")
    project = config.cloud.project or core.get("project")
    if not project:
        raise JobError("no project is set; give cloud.project=... or run `gcloud config set project ...`")
    return f"{core.get('account', 'an access token')}, project {project}"


def check_api(config: JobConfig) -> str:
    pods = list_pods(config.cloud.project)
    return f"the TPU API answers; {len(pods)} pods in the project"


def check_request(config: JobConfig) -> str:
    spec = pod_spec(config)
    return f"{spec.name}: {spec.accelerator_type} ({spec.capacity.value}), zones {', '.join(config.cloud.zones)}"


def check_zones(config: JobConfig) -> str:
    """Checks that each zone offers such pods at all; only a request shows whether one is free."""
    spec = pod_spec(config)
    commands = [gcloud.describe_accelerator(spec.accelerator_type, z, config.cloud.project) for z in config.cloud.zones]
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(call, commands))
    for zone, answer in zip(config.cloud.zones, answers, strict=True):
        if "NOT_FOUND" in answer.err:
            raise JobError(
                f"{zone} has no {spec.accelerator_type}; take it off cloud.zones, or see "
                f"`gcloud compute tpus accelerator-types list --zone={zone}`"
            )
        if answer.code:
            raise JobError(f"{zone}: {gcloud_error(answer.err)}")
    return f"{spec.accelerator_type} is offered in {', '.join(config.cloud.zones)}"


def check_quota(config: JobConfig) -> str:
    """Returns the quota that is needed. A request refused for lack of it is among the queued resources."""
    spec = pod_spec(config)
    kind = QUOTA_KINDS[spec.capacity]
    needed = f"{read_accelerator_type(spec.accelerator_type).chips} chips of {kind} quota"
    for pod in list_pods(config.cloud.project):
        if "quota" in (pod.error or "").lower():
            raise JobError(f"{pod.zone} refused {pod.name}: {pod.error}; ask for {needed} there, {QUOTA_PAGE}")
    return f"{needed} needed in a zone (0 unless asked for, {QUOTA_PAGE}); no request refused for it so far"


def check_bucket(config: JobConfig) -> str:
    folder = open_folder(config.storage.run_dir)
    if not folder.url.startswith("gs://"):
        return f"{folder.url}: a folder, which every host must have mounted at this path"
    folder.check_writable()
    where = bucket_location(folder.url.removeprefix("gs://").partition("/")[0])
    regions = {zone.rpartition("-")[0] for zone in config.cloud.zones}
    far = [region for region in sorted(regions) if where and where not in (region, region.split("-")[0])]
    near = f"; not in {', '.join(far)}: traffic between regions is slow and costs; use a bucket there" if far else ""
    return f"{folder.url} can be written" + (f", it lies in {where}{near}" if where else "")


def bucket_location(bucket: str) -> str:
    """Returns the bucket's region or multi-region in lower case; empty where gcloud may not read it."""
    done = call(gcloud.describe_bucket(bucket), timeout_s=60)
    return json.loads(done.out).get("location", "").lower() if done.code == 0 else ""


def check_inputs(config: JobConfig) -> str:
    inputs = read_inputs(config, reading=ESTIMATED)
    survey_run(inputs)
    return f"{inputs.arch.family}, {len(inputs.tasks.samples):,} samples in {inputs.total_batches:,} batches"


def check_code(config: JobConfig) -> str:
    return f"{len(make_bundle(config.tasks).data):,} bytes to send, sources, configuration and small task files"


def check_versions(config: JobConfig) -> str:
    """Compares Python and jax here with those of the hosts of a READY pod; without one, with those they will get."""
    here = {name: installed(name) for name in ("jax", "libtpu")}
    python = ".".join(map(str, sys.version_info[:2]))
    this_machine = f"here Python {python}, jax {here['jax']}"
    pod = next((pod for pod in find_pods(pod_name(config), config.cloud.project) if pod.ready), None)
    if pod is not None and (by_host := host_versions(config, pod)):
        if len(set(by_host.values())) > 1:
            raise JobError(f"hosts differ in Python and jax: {by_host}; `pod-job down`, then `pod-job up`")
        versions = next(iter(by_host.values()))
        if versions.split()[-1] != here["jax"]:
            raise JobError(f"hosts have Python and jax {versions}, {this_machine}; install constraints.txt on both")
        return f"hosts have Python and jax {versions}, {this_machine}"
    if config.cloud.python is not None:
        return f"{this_machine}; hosts use {config.cloud.python}, whose versions show once the pod is READY"
    pinned = pinned_versions()
    wrong = [name for name in here if here[name] not in (None, pinned.get(name))]
    if wrong:
        raise JobError(
            f"{wrong[0]} {here[wrong[0]]} here, {pinned.get(wrong[0])} on the hosts: what is compiled here is not what "
            "runs there; pip install -c constraints.txt 'jax[tpu]'"
        )
    return f"{this_machine}; hosts get Python {python} and jax {pinned['jax']} by uv, with constraints.txt"


def host_versions(config: JobConfig, pod: Pod) -> dict[int, str]:
    """Returns host -> its Python and jax, for the hosts whose environment has been made."""
    values = {"PYTHON": config.cloud.python or "", "ENVIRONMENT": make_bundle(config.tasks).environment}
    answers = ask_briefly(reach(config, pod.zone), script("versions", values), VERSIONS_TIMEOUT_S)
    return {host: answer.detail for host, answer in sorted(answers.items()) if answer.word == "VERSIONS"}


def installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_access_of_hosts(config: JobConfig) -> str:
    """Asks IAM whether the hosts' service account can read and write the run's bucket."""
    if not config.storage.run_dir.startswith("gs://"):
        return "no bucket"
    project = config.cloud.project or json.loads(call(gcloud.settings()).out).get("core", {}).get("project")
    bucket = config.storage.run_dir.removeprefix("gs://").partition("/")[0]
    return check_access(bucket, config.cloud.service_account, project)


CHECKS: dict[str, Callable[[JobConfig], str]] = {
    "gcloud": check_gcloud,
    "account": check_account,
    "api": check_api,
    "request": check_request,
    "shape": check_shape,
    "image": check_image,
    "zones": check_zones,
    "quota": check_quota,
    "ssh key": lambda config: check_key(),
    "bucket": check_bucket,
    "hosts": check_access_of_hosts,
    "paths": check_paths,
    "inputs": check_inputs,
    "code": check_code,
    "versions": check_versions,
    "secrets": check_secrets,
    "limits": check_limits,
}
NEEDS = {
    "account": ["gcloud"],
    "api": ["gcloud", "account"],
    "zones": ["api", "request"],
    "quota": ["api", "request"],
    "hosts": ["gcloud", "account"],
    "versions": ["api"],
}
"""Checks without which another one cannot look."""

COMMAND = Command("doctor", __doc__, EXAMPLES, add_arguments, doctor)
