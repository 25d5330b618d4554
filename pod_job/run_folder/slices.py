"""Slices of a run: several pods that compute one run folder, each with a name and a folder for what its hosts report.

Hosts of a slice are numbered from 0. Their statuses, logs and timelines lie in `slices/NAME/`, under the names that
those of a run on one pod have in the run folder itself.
"""

from pathlib import PurePosixPath

from pod_job.config.schema import SLICE_NAME
from pod_job.run_folder.layout import SLICES
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder


def report_folder(folder: Folder, slice_name: str | None) -> Folder:
    """Returns the folder in which the hosts of a slice report: the run folder itself where the run has one pod."""
    return folder if slice_name is None else open_folder(f"{folder.url}/{SLICES}{slice_name}")


def slice_names(folder: Folder) -> list[str]:
    """Returns the names of the slices that have reported, in their order."""
    words = {PurePosixPath(name).parts[1] for name in folder.names(SLICES)}
    return sorted(filter(SLICE_NAME.fullmatch, words), key=lambda word: (len(word), word))
