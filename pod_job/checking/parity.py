"""The parity gate: before a run stores anything, its very programs are compared with a float32 reference.

The beginnings of the first prompts go through them on the whole mesh: through one packed step (on CPUs one of short
rows, see `short_rows`), or with mode=generate through prefill and some steps of decode. Host 0 compares its rows and
stores the result in the run folder, where the other hosts wait for it and merge reads it for metadata.json.
"""

import logging
import time
from collections.abc import Callable, Sequence

import jax
import msgspec
import numpy as np
from jax.experimental import multihost_utils

from pod_job.checking.gate_prompts import gate_prompts, windows_not_reached
from pod_job.checking.limits import RowRounding, as_read, excess, limits, mean_row, stored_rounding, summary
from pod_job.checking.reference import Reference, find_reference
from pod_job.checking.shipped import Shipped, read_shipped
from pod_job.checking.trial import Trial
from pod_job.config.generate import Mode
from pod_job.errors import JobError
from pod_job.formats.records import encode, now
from pod_job.formats.relative_errors import tap_errors
from pod_job.formats.rows_table import COMPUTED
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.host.host_end import PeerEnded
from pod_job.host.rendezvous import Host
from pod_job.planning.inputs import Inputs
from pod_job.prompts.prompt import Prompt
from pod_job.run_folder import layout
from pod_job.run_folder.parity import ParityRecord, TapErrors, read_parity
from pod_job.run_folder.slices import report_folder
from pod_job.run_folder.status import Phase, read_status

log = logging.getLogger("pod_job")

POLL_S = 0.5
"""Seconds between two looks for the result of host 0."""


def check_parity(
    inputs: Inputs,
    host: Host,
    try_out: Callable[[Sequence[Prompt]], list[Trial]],
    with_host_0: bool,
    row_length: int | None = None,
) -> ParityRecord:
    """Runs the prompts of the gate, on every host; returns the result if the vectors agree with the reference.

    Args:
        try_out: runs the programs once.
        with_host_0: whether this host feeds the rows that host 0 sees; the others feed empty rows.
        row_length: of the program, where it is not the run's own.
    Raises:
        JobError: a tap differs by more than rounding explains, or than `parity.limit`; the run must not go on.
    """
    prompts = gate_prompts(inputs)
    remove_earlier_result(inputs, host)
    trials = try_out(prompts if with_host_0 else [])
    if jax.process_index() == 0:
        result = msgspec.structs.replace(compare(inputs, host, trials), row_length=row_length)
        inputs.folder.replace(layout.parity_file(host.attempt), encode(result))
    else:
        result = await_result(inputs, host)
    if not result.passed:
        raise JobError(refusal(result))
    return result


def remove_earlier_result(inputs: Inputs, host: Host) -> None:
    """Removes the result of an earlier start of the same name, on every host before any goes on.

    Starts by hand share one name.
    """
    if jax.process_index() == 0:
        inputs.folder.remove(layout.parity_file(host.attempt))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("no parity yet")


def compare(inputs: Inputs, host: Host, trials: Sequence[Trial]) -> ParityRecord:
    """Returns the relative errors of the trials' vectors against the reference's, and the limits of rounding."""
    config = inputs.config
    sequences = list({trial.token_ids.tobytes(): trial.token_ids for trial in trials}.values())
    reference = find_reference(inputs, sequences, shipped_reference(inputs, sequences))
    errors, rounding, tap_limits = {}, {}, {}
    for tap in trials[0].vectors:
        rows = row_rounding(reference, trials, sequences, tap, DTYPE_OF[config.extract.dtype.value])
        vectors = np.concatenate([trial.vectors[tap] for trial in trials])
        stored = as_read(tap, vectors, inputs.widths, DTYPE_OF[config.extract.dtype.value])
        errors[tap] = summary(tap_errors(tap, np.asarray(stored), rows.truth))
        rounding[tap], tap_limits[tap] = summary(rows.total), limits(rows)
    if config.parity.limit is not None:
        only = TapErrors(median=config.parity.limit, largest=config.parity.limit)
        tap_limits = dict.fromkeys(errors, only)
        errors = {tap: TapErrors(of_tap.median, of_tap.largest) for tap, of_tap in errors.items()}  # for every row
    worst = max(errors, key=lambda tap: excess(errors[tap], tap_limits[tap]))
    count = sum(trial.rows for trial in trials)
    kind = "error in nats" if worst in COMPUTED else "relative error"
    furthest = errors[worst].largest if errors[worst].usual is None else errors[worst].usual  # but for single rows
    shown = f"{kind} {furthest:.2g} at {worst}, limit {tap_limits[worst].largest:.2g}"
    log.info("parity with %s: %d rows, %s", reference.name, count, shown)
    longest = max(map(len, sequences))
    if not_reached := windows_not_reached(inputs, longest):
        log.warning(
            "parity does not show what a sliding window of %s does: its prompts have at most %d tokens",
            " and ".join(f"{window:,}" for window in not_reached),
            longest,
        )
    return ParityRecord(
        attempt=host.attempt,
        reference=reference.name,
        mesh=f"{config.mesh.data}x{config.mesh.model}",
        sharding=config.sharding.value,
        devices=jax.devices()[0].device_kind,
        prompts=len(sequences),
        rows=count,
        limit=tap_limits[worst].largest,
        passed=excess(errors[worst], tap_limits[worst]) <= 1,
        errors=errors,
        measured=now(),
        limits=tap_limits,
        rounding=rounding,
        why_built_in=reference.why_built_in,
        windows_not_reached=not_reached,
    )


def shipped_reference(inputs: Inputs, sequences: Sequence[np.ndarray]) -> Shipped | str:
    """Returns the reference that came with the run; why there is none, where that is so."""
    if inputs.config.mode is Mode.generate:
        return "tokens that are generated are not known where the run is started"
    return read_shipped(inputs, sequences)


def row_rounding(
    reference: Reference, trials: Sequence[Trial], sequences: Sequence[np.ndarray], tap: str, stored: np.dtype
) -> RowRounding:
    """Returns the truths of the trials' rows of a tap, and by how far the reference's own arithmetic misses them."""
    numbers = {sequence.tobytes(): number for number, sequence in enumerate(sequences)}
    spans = [reference.rows(numbers[trial.token_ids.tobytes()], trial.positions) for trial in trials]
    pairs = [(reference.truths[tap][span], reference.errors[tap][span]) for span in spans]
    if any(trial.averaged for trial in trials):
        pairs = [mean_row(*pair) for pair in pairs]
    truth = np.concatenate([truth for truth, _ in pairs])
    computed = np.concatenate([errors for _, errors in pairs])
    return RowRounding(truth, computed, stored_rounding(truth, stored, tap), tap)


def await_result(inputs: Inputs, host: Host) -> ParityRecord:
    """Returns the result of host 0.

    Without a deadline, as host 0 may read a large model meanwhile; jax ends this process should host 0 die.
    """
    reports = report_folder(inputs.folder, host.slice)
    while True:
        try:
            return read_parity(inputs.folder, host.attempt)
        except FileNotFoundError:
            status = read_status(reports, 0, host.attempt)
            if status is not None and status.phase is Phase.failed:
                raise PeerEnded(0, f"host 0 failed: {status.error}") from None
            time.sleep(POLL_S)


def refusal(result: ParityRecord) -> str:
    """Returns the message for the tap that is furthest beyond its limit."""
    tap_limits = result.limits or {}
    tap = max(result.errors, key=lambda tap: excess(result.errors[tap], tap_limits[tap]))
    errors, limit = result.errors[tap], tap_limits[tap]
    kind = "median" if errors.median / limit.median >= excess(errors, limit) else "largest"
    unit = " nats" if tap in COMPUTED else ""
    return (
        f"parity: {tap} is {getattr(errors, kind):.2g}{unit} off the reference ({kind} error of {result.rows} rows; "
        f"{result.reference}), and rounding explains {getattr(limit, kind):.2g}; what is stored would be wrong: use "
        "model.dtype=float32, or another jax version; set parity.limit only if you know why"
    )
