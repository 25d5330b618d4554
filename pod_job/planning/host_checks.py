"""Whether this machine is fit for the run: its clock, free disk and memory, before a weight is loaded.

What a system does not tell (memory outside Linux, the time where there is neither bucket nor metadata server) is not
checked.
"""

import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path

from pod_job import environment
from pod_job.config.schema import JobConfig, PodKind
from pod_job.errors import JobError
from pod_job.planning.inputs import Inputs
from pod_job.planning.memory import GB, Needs, run_needs

# Access tokens and signed requests are refused at 5 minutes, and heartbeats are compared by the second.
MOST_SKEW_S = 60.0
ASK_TIMEOUT_S = 10.0

log = logging.getLogger("pod_job")


def check_machine(config: JobConfig, inputs: Inputs, batch_tokens: Sequence[int]) -> None:
    """Raises JobError for what is lacking; `batch_tokens`: the prompts' tokens in each batch of this host's share."""
    if url := clock_of(config):
        check_clock(clock_skew_s(url), url)
    needs = run_needs(config, inputs, batch_tokens)
    for folder, needed in needs.disk.items():
        check_disk(folder, needed, free_bytes(folder))
    check_memory(needs, available_memory())


def clock_of(config: JobConfig) -> str | None:
    """A server that knows the time: of a TPU VM its metadata server, else the bucket's."""
    if config.pod.kind is PodKind.tpu:
        return f"http://{os.environ.get(environment.METADATA_SERVER, 'metadata.google.internal')}/"
    if config.storage.run_dir.startswith("gs://"):
        return os.environ.get(environment.STORAGE_EMULATOR, "https://storage.googleapis.com")
    return None


def clock_skew_s(url: str) -> float | None:
    """Seconds by which this machine's clock is ahead of the server's; None when the server cannot be asked."""
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
    if skew_s is not None and abs(skew_s) > MOST_SKEW_S:
        way = "ahead of" if skew_s > 0 else "behind"
        raise JobError(
            f"this host's clock is {abs(skew_s):.0f} s {way} {source}; set it: sudo systemctl restart chrony"
        )


def check_disk(folder: Path, needed: int, free: int) -> None:
    if needed > free:
        raise JobError(
            f"{folder} has {free / GB:,.1f} GB of free disk, the run writes {needed / GB:,.1f} GB there; "
            "free some, or use another storage.run_dir (scratch files: TMPDIR)"
        )


def check_memory(needs: Needs, available: int | None) -> None:
    total = needs.weights + needs.batches
    if available is not None and total > available:
        raise JobError(
            f"this machine has {available / GB:,.1f} GB of free memory, the run holds {total / GB:,.1f} GB at least: "
            f"weights {needs.weights / GB:,.1f}, batches {needs.batches / GB:,.1f}; "
            "lower extract.save_every_n_samples or storage.writers, extract fewer layers, or use fewer devices here"
        )


def free_bytes(folder: Path) -> int:
    """On the file system of a folder that may not be there yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def available_memory() -> int | None:
    """Bytes that can still be had, swap included; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:
        return None
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("MemAvailable:", "SwapFree:")))
