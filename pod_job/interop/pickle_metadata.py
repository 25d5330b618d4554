"""metadata.json of the extraction document, which lies beside the pickle files. Other keys in it are left alone."""

import json
from pathlib import Path, PurePosixPath

import msgspec

from pod_job.errors import JobError
from pod_job.formats.records import Count, decode
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import is_name


class PickleEntry(msgspec.Struct, frozen=True):
    """A pickle file: one batch of one layer (`layer_6`)."""

    batch_id: int
    layer: str
    file: str
    n_samples: int


class PickleMetadata(msgspec.Struct, frozen=True):
    """The files that there are, and the model that they are of."""

    model_name: str
    layers_extracted: list[int]
    hidden_dim: Count
    total_samples: int
    batches: list[PickleEntry]


def read_pickle_metadata(path: Path) -> PickleMetadata:
    """Returns the content of the file. JobError where it is missing, not as documented, or names a file elsewhere."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JobError(f"{path}: cannot be read ({error.strerror}); it must lie beside the pickle files") from error
    described = decode(data, PickleMetadata, str(path), "it must be as the extraction document says")
    for number, entry in enumerate(described.batches):
        if not is_name(str(PurePosixPath(entry.file))):
            raise JobError(
                f"{path}: file={entry.file!r} of batches[{number}] is not the name of a file beside it or in a "
                "folder there"
            )
    return described


def fingerprint(path: Path) -> str:
    """Returns the CRC-32C over all that the file lists of its batches, keys of other programs included."""
    return checksum([json.dumps(json.loads(path.read_bytes())["batches"], sort_keys=True).encode()]).crc32c
