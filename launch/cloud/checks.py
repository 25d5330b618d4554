"""Checks before anything is paid for: what can be seen from here, without a pod and without the API.

Each returns what it found, in one line; JobError names the field, the rule and the fix. `doctor` shows them all.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from launch.cloud.iam import NotChecked
from launch.cloud.limits import price
from launch.cloud.request import pod_spec
from launch.hosts_file import groups_of
from launch.shell import NotInstalled, call
from launch.view.timed_log import Log
from pod_job.config.schema import JobConfig, PodKind
from pod_job.errors import JobError
from pod_job.preflight.tpu_facts import PREFIXES, V5E, V5P, V6E, Slice, read_accelerator_type
from pod_job.prompts.sources.file_lists import pattern_of

KEY = Path("~/.ssh/google_compute_engine")
UPLOADS = "pod-job-uploads"
"""Folder of the run's bucket that uploads are in, unless cloud.uploads names another."""
# https://cloud.google.com/tpu/docs/runtimes
IMAGES = {"v2-alpha-tpuv5-lite": V5E, "v2-alpha-tpuv5": V5P, "v2-alpha-tpuv6e": V6E}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_before_paid(config: JobConfig, log: Log) -> None:
    """Checks all of this file. JobError for the first thing that is wrong."""
    if config.pod.hosts_file is not None:
        log(f"hosts: {check_hosts_file(config)}")
        check_pod(config)
        check_secrets(config)
        return
    pod_spec(config)
    check_pod(config)
    check_secrets(config)
    check_limits(config)
    log(f"ssh key: {check_key()}")


def check_pod(config: JobConfig) -> None:
    """Checks what a plan shows: the pod's shape and image, and that its hosts find what they read."""
    if config.pod.kind is PodKind.tpu:
        for check in (check_shape, check_image, check_paths):
            with suppress(NotChecked):
                check(config)


def slice_of(config: JobConfig) -> Slice | None:
    """Returns the slice that the configuration asks for; None for one whose facts are not known here."""
    try:
        return read_accelerator_type(config.pod.accelerator_type or "")
    except JobError:
        kind = (config.pod.accelerator_type or "").partition("-")[0]
        if kind in PREFIXES:
            raise
        return None


def check_shape(config: JobConfig) -> str:
    """Compares pod.hosts with the VMs of the slice."""
    wanted, pod = slice_of(config), config.pod
    if wanted is None:
        raise NotChecked(f"{pod.accelerator_type} is not known here; its hosts show once it is READY")
    if wanted.hosts != pod.hosts:
        raise JobError(
            f"pod.hosts={pod.hosts}, but {pod.accelerator_type} has {wanted.hosts} VMs; set pod.hosts={wanted.hosts} "
            f"and a mesh to match, or another pod.accelerator_type"
        )
    return f"{pod.accelerator_type} has {wanted.hosts} VMs of {wanted.chips_per_host} chips"


def check_image(config: JobConfig) -> str:
    """Compares pod.runtime_version with the chip."""
    wanted, image = slice_of(config), config.pod.runtime_version or ""
    chip = IMAGES.get(image)
    if wanted is None or chip is None:
        raise NotChecked(f"whether image {image} fits {config.pod.accelerator_type}; the API says so when it is asked")
    if chip is not wanted.chip:
        right = next((name for name, fits in IMAGES.items() if fits is wanted.chip), "tpu-ubuntu2204-base")
        raise JobError(
            f"pod.runtime_version={image} is the image of {chip.name}, but {config.pod.accelerator_type} is "
            f"{wanted.chip.name}; use pod.runtime_version={right}"
        )
    return f"{image} is the image of {chip.name}"


def check_paths(config: JobConfig) -> str:
    """Refuses what hosts would look for and not find: what lies elsewhere than here, in a bucket or a shared folder."""
    if config.pod.kind is not PodKind.tpu:
        return "all on this machine"
    model, run_dir = config.model.path, config.storage.run_dir
    there = "list it in cloud.shared_folders where every host has it mounted at this path"
    if not run_dir.startswith("gs://") and not shared(run_dir, config):
        raise JobError(
            f"storage.run_dir={run_dir} is a folder of this machine, which hosts do not see; use "
            f"gs://bucket/prefix, or {there}"
        )
    if is_path(model) and not shared(model, config):
        check_model(Path(model).expanduser(), config, there)
    for tasks, place in zip(config.tasks.paths, config.tasks.places, strict=True):
        if tasks != place or not leaves_folder(tasks) or shared(tasks, config):
            continue
        if not (pattern_of(tasks) or os.path.exists(Path(tasks).expanduser())):
            raise JobError(
                f"tasks.path={tasks} is not on this machine; correct it, or give gs://bucket/file, or {there}"
            )
        if uploads_folder(config) is None:
            raise JobError(
                f"tasks.path={tasks} is a path of this machine, which hosts do not see; {UPLOADED}; or give it "
                f"relative to the working directory, then it is sent along, or {there}"
            )
    return "hosts find model, tasks and run folder, once a start has uploaded what only this machine has"


UPLOADED = "with storage.run_dir=gs://bucket/prefix, or cloud.uploads=gs://bucket/folder, it is uploaded"


def check_model(model: Path, config: JobConfig, there: str) -> None:
    """Raises JobError for a folder of this machine that is no model, or cannot be uploaded. `there`: another way."""
    path = config.model.path
    if not (model / "config.json").is_file():
        raise JobError(
            f"model.path={path} is no folder of this machine with a config.json; give a model's folder, a hub name "
            f"(org/model) or gs://bucket/folder, or {there}"
        )
    if uploads_folder(config) is None:
        raise JobError(
            f"model.path={path} is a folder of this machine, which hosts do not see; {UPLOADED}; or give a hub name "
            f"(org/model), or {there}"
        )


def uploads_folder(config: JobConfig) -> str | None:
    """Returns the folder in a bucket that files of this machine are uploaded to; None where the run has no bucket."""
    if config.cloud.uploads is not None:
        return config.cloud.uploads.rstrip("/")
    run_dir = config.storage.run_dir
    return "/".join([*run_dir.split("/")[:3], UPLOADS]) if run_dir.startswith("gs://") else None


def is_path(model: str) -> bool:
    """Returns whether `model.path` is a path, rather than a hub name or a place in a bucket."""
    if model.startswith("gs://"):
        return False
    return Path(model).expanduser().exists() or not HUB_NAME.fullmatch(model)


def leaves_folder(path: str) -> bool:
    return "://" not in path and (Path(path).is_absolute() or path.startswith("~") or ".." in Path(path).parts)


def shared(path: str, config: JobConfig) -> bool:
    """Returns whether a path is in a folder that all hosts have."""
    where = Path(os.path.abspath(Path(path).expanduser()))
    return any(where.is_relative_to(os.path.abspath(folder)) for folder in config.cloud.shared_folders)


def check_hosts_file(config: JobConfig) -> str:
    """Checks that the file of hosts can be read and fits the slices; no host is asked."""
    groups = groups_of(config)
    hosts = ", ".join(str(host) for group in groups for host in group.hosts)
    return f"{len(groups)} x {config.pod.hosts} of {config.pod.hosts_file}: {hosts}"


def check_secrets(config: JobConfig) -> str:
    missing = [name for name in config.cloud.secrets if name not in os.environ]
    if missing:
        raise JobError(f"cloud.secrets: {', '.join(missing)} not set here; export it, or take it off the list")
    return ", ".join(config.cloud.secrets) or "none asked for (gated models need cloud.secrets=[HF_TOKEN])"


def check_limits(config: JobConfig) -> str:
    """Checks that cloud.max_usd can be counted."""
    cloud = config.cloud
    if cloud.max_usd is not None:
        price(config)
    limits = [f"cloud.{name}={value:g}" for name in ("max_hours", "max_usd") if (value := getattr(cloud, name))]
    return ", ".join(limits) or "none: a pod that nobody watches costs until it is deleted (cloud.max_hours, max_usd)"


def check_key(key: Path = KEY) -> str:
    """Checks that ssh can use gcloud's key without asking for anything."""
    path = key.expanduser()
    if not path.exists():
        return f"{key} will be made by gcloud at the first login"
    if path.stat().st_mode & 0o077:
        raise JobError(f"{key} can be read by others, and ssh will refuse it; chmod 600 {key}")
    public = public_key(path)
    recorded = path.with_suffix(".pub")
    if public is None:
        agent = call(["ssh-add", "-L"]).out
        known = recorded.read_text().split()[1] if recorded.exists() else ""
        if known and known in agent:
            return f"{key}, by the ssh agent"
        raise JobError(
            f"{key} has a passphrase, or is damaged, and ssh may not ask here; ssh-add {key}, then try again"
        )
    if recorded.exists() and public not in recorded.read_text():
        raise JobError(f"{recorded} does not belong to {key}, so hosts would refuse it; rm {recorded}")
    return str(key)


def public_key(path: Path) -> str | None:
    """Returns the public key that belongs to a private one; None where that needs a passphrase or is damaged."""
    try:
        done = call(["ssh-keygen", "-y", "-P", "", "-f", str(path)])
    except NotInstalled as error:
        raise JobError("ssh-keygen is not installed; install openssh-client") from error
    return done.out.split()[1] if done.code == 0 else None
