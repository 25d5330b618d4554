"""Inputs of a run that is looked at: what it names is opened only where the person who looks says so."""

from collections.abc import Sequence
from dataclasses import dataclass

from pod_job.config.load import from_json, without_uploads
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.run_folder.identity import read_run
from pod_job.run_folder.layout import RUN
from pod_job.run_folder.start import read_start
from pod_job.storage.folder import Folder

MODEL, TASKS = "model.path", "tasks.path"


@dataclass(frozen=True)
class Consent:
    """The places that a person named as `key=value`, and whether the ones that the run names may be opened too."""

    overrides: Sequence[str] = ()
    follow_recorded: bool = False

    def covers(self, *keys: str) -> bool:
        """Returns True where these inputs may be opened."""
        return self.follow_recorded or not self.missing(*keys)

    def missing(self, *keys: str) -> list[str]:
        given = {override.partition("=")[0].removeprefix("+") for override in self.overrides}
        return [key for key in keys if key not in given]


NO_CONSENT = Consent()


def fix(*keys: str) -> str:
    """Returns how to allow that these inputs are opened."""
    return f"give {' '.join(f'{key}=...' for key in keys)}, or --follow-recorded if you trust who made the run"


def config_to_read(folder: Folder, consent: Consent, *keys: str) -> JobConfig:
    """Returns the configuration of the run for opening the inputs `keys` again; it names no other place.

    Raises:
        JobError: the person who looks has not consented, or the run does not tell how it was started.
    """
    run = read_run(folder)
    recorded = read_start(folder) or run.config
    if recorded is None:
        raise JobError(
            f"{folder.url}/{RUN} does not tell how the run was started, as in shuffled and imported "
            "runs, so its inputs cannot be opened again; leave out --recompute, --follow-recorded and overrides"
        )
    if not consent.covers(*keys):
        missing = consent.missing(*keys)
        raise JobError(f"{folder.url}/{RUN}: {' and '.join(missing)} of a run are not opened unasked; {fix(*missing)}")
    merged = {**recorded, "storage": {"run_dir": folder.url}, "cloud": {}}
    if isinstance(parity := recorded.get("parity"), dict):
        merged["parity"] = {**parity, "limit": None}  # or whoever made the run would say how far it may be off
    if not consent.follow_recorded:
        merged = without_uploads(merged)
    for key in (MODEL, TASKS):
        section, content = key.split(".")[0], recorded.get(key.split(".")[0], {})
        if isinstance(content, dict):
            merged[section] = {**content, "path": content.get("path", "") if consent.follow_recorded else ""}
    config = from_json(merged, consent.overrides)
    for key, path in ((MODEL, config.model.path), (TASKS, config.tasks.path)):
        if key in keys and not path:
            raise JobError(f"{folder.url}/{RUN}: {key} is not recorded, as in a published run; give {key}=...")
    return config
