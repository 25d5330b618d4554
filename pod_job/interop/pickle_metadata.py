"""metadata.json of the extraction document, which lies beside the pickle files. Other keys in it are left alone."""

import json
from pathlib import Path, PurePosixPath

import msgspec

from pod_job.errors import JobError
from pod_job.formats.json_text import read_json_file
from pod_job.formats.records import Count, read_file
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import is_name
from pod_job.storage.open import open_folder


class PickleEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A pickle file: one batch of one layer (`layer_6`). `crc32c` is not recorded by other programs, nor by 0.1.0."""

    batch_id: int
    layer: str
    file: str
    n_samples: int
    crc32c: str | None = None


class PickleMetadata(msgspec.Struct, frozen=True):
    """The files that there are, and the model that they are of."""

    model_name: str
    layers_extracted: list[int]
    hidden_dim: Count
    total_samples: int
    batches: list[PickleEntry]


def read_pickle_metadata(path: Path) -> PickleMetadata:
    """Returns the content of the file. JobError where it is missing, not as documented, or names a file elsewhere."""
    folder = open_folder(path.parent, "PICKLES", follow_links=True)
    try:
        described = read_file(folder, path.name, PickleMetadata, "it must be as the extraction document says")
    except FileNotFoundError:
        raise JobError(f"{path}: is missing; it must lie beside the pickle files") from None
    for number, entry in enumerate(described.batches):
        if not is_name(str(PurePosixPath(entry.file))):
            raise JobError(
                f"{path}: file={entry.file!r} of batches[{number}] is not the name of a file beside it or in a "
                "folder there"
            )
    return described


def fingerprint(path: Path) -> str:
    """Returns the CRC-32C over all that the file lists of its batches, keys of other programs included."""
    return checksum([json.dumps(read_json_file(path)["batches"], sort_keys=True).encode()]).crc32c
