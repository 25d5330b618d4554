"""Rate from a pod's hosts to the run folder, as `pod-job doctor --measure-bucket` has measured it."""

import math

from pod_job.formats.records import Count, Record, encode, read_file
from pod_job.run_folder.layout import BUCKET_RATE
from pod_job.storage.folder import Folder
from pod_job.units import GB

REPEAT = "remove it, then run `pod-job doctor --measure-bucket`"


class HostRate(Record, frozen=True):
    """Bytes that one host wrote, and its rates of writing and of reading."""

    bytes: Count
    write_bytes_s: float
    read_bytes_s: float

    def __post_init__(self) -> None:
        check_rates(self.write_bytes_s, self.read_bytes_s)


class BucketRate(Record, frozen=True):
    """launcher/bucket_rate.json: what all hosts of a pod reached at once; the rates are those of the slowest host.

    Attributes:
        measured: when, as `formats.records.now` writes it.
        writers: files that each host wrote or read at the same time.
        host_bytes: bytes that each host wrote at least.
    """

    measured: str
    accelerator_type: str
    zone: str
    hosts: Count
    writers: Count
    host_bytes: Count
    write_bytes_s: float
    read_bytes_s: float

    def __post_init__(self) -> None:
        check_rates(self.write_bytes_s, self.read_bytes_s)

    @property
    def origin(self) -> str:
        """Who has measured it and when, for people."""
        hosts = f"{self.hosts} host{'s' if self.hosts > 1 else ''} of {self.accelerator_type} in {self.zone}"
        return f"measured by {hosts} with {self.writers} writers each, {self.measured[:10]}"

    def __str__(self) -> str:
        rates = f"{self.write_bytes_s / GB:.3g} GB/s from each host, {self.read_bytes_s / GB:.3g} GB/s to each"
        return f"{rates}, {self.origin}"


def check_rates(*rates: float) -> None:
    """Raises ValueError for what cannot be a rate."""
    for rate in rates:
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"{rate} is not a rate")


def read_rate(folder: Folder) -> BucketRate | None:
    """Returns the rate of the last measurement, None without one. DamagedRecord where the file is not its record."""
    try:
        return read_file(folder, BUCKET_RATE, BucketRate, REPEAT)
    except FileNotFoundError:
        return None


def write_rate(folder: Folder, rate: BucketRate) -> None:
    """Records the rate in the place of an earlier one."""
    folder.replace(BUCKET_RATE, encode(rate, indent=1))
