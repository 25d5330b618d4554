"""The configuration that a verb works with: from Hydra overrides, or as a run folder has it recorded."""

from collections.abc import Sequence
from dataclasses import replace

from launch.cloud.request import pod_name
from pod_job.config.load import from_json, load
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.run_folder.identity import read_run
from pod_job.storage.open import open_folder


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
    now, `cloud.name` is the pod's name, and `cloud.ssh_flags` are empty, since they can name programs that ssh runs.

    Raises:
        JobError: there is no run, its configuration is not recorded, or an override is wrong.
    """
    if not words:
        raise JobError("RUN_DIR is missing; give the run folder, or the key=value with which the job was started")
    folders = [word for word in words if is_run_dir(word)]
    if not folders:
        return load(words)
    if len(folders) > 1:
        raise JobError(f"{folders[0]} and {folders[1]} are both run folders; give one")
    run_dir = folders[0]
    recorded = read_run(open_folder(run_dir, "RUN_DIR")).get("config")
    if not isinstance(recorded, dict):
        raise JobError(f"{run_dir}: its configuration is not recorded; give experiment=... storage.run_dir={run_dir}")
    cloud = recorded.get("cloud")
    recorded = recorded | {"cloud": {**cloud, "ssh_flags": []} if isinstance(cloud, dict) else cloud}
    config = from_json(recorded, [word for word in words if word != run_dir])
    return replace(
        config,
        storage=replace(config.storage, run_dir=run_dir),
        cloud=replace(config.cloud, name=pod_name(config)),
    )
