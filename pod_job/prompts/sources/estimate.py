"""A large source looked at in a few places: how many documents it has, about, and some of them."""

import dataclasses
import math
import random
from collections.abc import Sequence
from itertools import islice

import numpy as np

from pod_job.config.tasks import TasksConfig
from pod_job.prompts.sources.blocks import FileReader
from pod_job.prompts.sources.compressed import ChecksummedFile, decompressed
from pod_job.prompts.sources.documents import Read, check_columns, make_reader
from pod_job.prompts.sources.index import FileEntry
from pod_job.prompts.sources.lines import LinesReader
from pod_job.prompts.sources.listing import Listing
from pod_job.prompts.sources.places import open_file

FILES = 12
"""Files that are looked at."""
PLACES = 16
"""Places of files of lines that are looked at."""
PLACE_BYTES = 128 << 10
HEAD = 64
"""First documents of a file that are looked at."""
COMPRESSED_BYTES = 1 << 20
DEVIATIONS = 1.96
"""Standard errors on either side of an estimate: 95% of the time the truth is within."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """About `samples` documents; the truth is within the part `error` of it with 95% certainty. `drawn` are some.

    `members`: compressed files seem to have members, at which they can be entered.
    """

    samples: int
    error: float
    drawn: list[Read]
    members: bool = False


@dataclasses.dataclass(frozen=True)
class Look:
    """Documents within some bytes of a file: how many, and some of them; `members`: of how many members, if of any."""

    rows: int
    bytes: int
    drawn: list[Read]
    members: int = 0


def estimate(listing: Listing, config: TasksConfig, seed: int = 0) -> Estimate:
    """Returns about how many documents a source has, of a look at a few of its files.

    Raises:
        JobError: a file that cannot be read, or a table without the column.
    """
    files = some_files(listing.files, seed)
    check_columns(dataclasses.replace(listing, files=files), config)
    alone = len(listing.files) == 1
    readers = [make_reader(listing.kind, entry, config, alone=alone) for entry in files]
    looks = [look for reader in readers for look in looks_at(reader, seed)]
    total = sum(entry.size for entry in listing.files)
    rows, size = (np.array([getattr(look, name) for look in looks], float) for name in ("rows", "bytes"))
    density = rows.sum() / max(1.0, size.sum())
    spread = 0.0
    if len(looks) > 1 and rows.sum():  # of a ratio of sums
        residuals = rows - density * size
        spread = math.sqrt((residuals**2).sum() / (len(looks) - 1) * len(looks)) / rows.sum()
    if listing.kind == "text":
        density, spread = len(listing.files) / max(1, total), 0.0
    elif len(files) == len(listing.files) and listing.kind in ("parquet", "tokens"):
        spread = 0.0
    drawn = [item for look in looks for item in look.drawn]
    members = bool(looks) and all(look.members > 1 for look in looks)
    return Estimate(max(1, round(density * total)), DEVIATIONS * spread, drawn, members)


def some_files(files: Sequence[FileEntry], seed: int) -> list[FileEntry]:
    """Returns the first file and others at random, in their order."""
    filled = [entry for entry in files if entry.size] or list(files)
    if len(filled) <= FILES:
        return filled
    others = random.Random(seed).sample(range(1, len(filled)), FILES - 1)
    return [filled[number] for number in [0, *sorted(others)]]


def looks_at(reader: FileReader, seed: int) -> list[Look]:
    """Returns looks at a file; the first has its first documents in their order."""
    entry = reader.entry
    head = list(islice(reader.head(HEAD), HEAD))
    if not isinstance(reader, LinesReader):
        return [Look(reader.rows_at_a_glance(), entry.size, head)]
    if reader.sequential:
        file = ChecksummedFile(open_file(entry.url), entry.size, None)
        lines, members = 0, list[int]()
        for piece in decompressed(file, entry.url, lambda place, content: members.append(place)):
            lines += piece.count(b"\n")
            if file.taken >= COMPRESSED_BYTES:
                break
        return [Look(max(lines, len(head)), file.taken, head, len(members))]
    places = [0] if entry.size <= PLACE_BYTES else starts_of_places(entry.size, f"{seed} {entry.name}")
    looks = []
    for place in places:
        documents, size = reader.around(place, min(PLACE_BYTES, entry.size - place))
        looks.append(Look(len(documents), size, documents[:HEAD] if place else []))
    return [Look(0, 0, head), *looks]


def starts_of_places(size: int, seed: str) -> list[int]:
    draw = random.Random(seed)
    return [0, *sorted(draw.randrange(1, max(2, size - PLACE_BYTES)) for _ in range(PLACES // 2))]
