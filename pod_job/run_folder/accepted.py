"""Differences between a run's identity and that of a start which its user accepts, recorded beside run.json."""

from collections.abc import Sequence

import google_crc32c

from pod_job.errors import JobError
from pod_job.formats.records import Record, encode, read_file
from pod_job.run_folder.differences import Difference, shown
from pod_job.run_folder.layout import ACCEPTED, accepted_file
from pod_job.storage.folder import Folder

ACCEPTABLE = ("model", "tokenizer", "tokenizer_files", "token_probe", "tasks.fingerprint", "tasks.format")
"""Fields of an identity that `storage.accept_identity` may name, with what is below them."""
SIZES = frozenset(
    {"model.layers", "model.hidden_dim"}
    | {f"model.architecture.{name}" for name in ("layers", "hidden", "heads", "kv_heads", "head_dim", "mlp")}
)
"""Fields below those that give vectors another size or meaning; they are never accepted."""
SHOWN, SHOWN_CHARACTERS = 8, 120
"""Most differences, and most characters of a value, in a message."""


class AcceptedDifference(Record, frozen=True):
    """A field of the identity, its value in run.json (`run`) and at a start that was told to accept it (`start`)."""

    field: str
    run: str
    start: str


class AcceptedRecord(Record, frozen=True):
    """Content of a file in `accepted/`: the differences of one start."""

    differences: list[AcceptedDifference]


def check_acceptable(fields: Sequence[str]) -> None:
    """Raises JobError for a field that cannot be accepted."""
    for field in fields:
        if not below(field, ACCEPTABLE) or field in SIZES:
            raise JobError(
                f"storage.accept_identity={field} cannot be accepted; only {', '.join(ACCEPTABLE)} and fields of "
                "these such as model.weights can, and no sizes"
            )


def accepted(path: str, fields: Sequence[str]) -> bool:
    """Returns whether a difference at `path` is accepted by one of the fields."""
    return path not in SIZES and below(path, fields)


def below(path: str, fields: Sequence[str]) -> bool:
    """Returns whether the path is one of the fields, or a part of one."""
    return any(path == field or path.startswith((f"{field}.", f"{field}[")) for field in fields)


def refusal(url: str, differing: Sequence[Difference], packages: Sequence[Difference]) -> JobError:
    """Returns the error for a start that differs from the run in the folder; `packages`: versions that differ too."""
    listed = "; ".join(f"{path} is {short(was)} there, {short(here)} here" for path, was, here in differing[:SHOWN])
    if len(differing) > SHOWN:
        listed += f"; and {len(differing) - SHOWN} more"
    if packages:
        listed += (
            f" (with {', '.join(f'{name} {shown(was)} there, {shown(here)} here' for name, was, here in packages)})"
        )
    fix = "use another storage.run_dir"
    if all(below(path, ACCEPTABLE) and path not in SIZES for path, _, _ in differing):
        fields = dict.fromkeys(".".join(path.partition("[")[0].split(".")[:2]) for path, _, _ in differing)
        options = " ".join(f"--accept-identity {field}" for field in fields)
        fix += f"; or, if its vectors may be of both, {options}"
    return JobError(f"storage.run_dir={url} belongs to another run: {listed}; {fix}")


def short(value: object) -> str:
    """Returns a value in few characters."""
    text = shown(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def write_accepted(folder: Folder, differing: Sequence[Difference]) -> None:
    """Records the differences that a start accepts, if any; hosts of one start write the same."""
    if differing:
        content = encode(AcceptedRecord([AcceptedDifference(path, shown(a), shown(b)) for path, a, b in differing]))
        folder.create(accepted_file(f"{google_crc32c.value(content):08x}"), [content])


def read_accepted(folder: Folder) -> list[AcceptedDifference]:
    """Returns all differences that starts of the run accepted. JobError where a record is damaged."""
    records = (read_file(folder, name, AcceptedRecord) for name in folder.names(ACCEPTED))
    return list(dict.fromkeys(difference for record in records for difference in record.differences))
