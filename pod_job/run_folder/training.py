"""Records of a training run: the metrics while it trains, and saes/metadata.json."""

from typing import Annotated, Literal

import msgspec

from pod_job.errors import JobError
from pod_job.formats.records import Count, Record, encode, read_file
from pod_job.run_folder.identity import Identity
from pod_job.run_folder.layout import METRICS, SAE_CONFIG, SAE_WEIGHTS, SAES, SAES_METADATA
from pod_job.run_folder.train_identity import SaeRecord
from pod_job.storage.folder import Folder, exists, not_as_stored

MOST_POINTS = 512
"""Points of the curves; when there are more, every other one goes."""
MOST_SAES = 256


class SaeMetrics(Record, frozen=True, omit_defaults=True):
    """Metrics of one SAE at one step, NaN where its loss is; `dead`: share of latents that have not fired of late."""

    loss: float
    l0: float
    explained_variance: float
    dead: float


class MetricsPoint(Record, frozen=True):
    """Metrics of all SAEs after `step` steps on `rows` rows; `seconds`: spent on training, over all starts."""

    step: Count
    rows: Count
    seconds: float
    saes: list[SaeMetrics]


class MetricsRecord(Record, frozen=True):
    """training/metrics.json: the curves of all SAEs, which `names` names in the order of each point."""

    format: Literal[1]
    names: list[str]
    points: Annotated[list[MetricsPoint], msgspec.Meta(max_length=2 * MOST_POINTS)]

    def __post_init__(self) -> None:
        for point in self.points:
            if len(point.saes) != len(self.names):
                raise ValueError(f"points has {len(point.saes)} SAEs at step {point.step}, and names {len(self.names)}")

    def up_to(self, step: int) -> "MetricsRecord":
        """Returns the record without points after `step`, which a start from there makes again."""
        return msgspec.structs.replace(self, points=[point for point in self.points if point.step <= step])

    def with_point(self, point: MetricsPoint) -> "MetricsRecord":
        """Returns the record with one more point, thinned where that is one too many."""
        points = self.points if len(self.points) < MOST_POINTS else self.points[::2]
        return msgspec.structs.replace(self, points=[*points, point])


class LostSae(Record, frozen=True):
    """An SAE whose loss was NaN or infinite: it was trained no further from `step` on."""

    name: str
    step: Count


class TrainedEntry(Record, frozen=True, omit_defaults=True):
    """An SAE in saes/metadata.json: its folder below saes/, its last metrics, and CRC-32C of its files.

    `files` is empty where an earlier version wrote it.
    """

    sae: SaeRecord
    folder: str
    metrics: SaeMetrics
    files: dict[str, str] = msgspec.field(default_factory=dict)


class TrainingMetadata(Record, frozen=True, kw_only=True, omit_defaults=True):
    """saes/metadata.json, written when all SAEs are there. `provenance` is the identity in run.json."""

    format: Literal[1]
    complete: bool
    saes: Annotated[list[TrainedEntry], msgspec.Meta(max_length=MOST_SAES)]
    steps: Count
    rows: Count
    seconds: float
    provenance: Identity
    pod_job_version: str
    packages: dict[str, str]
    written: str
    lost: list[LostSae] = msgspec.field(default_factory=list)


def write_metrics(folder: Folder, metrics: MetricsRecord) -> None:
    """Replaces the curves."""
    folder.replace(METRICS, encode(metrics))


def read_metrics(folder: Folder) -> MetricsRecord | None:
    """Returns the curves so far; None where there are none. JobError where the file is damaged."""
    try:
        return read_file(folder, METRICS, MetricsRecord)
    except FileNotFoundError:
        return None


def read_training(folder: Folder) -> TrainingMetadata:
    """Returns saes/metadata.json. JobError where it is damaged, or missing as training has not ended."""
    try:
        return read_file(folder, SAES_METADATA, TrainingMetadata)
    except FileNotFoundError:
        raise JobError(
            f"{folder.url}/{SAES_METADATA}: missing; training has not ended: run the same command again"
        ) from None


def has_saes(folder: Folder) -> bool:
    """Returns whether training has ended with all its SAEs.

    Raises:
        JobError: saes/metadata.json is damaged, or lists an SAE a file of which is missing.
    """
    if not exists(folder, SAES_METADATA):
        return False
    trained, present = read_training(folder), set(folder.names(SAES))
    wanted = [f"{SAES}{entry.folder}{name}" for entry in trained.saes for name in (SAE_CONFIG, SAE_WEIGHTS)]
    if missing := [name for name in wanted if name not in present]:
        raise JobError(
            f"{folder.url}/{missing[0]}: missing, and {SAES_METADATA} says that training has ended; copy the SAE back, "
            f"or remove {SAES_METADATA} to have it written from the last checkpoint"
        )
    return trained.complete


def check_sae_files(folder: Folder, trained: TrainingMetadata, prefix: str) -> None:
    """Raises JobError where a file of the SAE below `prefix` is not as saes/metadata.json describes it."""
    files = next((entry.files for entry in trained.saes if f"{SAES}{entry.folder}" == prefix), {})
    for name, crc32c in files.items():
        stored = folder.stat(prefix + name)
        if stored is not None and stored.crc32c != crc32c:
            raise not_as_stored(folder.url, prefix + name)
