"""Records in parity/: how far one start's vectors were from the float32 reference."""

import msgspec

from pod_job.formats.records import Count, Record, read_file
from pod_job.run_folder import layout
from pod_job.storage.folder import Folder


class TapErrors(Record, frozen=True, omit_defaults=True):
    """Relative L2 errors of a tap's rows, or differences in nats of a column's; infinite where one was not finite.

    `usual` is the largest without one row of every 50; None where it was not told apart, as in limits.
    """

    median: float
    largest: float
    usual: float | None = None


class ParityRecord(Record, frozen=True, omit_defaults=True):
    """Result of one start; dictionaries are by tap, and by column of those that the model computes.

    `limit` is that of the tap that came nearest to its own, or `parity.limit` where the user set it. Optional, as old
    records lack them: `rounding`, the reference's own errors in the run's dtypes, the `limits` that follow from them,
    and `why_built_in`, where the reference is not Hugging Face's. `windows_not_reached`: sliding windows, in tokens,
    that act on the run's prompts and not on the shorter ones that were compared. `row_length`: positions of a row of
    the program that was compared, where that is not the run's own, which was then held against it; None otherwise.
    """

    attempt: str
    reference: str
    mesh: str
    sharding: str
    devices: str
    prompts: Count
    rows: Count
    limit: float
    passed: bool
    errors: dict[str, TapErrors]
    measured: str
    limits: dict[str, TapErrors] | None = None
    rounding: dict[str, TapErrors] | None = None
    why_built_in: str | None = None
    windows_not_reached: list[Count] = msgspec.field(default_factory=list)
    row_length: Count | None = None


def read_parity(folder: Folder, attempt: str) -> ParityRecord:
    """Returns the result of a start. JobError where the file is damaged, FileNotFoundError where there is none yet."""
    return _read(folder, layout.parity_file(attempt))


def read_all_parity(folder: Folder) -> list[ParityRecord]:
    """Returns the results of all starts, oldest first. JobError where a file is damaged."""
    return [_read(folder, name) for name in folder.names(layout.PARITY)]


def _read(folder: Folder, name: str) -> ParityRecord:
    return read_file(folder, name, ParityRecord)
