"""The verb `doctor`: what a run in the cloud needs from this machine and the project, a line each, with the fix."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from launch import gcloud
from launch.bundle import make_bundle
from launch.options import Options
from launch.pods import list_pods
from launch.request import pod_spec
from launch.shell import call
from pod_job.config import JobConfig, load
from pod_job.errors import JobError
from pod_job.inputs import read_inputs
from pod_job.storage import open_folder

TESTED_GCLOUD = 528
KEY = Path("~/.ssh/google_compute_engine")


@dataclass(frozen=True)
class Finding:
    """One check: what was found, or what is wrong and how to mend it."""

    check: str
    well: bool
    said: str


def doctor(overrides: Sequence[str], options: Options) -> int:
    """Checks all there is to check and shows every finding; the exit status is 0 when all is well, else 2."""
    config = load(overrides)
    if options.dry_run:
        print(*CHECKS, sep="\n")
        return 0
    findings = [examine(name, check, config) for name, check in CHECKS.items()]
    if options.as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            mark = "[green]ok[/]  " if finding.well else "[red]BAD[/] "
            Console().print(f"{mark}{finding.check:<10}{escape(finding.said)}", highlight=False, soft_wrap=True)
    return 0 if all(finding.well for finding in findings) else 2


def examine(name: str, check: Callable[[JobConfig], str], config: JobConfig) -> Finding:
    try:
        return Finding(name, True, check(config))
    except JobError as error:
        return Finding(name, False, str(error))


def check_gcloud(config: JobConfig) -> str:
    found = json.loads(call(gcloud.version()).out)["Google Cloud SDK"]
    if int(found.split(".")[0]) < TESTED_GCLOUD:
        raise JobError(f"Google Cloud SDK {found} is older than the tested {TESTED_GCLOUD}; gcloud components update")
    return f"Google Cloud SDK {found}"


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


def check_key(config: JobConfig) -> str:
    key = KEY.expanduser()
    if not key.exists():
        return f"{KEY} will be made by gcloud at the first login"
    if key.stat().st_mode & 0o077:
        raise JobError(f"{KEY} can be read by others, and ssh will refuse it; chmod 600 {KEY}")
    return str(KEY)


def check_bucket(config: JobConfig) -> str:
    folder = open_folder(config.storage.run_dir)
    if not folder.url.startswith("gs://"):
        return f"{folder.url}: a folder, which every host must have mounted at this path"
    folder.check_writable()
    where = bucket_location(folder.url.removeprefix("gs://").partition("/")[0])
    regions = {zone.rpartition("-")[0] for zone in config.cloud.zones}
    far = [region for region in sorted(regions) if where and where not in (region, region.split("-")[0])]
    near = f"; not in {', '.join(far)}: traffic between regions is slow and costs" if far else ""
    return f"{folder.url} can be written" + (f", it lies in {where}{near}" if where else "")


def bucket_location(bucket: str) -> str:
    """The bucket's region or multi-region in lower case; empty when gcloud may not tell."""
    done = call(gcloud.describe_bucket(bucket), timeout_s=60)
    return json.loads(done.out).get("location", "").lower() if done.code == 0 else ""


def check_inputs(config: JobConfig) -> str:
    inputs = read_inputs(config)
    return f"{inputs.arch.family}, {len(inputs.tasks.samples):,} samples in {inputs.total_batches:,} batches"


def check_code(config: JobConfig) -> str:
    bundle = make_bundle(config.tasks.path)
    with_uv = "with the pinned packages of constraints.txt, by uv"
    hosts = f"hosts use {config.cloud.python}" if config.cloud.python else f"hosts get Python 3.11 or newer {with_uv}"
    return f"{len(bundle.data):,} bytes; {hosts}; here Python {sys.version.split()[0]}"


def check_secrets(config: JobConfig) -> str:
    missing = [name for name in config.cloud.secrets if name not in os.environ]
    if missing:
        raise JobError(f"cloud.secrets: {', '.join(missing)} not set here; export it")
    return ", ".join(config.cloud.secrets) or "none asked for (gated models need cloud.secrets=[HF_TOKEN])"


CHECKS: dict[str, Callable[[JobConfig], str]] = {
    "gcloud": check_gcloud,
    "account": check_account,
    "api": check_api,
    "request": check_request,
    "ssh key": check_key,
    "bucket": check_bucket,
    "inputs": check_inputs,
    "code": check_code,
    "secrets": check_secrets,
}
