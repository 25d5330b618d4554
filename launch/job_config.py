"""The configuration that a verb works with: from Hydra overrides, or as a run folder has it recorded."""

from collections.abc import Sequence
from dataclasses import replace

from launch.cloud.own_hosts import own_pods
from launch.cloud.pods import MADE_BY, Pod, list_pods
from launch.cloud.request import pod_name, pod_names
from launch.hosts_file import UNREAD
from pod_job.config.load import from_json, load
from pod_job.config.schema import ConfigValues, JobConfig, PodKind
from pod_job.errors import JobError
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.layout import RUN
from pod_job.run_folder.pods import PodRecord, read_pods
from pod_job.run_folder.start import read_start
from pod_job.storage.folder import Folder, exists
from pod_job.storage.open import open_folder

UNKNOWN = "unknown"


def is_run_dir(word: str) -> bool:
    """Returns True for an argument that is a run folder: an override has a `=`, or is a deletion, `~key`."""
    return word.startswith("gs://") or not ("=" in word or word.startswith("~"))


def config_to_start(overrides: Sequence[str]) -> JobConfig:
    """Returns the checked configuration. JobError also for a run folder in place of overrides, with the fix."""
    for word in filter(is_run_dir, overrides):
        raise JobError(f"{word} is not key=value; a job starts from experiment=NAME storage.run_dir={word}")
    return load(overrides)


def config_of_run(words: Sequence[str]) -> JobConfig:
    """Returns the configuration for `RUN_DIR`, for `RUN_DIR key=value ...`, or for the overrides of the start.

    That of a run folder is its record, with these exceptions: `storage.run_dir` is RUN_DIR, wherever the folder lies
    now, `cloud.name` is the pod's name, `cloud.ssh_flags` are empty, since they can name programs that ssh runs, and
    `pod.hosts_file` is not read, as it can be any file of this machine: verbs that need it take it as an override.

    Raises:
        JobError: there is no run, its configuration is not recorded, or an override is wrong.
    """
    run_dir, overrides = split_words(words)
    return load(words) if run_dir is None else recorded_config(open_folder(run_dir, "RUN_DIR"), run_dir, overrides)


def pods_of_run(words: Sequence[str]) -> tuple[JobConfig, list[Pod]]:
    """Returns the configuration for the words of `config_of_run`, and the run's pods in the cloud.

    Of a run folder, these are also the pods on record, and only pods that the launcher created: the names in a run
    folder are whatever its writer put there. A folder whose job has not begun yet may hold a record of its pod alone.
    """
    run_dir, overrides = split_words(words)
    if run_dir is None:
        config, names, labels = load(words), set(), {}
    else:
        folder, labels = open_folder(run_dir, "RUN_DIR"), MADE_BY
        records = read_pods(folder)
        if records and not exists(folder, RUN):
            config = config_by_pod(records[-1], run_dir, overrides)
        else:
            config = recorded_config(folder, run_dir, overrides)
        names = {record.name for record in records}
    if config.pod.kind is not PodKind.tpu:
        return config, []
    if config.pod.hosts_file is not None:
        return config, own_pods(config)
    names |= {*pod_names(config)}
    return config, [
        pod for pod in list_pods(config.cloud.project) if pod.name in names and labels.items() <= pod.labels.items()
    ]


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the run folder among the words, None without one, and the overrides. JobError for no words, or two."""
    run_dirs = [word for word in words if is_run_dir(word)]
    if not words:
        raise JobError("RUN_DIR is missing; give the run folder, or the key=value with which the job was started")
    if len(run_dirs) > 1:
        raise JobError(f"{run_dirs[0]} and {run_dirs[1]} are both run folders; give one")
    return run_dirs[0] if run_dirs else None, [word for word in words if not is_run_dir(word)]


def recorded_config(folder: Folder, run_dir: str, overrides: Sequence[str]) -> JobConfig:
    recorded = read_start(folder) or read_run(folder).config
    if recorded is None:
        raise JobError(
            f"{run_dir}: no configuration is recorded, as in a run that was imported or shuffled; use pod-job inspect "
            f"{run_dir}, or give experiment=... storage.run_dir={run_dir}"
        )
    # Of a published run, run.json has neither the paths nor the run folder.
    unknown = {"model": {"path": UNKNOWN}, "tasks": {"path": UNKNOWN}, "storage": {"run_dir": run_dir}}
    complete = with_fields(with_fields(unknown, recorded), {"cloud": {"ssh_flags": []}})
    if complete.get("pod", {}).get("hosts_file") is not None:
        complete = with_fields(complete, {"pod": {"hosts_file": UNREAD}})
    config = from_json(complete, overrides)
    whole = replace(config, pod=replace(config.pod, slice=None))  # recorded by one slice
    name = pod_name(whole if config.pod.slices > 1 else config)
    return replace(
        whole,
        storage=replace(config.storage, run_dir=run_dir),
        cloud=replace(config.cloud, name=name),
    )


def with_fields(config: ConfigValues, changes: ConfigValues) -> ConfigValues:
    """Returns the configuration with the fields of `changes`, section by section."""
    sections = {key: config[key] | value for key, value in changes.items() if both_sections(config.get(key), value)}
    return config | changes | sections


def both_sections(a: object, b: object) -> bool:
    return isinstance(a, dict) and isinstance(b, dict)


def config_by_pod(pod: PodRecord, run_dir: str, overrides: Sequence[str]) -> JobConfig:
    """Returns what is known of a job by its pod alone: how to reach and delete it, and not its inputs."""
    recorded = {
        "pod": {"kind": PodKind.tpu.name, "accelerator_type": pod.accelerator_type},
        "cloud": {"name": pod.name, "capacity": pod.capacity},
        "model": {"path": UNKNOWN},
        "tasks": {"path": UNKNOWN},
        "storage": {"run_dir": run_dir},
    }
    return from_json(recorded, overrides)
