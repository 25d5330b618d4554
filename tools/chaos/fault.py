"""Faults in the writes of a run folder: SIGKILL or SIGSTOP at a step of the commit or compaction protocol.

The job has no code for this: `plant` wraps the calls that name and remove objects.
"""

import itertools
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pod_job.storage import local
from pod_job.storage.gcs import BucketFolder
from pod_job.storage.gcs_media import Body, MediaClient, Uploaded
from pod_job.storage.local import LocalFolder

KINDS = {
    "run": r"run\.json",
    "tap": r".+_batch_\d+\.safetensors",
    "rows": r"rows_batch_\d+\.parquet",
    "record": r"batch_\d+\.json",
    "metadata": r"metadata\.json",
    "joined": r".+_batches_\d+-\d+\.safetensors",
    "compaction": r"record\.json",
}
MOMENTS = ("before", "written", "named")
"""States of an object: it does not exist; its bytes are on the disk without a name, or some were sent to a bucket, or
parts of it were composed there; it has its name."""


def steps_of(*kinds: str) -> tuple[str, ...]:
    return tuple(f"{kind}.{moment}" for kind, moment in itertools.product(kinds, MOMENTS))


STEPS = steps_of("run", "tap", "rows", "record", "metadata")
STEPS_OF_COMPACTING = (*steps_of("joined", "compaction", "metadata"), "tap.removed", "rows.removed")

Reach = Callable[[str | Path, str], None]
"""Function that is called with an object's name and the moment it has reached."""


@dataclass(frozen=True)
class Fault:
    """Signal to a host that reaches `step` for the `nth` time: SIGKILL, or SIGSTOP, which a later SIGCONT ends."""

    step: str
    nth: int = 1
    signum: signal.Signals = signal.SIGKILL


def plant(fault: Fault) -> None:
    """Makes this process send itself the fault's signal at the fault's step."""
    counter, lock = itertools.count(1), threading.Lock()

    def reach(path: str | Path, moment: str) -> None:
        kind = next((kind for kind, name in KINDS.items() if re.fullmatch(name, Path(path).name)), None)
        if f"{kind}.{moment}" == fault.step:
            with lock:
                if next(counter) == fault.nth:
                    os.kill(os.getpid(), fault.signum)

    plant_in_folders(reach)
    plant_in_buckets(reach)
    for kind in (LocalFolder, BucketFolder):
        kind.remove = removing(kind.remove, reach)  # type: ignore[method-assign]


def removing(remove: Callable[..., None], reach: Reach) -> Callable[..., None]:
    def call(folder: Any, name: str) -> None:
        remove(folder, name)
        reach(name, "removed")

    return call


def plant_in_folders(reach: Reach) -> None:
    """Wraps the calls that write and name files."""
    write = local.write_temporary

    def write_temporary(path: Path, parts: Any) -> Path:
        reach(path, "before")
        return write(path, parts)

    def naming(give_name: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any) -> None:
            reach(target, "written")
            give_name(source, target)
            reach(target, "named")

        return call

    local.write_temporary = write_temporary
    os.link, os.replace = naming(os.link), naming(os.replace)  # type: ignore[assignment]


def plant_in_buckets(reach: Reach) -> None:
    """Wraps the calls that upload and compose objects."""
    sending = threading.local()
    send, pieces = MediaClient.send, Body.__iter__
    join, compose = BucketFolder._join, BucketFolder._compose

    def send_object(media: MediaClient, name: str, *arguments: Any) -> Uploaded:
        reach(name, "before")
        sending.name = name
        uploaded = send(media, name, *arguments)
        reach(name, "named")
        return uploaded

    def pieces_and_end(body: Body) -> Iterator[memoryview]:
        *most, last = pieces(body)
        yield from most
        reach(sending.name, "written")
        yield last

    def join_objects(folder: BucketFolder, name: str, *arguments: Any) -> Any:
        reach(name, "before")
        return join(folder, name, *arguments)

    def compose_objects(folder: BucketFolder, name: str, *arguments: Any, **options: Any) -> None:
        reach(name, "written")
        compose(folder, name, *arguments, **options)
        reach(name, "named")

    BucketFolder._join, BucketFolder._compose = join_objects, compose_objects  # type: ignore[method-assign]
    MediaClient.send, Body.__iter__ = send_object, pieces_and_end  # type: ignore[method-assign]
