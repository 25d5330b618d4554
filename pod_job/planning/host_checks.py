"""Checks of this machine before a weight is loaded: its clock, free disk and free memory.

What a system does not report (memory outside Linux, the time where there is neither bucket nor metadata server) is not
checked.
"""

import logging
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from pod_job import environment
from pod_job.config.schema import JobConfig, PodKind, Positions
from pod_job.errors import JobError
from pod_job.planning.inputs import Inputs
from pod_job.planning.memory import batches_in_flight, weights_on_host
from pod_job.planning.model_cost import stored_rows, vector_bytes
from pod_job.run_folder.layout import committed
from pod_job.units import size_text

# Access tokens and signed requests are refused at 5 minutes, and heartbeats are compared by the second.
MOST_SKEW_S = 60.0
ASK_TIMEOUT_S = 10.0
SCRATCH_BYTES = 256 << 20  # compiled programs on their way, logs

log = logging.getLogger("pod_job")


@dataclass(frozen=True)
class MachineNeeds:
    """Bytes that the run takes at least: `disk` by folder, `weights` and `batches` in this machine's memory."""

    disk: dict[Path, int]
    weights: int
    batches: int


def check_machine(inputs: Inputs, batch_tokens: Sequence[int]) -> None:
    """Raises JobError for what this machine lacks; `batch_tokens`: tokens of each batch of this host's share."""
    if url := clock_of(inputs.config):
        check_clock(clock_skew_s(url), url)
    needs = machine_needs(inputs, batch_tokens)
    for folder, needed in needs.disk.items():
        check_disk(folder, needed, free_bytes(folder))
    check_memory(needs, available_memory())


def machine_needs(inputs: Inputs, batch_tokens: Sequence[int]) -> MachineNeeds:
    """Returns a lower bound: generated tokens are not counted, whose number nobody knows yet."""
    config, extract = inputs.config, inputs.config.extract
    one_each, on_cpu = extract.positions.one_per_prompt, config.pod.kind is PodKind.local
    one_each = one_each or extract.positions is Positions.generated
    stored_bytes = vector_bytes(inputs.arch, inputs.taps, extract)
    per_batch = extract.save_every_n_samples
    rows = [per_batch if one_each else stored_rows(extract, 0, tokens) for tokens in batch_tokens]
    # The other hosts' shares follow from this host's: batches are assigned evenly.
    total_rows = len(inputs.tasks.samples) if one_each else sum(rows) * inputs.total_batches / max(1, len(rows))
    disk = {Path(tempfile.gettempdir()): SCRATCH_BYTES}
    if local := inputs.folder.local_path("."):
        done = len(committed(inputs.folder)) / max(1, inputs.total_batches)
        disk[local] = int(total_rows * stored_bytes * (1 - done))
    batches = max(rows, default=0) * stored_bytes * batches_in_flight(config) * (config.pod.hosts if on_cpu else 1)
    return MachineNeeds(disk, weights_on_host(inputs, on_cpu), batches)


def clock_of(config: JobConfig) -> str | None:
    """Returns the URL of a server that knows the time: a TPU VM's metadata server, else the bucket's."""
    if config.pod.kind is PodKind.tpu:
        return f"http://{os.environ.get(environment.METADATA_SERVER, 'metadata.google.internal')}/"
    if config.storage.run_dir.startswith("gs://"):
        return os.environ.get(environment.STORAGE_EMULATOR, "https://storage.googleapis.com")
    return None


def clock_skew_s(url: str) -> float | None:
    """Returns the seconds by which this machine's clock is ahead of the server's; None without an answer."""
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    # A metadata server or an emulator is never behind a proxy.
    proxies = [urllib.request.ProxyHandler({})] if url.startswith("http:") else []
    asked = time.time()
    try:
        with urllib.request.build_opener(*proxies).open(request, timeout=ASK_TIMEOUT_S) as answer:
            date = answer.headers["Date"]
    except urllib.error.HTTPError as error:
        date = error.headers["Date"]  # a refusal has the time too
        error.close()
    except OSError as error:
        log.warning("the clock is not checked: %s does not answer (%s)", url, error)
        return None
    if date is None:
        return None
    half_a_second = 0.5  # the header has whole seconds, rounded down
    return (asked + time.time()) / 2 - parsedate_to_datetime(date).timestamp() - half_a_second


def check_clock(skew_s: float | None, source: str) -> None:
    """Raises JobError where the clock is off by more than MOST_SKEW_S seconds."""
    if skew_s is not None and abs(skew_s) > MOST_SKEW_S:
        way = "ahead of" if skew_s > 0 else "behind"
        raise JobError(
            f"this host's clock is {abs(skew_s):.0f} s {way} {source}; set it: sudo systemctl restart chrony"
        )


def check_disk(folder: Path, needed: int, free: int) -> None:
    """Raises JobError where `needed` bytes are more than the folder's file system has free."""
    if needed > free:
        raise JobError(
            f"{folder} has {size_text(free)} of free disk, the run writes {size_text(needed)} there; "
            "free some, or use another storage.run_dir (scratch files: TMPDIR)"
        )


def check_memory(needs: MachineNeeds, available: int | None) -> None:
    """Raises JobError where the run holds more than the `available` bytes; None: not known."""
    total = needs.weights + needs.batches
    if available is not None and total > available:
        raise JobError(
            f"this machine has {size_text(available)} of free memory, the run holds {size_text(total)} at least: "
            f"weights {size_text(needs.weights)}, batches {size_text(needs.batches)}; "
            "lower extract.save_every_n_samples or storage.writers, extract fewer layers, or use fewer devices here"
        )


def free_bytes(folder: Path) -> int:
    """Returns the free bytes of the file system of a folder, which need not exist yet."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def available_memory() -> int | None:
    """Returns the bytes of memory that can still be allocated, swap included; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("MemAvailable:", "SwapFree:")))
