"""All that a run folder says of itself, in one value: for those who look at a run, finished or not. Writes nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pod_job.checking.verify import StoredReport, read_report
from pod_job.finishing.merge import gather
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder import metadata as metadata_file
from pod_job.run_folder.identity import Identity, RunRecord, read_run
from pod_job.run_folder.metadata import Metadata
from pod_job.run_folder.timeline import Timeline, read_timelines
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder


@dataclass(frozen=True)
class Overview:
    """`run`: run.json. `metadata`: as in metadata.json. `verified`: what verify last found; None where it never ran.

    `timelines`: of every start and host, oldest first.
    """

    folder: Folder
    run: RunRecord
    metadata: Metadata
    verified: StoredReport | None
    timelines: list[Timeline]

    @property
    def identity(self) -> Identity:
        return self.run.identity

    @property
    def config(self) -> dict[str, Any]:
        """How the run was first started; empty where it was not a job that made it."""
        return self.run.config or {}

    @property
    def verdict(self) -> tuple[bool | None, str]:
        """Whether the run as it is now was verified and found sound (None: nobody looked), and that in words."""
        if self.verified is None:
            return None, "not verified yet"
        if self.verified.verified < self.metadata.merged:
            return None, "changed since it was verified"
        if self.verified.sound:
            return True, f"verified {self.verified.verified[:10]}"
        problems = len(self.verified.problems)
        return False, f"{problems} problems" if problems else "unfinished"


def read_overview(run_dir: str | Path) -> Overview:
    """Raises JobError where there is no run, or its records are damaged.

    An unfinished run has no metadata.json, or an old one: what that would say now is made from the records.
    """
    folder = open_folder(run_dir)
    run = read_run(folder)
    described = metadata_file.read_any(folder) if folder.names(layout.METADATA) else None
    if described is None or not described.complete:
        described = gather(folder)
    return Overview(folder, run, described, read_report(folder), list(read_timelines(folder)))


def open_tap(overview: Overview, tap: str) -> ActivationDataset:
    """The rows of a tap that there are by now. JobError where the run has no such tap."""
    return ActivationDataset(overview.folder.url, tap, described=overview.metadata)
