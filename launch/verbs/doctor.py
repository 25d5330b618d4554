"""Checks what a run in the cloud needs from this machine and the project; prints one line a check, with the fix.

Where one is bad the exit status is 2, as for bad input. With --measure-bucket, all hosts of the READY pod write objects
into the run folder at once, read them and remove them; `plan` then counts with that rate.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, replace

from rich.markup import escape

from launch.cloud.bundle import make_bundle
from launch.cloud.checks import (
    check_hosts_file,
    check_image,
    check_key,
    check_limits,
    check_paths,
    check_secrets,
    check_shape,
)
from launch.cloud.uploads import sent_along
from launch.doctor.answer import check_answer
from launch.doctor.bucket import check_access_of_hosts, check_bucket, check_folder
from launch.doctor.bucket_rate import check_rate, measure_rate
from launch.doctor.findings import Check, all_findings, each_cause_once
from launch.doctor.project import check_account, check_api, check_gcloud, check_quota, check_request, check_zones
from launch.doctor.versions import check_versions
from launch.job_config import config_to_start
from launch.verbs.arguments import add_dry_run
from pod_job.commands.command_line import BAD_INPUT, DONE, Command, add_json, add_overrides
from pod_job.config.schema import JobConfig
from pod_job.planning.inputs import read_inputs
from pod_job.planning.prompt_survey import survey_run
from pod_job.planning.task_index import ESTIMATED
from pod_job.terminal import SafeConsole

EXAMPLES = (
    "experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run cloud.zones=us-west4-a",
    "experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run cloud.zones=us-west4-a --measure-bucket",
)


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument(
        "--measure-bucket", action="store_true", help="measure the bucket's rate from all hosts of the READY pod"
    )
    add_dry_run(parser, "print the names of the checks, make none")
    add_json(parser, "the findings")


def doctor(options: Namespace) -> int:
    """Makes all checks and shows every finding; the exit status is 2 where one is bad."""
    config = config_to_start(options.overrides)
    checks = CHECKS if config.pod.hosts_file is None else CHECKS_OF_OWN_HOSTS
    checks = [measuring(check, checks) for check in checks] if options.measure_bucket else checks
    if options.dry_run:
        print(*(check.name for check in checks), sep="\n")
        return DONE
    findings = each_cause_once(all_findings(checks, config))
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            line = f"{finding.mark} {finding.check:<10}{escape(finding.said)}"
            SafeConsole().print(line, highlight=False, soft_wrap=True)
    return DONE if all(finding.well for finding in findings) else BAD_INPUT


def measuring(check: Check, checks: Sequence[Check]) -> Check:
    """Returns the check; in the place of the one that looks for an earlier rate, the one that measures."""
    if check.look is not check_rate:
        return check
    needs = {"api", "request", "bucket", "code", "hosts file", "answer"} & {other.name for other in checks}
    return replace(check, look=measure_rate, needs=tuple(sorted(needs)))


def check_inputs(config: JobConfig) -> str:
    inputs = read_inputs(config, reading=ESTIMATED)
    survey_run(inputs)
    return f"{inputs.arch.family}, {len(inputs.tasks.samples):,} samples in {inputs.total_batches:,} batches"


def check_code(config: JobConfig) -> str:
    return f"{len(make_bundle(sent_along(config)).data):,} bytes to send, sources, configuration and small task files"


CHECKS = [
    Check("gcloud", check_gcloud),
    Check("account", check_account, ("gcloud",)),
    Check("api", check_api, ("gcloud", "account")),
    Check("request", check_request),
    Check("shape", check_shape),
    Check("image", check_image),
    Check("zones", check_zones, ("api", "request")),
    Check("quota", check_quota, ("api", "request")),
    Check("ssh key", lambda config: check_key()),
    Check("bucket", check_bucket),
    Check("hosts", check_access_of_hosts, ("gcloud", "account")),
    Check("rate", check_rate, ("bucket",)),
    Check("paths", check_paths),
    Check("inputs", check_inputs),
    Check("code", check_code),
    Check("versions", check_versions, ("api",)),
    Check("secrets", check_secrets),
    Check("limits", check_limits),
]

OF_THE_JOB = ("shape", "rate", "paths", "inputs", "code", "secrets")
CHECKS_OF_OWN_HOSTS = [
    Check("hosts file", check_hosts_file),
    Check("answer", check_answer, ("hosts file",)),
    Check("bucket", check_folder),
    Check("versions", check_versions, ("answer",)),
    *(check for check in CHECKS if check.name in OF_THE_JOB),
]
"""Checks where the user has started the hosts: nothing is asked of the cloud."""

COMMAND = Command("doctor", __doc__, EXAMPLES, add_arguments, doctor)
