"""Names of the files in a run folder."""

import re
from collections.abc import Sequence
from typing import Literal

from pod_job.errors import JobError
from pod_job.storage.folder import Folder

RUN = "run.json"
ACCEPTED = "accepted/"
ACTIVATIONS = "activations/"
METADATA = ACTIVATIONS + "metadata.json"
COMMITS = "commits/"
PARITY = "parity/"
REFERENCE = "reference/record.json"
REFERENCE_VECTORS = "reference/vectors.safetensors"
SPILL = "pieces/"
PODS = "pods/"
OUTPUTS = "outputs/"
COMPACTION = "compaction/record.json"
TIMELINE = "timeline/"
REPORT = "report/"
INDEX = "index/"
TOKENIZER = "tokenizer/tokenizer.json"
START = "launcher/start.json"
BUCKET_RATE = "launcher/bucket_rate.json"
SLICES = "slices/"
LEASES = "leases/"
BLOCKS = LEASES + "blocks.json"
VERIFIED = "verify/report.json"
SAES = "saes/"
SAES_METADATA = SAES + "metadata.json"
SAE_CONFIG, SAE_WEIGHTS = "cfg.json", "sae_weights.safetensors"
METRICS = "training/metrics.json"
CHECKPOINTS = "training/checkpoints/"
EVALUATION = "evaluation/record.json"
FORMAT: Literal[2] = 2
"""Version of the layout and of the records; a reader refuses any other."""
REPAIR = "copy it again, or run again what made the run: the job, import or shuffle"
"""Advice about a lost file of a run: whoever makes the run again finds its other files and takes them."""
MAX_BATCHES = 1_000_000
"""Batches of a run: their numbers and records are held in memory, and a run.json with more is damaged."""


def sae_prefix(name: str) -> str:
    """Returns what the names of a trained SAE's files begin with."""
    return f"{SAES}{name}/"


def accepted_file(key: str) -> str:
    """Returns the name of a record of accepted differences; `key` follows from its content."""
    return f"{ACCEPTED}{key}.json"


def index_file(key: str) -> str:
    """Returns the name of the index of a task source; `key` stands for what the configuration asks for."""
    return f"{INDEX}{key}.json"


def index_part(key: str, content: str, number: int) -> str:
    """Returns the name of a part of an index, from 1; `content` stands for the files that were listed."""
    return f"{INDEX}{key}/{content}/part_{number:06d}.json"


def budget_file(key: str) -> str:
    """Returns the name of the record of what tasks.max_tokens has room for."""
    return f"{INDEX}tokens_{key}.json"


def budget_part(key: str, number: int) -> str:
    """Returns the name of a record of the tokens of some samples, from 1."""
    return f"{INDEX}tokens_{key}/part_{number:06d}.json"


def activations_file(tap: str, batch: int) -> str:
    return f"{ACTIVATIONS}{tap}_batch_{batch:06d}.safetensors"


def rows_file(batch: int) -> str:
    return f"{ACTIVATIONS}rows_batch_{batch:06d}.parquet"


def joined_file(series: str, first: int, last: int) -> str:
    """Returns the name of the file that holds those of these batches; `series` is a tap, or `rows`."""
    return f"{ACTIVATIONS}{series}_batches_{first:06d}-{last:06d}.safetensors"


def is_joined(name: str) -> bool:
    return re.fullmatch(re.escape(ACTIVATIONS) + r".+_batches_\d{6,}-\d{6,}\.safetensors", name) is not None


def commit_file(batch: int) -> str:
    return f"{COMMITS}batch_{batch:06d}.json"


def outputs_file(batch: int) -> str:
    return f"{OUTPUTS}batch_{batch:06d}.jsonl"


def status_file(host: int) -> str:
    return f"status/host_{host:02d}.json"


def departure_file(attempt: str) -> str:
    """Returns the name of the record of the first host that left an attempt before its end."""
    return f"status/departure_{attempt}.json"


def lease_file(work: str, take: int) -> str:
    """Returns the name of a lease; `take`: from 1, one more whenever the work is taken over."""
    return f"{LEASES}{work}_take_{take:02d}.json"


def trail_file(name: str, number: int) -> str:
    """Returns the name, in a slice's folder, of what a feeder of several hosts has taken, from 1."""
    return f"trail/{name}_{number:06d}.json"


def log_file(host: int) -> str:
    return f"logs/host_{host:02d}.log"


def code_file(name: str) -> str:
    """Returns the name of the code that ran; `name` follows from its content. Hosts fetch it by this name."""
    return f"code/{name}.tar.gz"


def measurement_place(host: int) -> str:
    """Returns the prefix of the objects that a host writes to measure a rate, and removes."""
    return f"measurement/host_{host:02d}/"


def spill_file(number: int) -> str:
    return f"{SPILL}batch_{number:06d}.safetensors"


def pod_file(key: str, moment: str) -> str:
    """Returns the name of the record of a pod, which the launcher writes; `moment`: created or ended."""
    return f"{PODS}{key}_{moment}.json"


def parity_file(attempt: str) -> str:
    return f"{PARITY}{attempt}.json"


def timeline_file(attempt: str, host: int) -> str:
    return f"{TIMELINE}{attempt}_host_{host:02d}.json"


def batch_of_commit(name: str) -> int | None:
    """Returns the batch number in the name of a commit record; None for any other name."""
    match = re.fullmatch(re.escape(COMMITS) + r"batch_(\d{6,})\.json", name)
    return int(match[1]) if match else None


def committed(folder: Folder) -> set[int]:
    """Returns the numbers of the batches that are done."""
    numbers = (batch_of_commit(name) for name in folder.names(COMMITS))
    return {number for number in numbers if number is not None}


def batch_of_file(name: str, taps: Sequence[str]) -> int | None:
    """Returns the batch number in the name of a tap file or rows table; None for any other name."""
    match = re.fullmatch(re.escape(ACTIVATIONS) + r"(.+)_batch_(\d{6,})\.(safetensors|parquet)", name)
    if not match:
        return None
    number, tap = int(match[2]), match[1]
    return number if name == rows_file(number) or (tap in taps and name == activations_file(tap, number)) else None


def is_batch_file(name: str) -> bool:
    """Returns True for the names of a batch's files and records, and of spill files: in a complete run all are done."""
    return re.fullmatch(r"(activations/.+|commits/|outputs/|pieces/)batch_\d{6,}\.[a-z]+", name) is not None


def layer_number(tap: str) -> int:
    """Returns the layer in a tap's name: 6 for `layer_6` and `layer_6.attn_out`, 24 for `layer_24_norm`.

    `embed`, which comes before layer 0, is -1. Raises JobError for what is no tap's name.
    """
    if tap == "embed":
        return -1
    match = re.match(r"layer_(\d+)(?![0-9A-Za-z])", tap)
    if not match:
        raise JobError(f"tap {tap!r} names no layer; names look like layer_6, layer_24_norm or layer_6.attn_out")
    return int(match[1])


def is_residual(tap: str) -> bool:
    """Returns True for taps of the residual stream, where attention sinks stand out."""
    return "." not in tap or tap.rpartition(".")[2].startswith("resid")
