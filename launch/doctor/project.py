"""Checks of gcloud, the account and the project: what it may ask for, and where that is to be had."""

import os
from concurrent.futures import ThreadPoolExecutor

from launch.cloud import gcloud
from launch.cloud.calls import gcloud_error
from launch.cloud.iam import NotChecked, Sdk, Settings, asked
from launch.cloud.pods import list_pods
from launch.cloud.request import pod_spec
from launch.shell import call
from pod_job.config.cloud import Capacity
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.preflight.tpu_facts import read_accelerator_type

TESTED_GCLOUD = 528
QUOTA_PAGE = "console.cloud.google.com/iam-admin/quotas?service=tpu.googleapis.com"
# https://cloud.google.com/tpu/docs/quota
QUOTA_KINDS = {
    **{Capacity.spot: "preemptible", Capacity.flex_start: "preemptible"},
    **{Capacity.on_demand: "on-demand", Capacity.reserved: "reserved"},
}


def check_gcloud(config: JobConfig) -> str:
    version = asked(gcloud.version(), Sdk).version
    first = version.partition(".")[0]
    if not first.isdecimal():
        raise NotChecked(f"Google Cloud SDK {version[:100]!r} is no version that can be compared with {TESTED_GCLOUD}")
    if int(first) < TESTED_GCLOUD:
        raise JobError(f"Google Cloud SDK {version} is older than the tested {TESTED_GCLOUD}; gcloud components update")
    return f"Google Cloud SDK {version}"


def check_account(config: JobConfig) -> str:
    core = asked(gcloud.settings(), Settings).core
    if not core.account and not os.environ.get("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE"):
        raise JobError("gcloud has no account; run `gcloud auth login`")
    project = config.cloud.project or core.project
    if not project:
        raise JobError("no project is set; give cloud.project=... or run `gcloud config set project ...`")
    return f"{core.account or 'an access token'}, project {project}"


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
