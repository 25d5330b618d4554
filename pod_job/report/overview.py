"""Overview: the records of a run, finished or not, in one value. Writes nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pod_job.checking.verify import StoredReport, read_report
from pod_job.config.schema import ConfigValues
from pod_job.errors import JobError
from pod_job.finishing.merge import gather, of_another_run
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder import metadata as metadata_file
from pod_job.run_folder.identity import Identity, RunRecord, read_run
from pod_job.run_folder.metadata import Metadata
from pod_job.run_folder.timeline import Timeline, read_timelines
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder


class Verdict(NamedTuple):
    """Result of the last verification, and in words; `sound` is None where the run, as it is now, was not verified."""

    sound: bool | None
    words: str


@dataclass(frozen=True)
class Overview:
    """Records of a run.

    Attributes:
        run: run.json.
        metadata: metadata.json, or its present content where the run is unfinished.
        verified: report of the last verification; None where there was none.
        timelines: of every start and host, oldest first.
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
    def config(self) -> ConfigValues:
        """Configuration of the run's first start, as JSON values; empty where no job made the run."""
        return self.run.config or {}

    @property
    def verdict(self) -> Verdict:
        """Result of the last verification."""
        if self.verified is None:
            return Verdict(None, "not verified yet")
        if self.changed_since(self.verified):
            return Verdict(None, "changed since it was verified")
        if self.verified.sound:
            return Verdict(True, f"verified {self.verified.verified[:10]}")
        problems = len(self.verified.problems)
        return Verdict(False, f"{problems} problems" if problems else "unfinished")

    def changed_since(self, verified: StoredReport) -> bool:
        """Returns True where the files on record are no longer those that were verified."""
        if verified.content is None:  # an earlier version's report
            return verified.verified < self.metadata.merged
        return verified.content != metadata_file.content_checksum(self.metadata)


def read_overview(run_dir: str | Path) -> Overview:
    """Reads the records of a run.

    An unfinished run has no metadata.json, or an old one: its present content is made from the commit records.

    Raises:
        JobError: the folder holds no run, or its records are damaged, or metadata.json and run.json are of two runs.
    """
    folder = open_folder(run_dir)
    run = read_run(folder)
    described = metadata_file.read_any(folder) if folder.names(layout.METADATA) else None
    if described is None or not described.complete:
        described = gather(folder)
    if problem := of_another_run(folder, described, run.identity):
        raise JobError(problem)
    return Overview(folder, run, described, read_report(folder), list(read_timelines(folder)))


def open_tap(overview: Overview, tap: str) -> ActivationDataset:
    """Returns the rows of a tap that are committed by now. Raises JobError where the run has no such tap."""
    return ActivationDataset.from_metadata(overview.folder, overview.metadata, tap)
