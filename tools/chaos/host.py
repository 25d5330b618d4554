"""One process that may die: a host of a pod, or a compaction, forked, with a fault planted in its run folder's writes.

Nothing of this is in the job itself: the fault sits around the calls by which objects get and lose their names.
"""

import itertools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import transformers

# Imported here, before the fork, once for all hosts: imports are most of what a start costs.
import pod_job.job  # noqa: F401
from pod_job import __main__ as entry
from pod_job.commands.command_line import BAD_INPUT
from pod_job.commands.merge import main as merge_main
from pod_job.storage import gcs, gcs_media
from pod_job.storage.gcs import BucketFolder
from pod_job.storage.local import LocalFolder

# transformers imports a class when it is first named.
_ = transformers.PreTrainedTokenizerFast, transformers.AutoTokenizer, transformers.AutoConfig

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
"""Of an object: nothing of it is there; its bytes are on the disk, nameless, or half of them on their way to a bucket,
or parts of it composed there; it has its name."""


def steps_of(*kinds: str) -> tuple[str, ...]:
    return tuple(f"{kind}.{moment}" for kind, moment in itertools.product(kinds, MOMENTS))


STEPS = steps_of("run", "tap", "rows", "record", "metadata")
STEPS_OF_COMPACTING = (*steps_of("joined", "compaction", "metadata"), "tap.removed", "rows.removed")
RETRY_S = 0.1


@dataclass(frozen=True)
class Fault:
    """What befalls a host when it comes to `step` for the `nth` time: SIGKILL, or SIGSTOP for a later awakening."""

    step: str
    nth: int = 1
    signum: signal.Signals = signal.SIGKILL


def host_main(overrides: Sequence[str], env: Mapping[str, str], fault: Fault | None, log: Path) -> None:
    """The body of the forked process: `python -m pod_job` with these overrides and variables."""
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    # jax read its variables when it was imported, before the fork.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(env["JAX_NUM_CPU_DEVICES"]))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if fault is not None:
        plant(fault)
    status = entry.main(list(overrides))
    sys.stdout.flush()
    if status:
        os._exit(status)
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()  # at exit, were this not a fork
    os._exit(0)


def compaction_main(
    run_dir: str, max_bytes: int, patient: bool, env: Mapping[str, str], fault: Fault | None, log: Path
) -> None:
    """The body of the forked process: `pod-job merge RUN_DIR --compact`; again while refused if `patient`."""
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(env)
    if fault is not None:
        plant(fault)
    arguments = [run_dir, "--compact", "--max-bytes", str(max_bytes)]
    while (status := merge_main(arguments)) == BAD_INPUT and patient:
        time.sleep(RETRY_S)
    sys.stdout.flush()
    os._exit(status)


def plant(fault: Fault) -> None:
    """Lets this process meet its fault."""
    counter, lock = itertools.count(1), threading.Lock()

    def reach(path: Any, moment: str) -> None:
        kind = next((kind for kind, name in KINDS.items() if re.fullmatch(name, Path(path).name)), None)
        if f"{kind}.{moment}" == fault.step:
            with lock:
                if next(counter) == fault.nth:
                    os.kill(os.getpid(), fault.signum)

    def around(named: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any) -> None:
            reach(target, "written")
            named(source, target)
            reach(target, "named")

        return call

    write = LocalFolder._write_temporary

    def write_temporary(folder: LocalFolder, path: Path, parts: Any) -> Path:
        reach(path, "before")
        return write(folder, path, parts)

    def removing(remove: Callable[..., None]) -> Callable[..., None]:
        def call(folder: Any, name: str) -> None:
            remove(folder, name)
            reach(name, "removed")

        return call

    sending = threading.local()
    send, pieces = BucketFolder._send, gcs_media.Body.__iter__

    def send_object(folder: BucketFolder, upload: gcs.Upload) -> gcs_media.Uploaded:
        reach(upload.name, "before")
        sending.name = upload.name
        uploaded = send(folder, upload)
        reach(upload.name, "named")
        return uploaded

    def pieces_and_end(body: gcs_media.Body) -> Iterator[memoryview]:
        *most, last = pieces(body)
        yield from most
        reach(sending.name, "written")
        yield last

    join, compose = BucketFolder._join, BucketFolder._compose

    def join_objects(folder: BucketFolder, name: str, *arguments: Any) -> Any:
        reach(name, "before")
        return join(folder, name, *arguments)

    def compose_objects(folder: BucketFolder, name: str, *arguments: Any, **named: Any) -> None:
        reach(name, "written")
        compose(folder, name, *arguments, **named)
        reach(name, "named")

    LocalFolder.remove = removing(LocalFolder.remove)  # type: ignore[method-assign]
    BucketFolder.remove = removing(BucketFolder.remove)  # type: ignore[method-assign]
    BucketFolder._join, BucketFolder._compose = join_objects, compose_objects  # type: ignore[method-assign]
    LocalFolder._write_temporary = write_temporary  # type: ignore[method-assign]
    BucketFolder._send, gcs_media.Body.__iter__ = send_object, pieces_and_end  # type: ignore[method-assign]
    os.link, os.replace = around(os.link), around(os.replace)  # type: ignore[assignment]
