"""The parity gate: before a run stores anything, its very programs are compared with a float32 reference.

The first prompts of the run go through them on the whole mesh: through one packed step, or with mode=generate through
prefill and some steps of decode. Host 0 compares its rows and stores the result in the run folder, where the other
hosts wait for it and merge reads it for metadata.json.
"""

import logging
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from pod_job.checking.reference import limit_of, reference_taps, relative_errors
from pod_job.checking.trial import Trial
from pod_job.errors import JobError
from pod_job.formats.quantized import from_rows
from pod_job.formats.records import encode, now
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.host.host_end import PeerEnded
from pod_job.host.rendezvous import Host
from pod_job.planning.inputs import Inputs
from pod_job.prompts.tokens import Prompt
from pod_job.run_folder import layout
from pod_job.run_folder.parity import ParityRecord, TapErrors, read_parity
from pod_job.run_folder.status import Phase, read_status

log = logging.getLogger("pod_job")

POLL_S = 0.5
"""Seconds between two looks for the result of host 0."""


def check_parity(
    inputs: Inputs, host: Host, try_out: Callable[[Sequence[Prompt]], list[Trial]], with_host_0: bool
) -> None:
    """Runs the first prompts that fit, on every host, and returns if the vectors agree with the reference.

    Args:
        try_out: runs the programs once.
        with_host_0: whether this host feeds the rows that host 0 sees; the others feed empty rows.
    Raises:
        JobError: a tap differs by more than `parity.limit`; the run must not go on.
    """
    prompts = inputs.first_prompts(inputs.config.parity.samples)
    remove_earlier_result(inputs, host)
    trials = try_out(prompts if with_host_0 else [])
    if jax.process_index() == 0:
        result = compare(inputs, host, trials)
        inputs.folder.replace(layout.parity_file(host.attempt), encode(result))
    else:
        result = await_result(inputs, host)
    if not result.passed:
        raise JobError(refusal(result))


def remove_earlier_result(inputs: Inputs, host: Host) -> None:
    """Removes the result of an earlier start of the same name, on every host before any goes on.

    Starts by hand share one name.
    """
    if jax.process_index() == 0:
        inputs.folder.remove(layout.parity_file(host.attempt))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("no parity yet")


def compare(inputs: Inputs, host: Host, trials: Sequence[Trial]) -> ParityRecord:
    """Returns the relative errors of the trials' vectors against the reference's."""
    name, truths = reference_taps(inputs, [trial.token_ids for trial in trials])
    config = inputs.config
    errors, count = {}, 0
    for tap in trials[0].vectors:
        reference_vectors = [
            truth[tap][trial.positions.start : trial.positions.stop]
            for truth, trial in zip(truths, trials, strict=True)
        ]
        vectors = np.concatenate([trial.vectors[tap] for trial in trials])
        stored = from_rows(vectors, inputs.widths[tap], DTYPE_OF[config.extract.dtype.value])
        row_errors = relative_errors(np.asarray(stored), np.concatenate(reference_vectors))
        errors[tap] = TapErrors(median=float(np.median(row_errors)), largest=float(row_errors.max()))
        count = len(row_errors)
    limit = config.parity.limit or limit_of(config.model.dtype, config.extract.dtype)
    worst = max(error.largest for error in errors.values())
    log.info("parity with %s: %d rows, largest relative error %.2g, limit %.2g", name, count, worst, limit)
    return ParityRecord(
        attempt=host.attempt,
        reference=name,
        mesh=f"{config.mesh.data}x{config.mesh.model}",
        sharding=config.sharding.value,
        devices=jax.devices()[0].device_kind,
        prompts=len(trials),
        rows=count,
        limit=limit,
        passed=worst <= limit,
        errors=errors,
        measured=now(),
    )


def await_result(inputs: Inputs, host: Host) -> ParityRecord:
    """Returns the result of host 0.

    Without a deadline, as host 0 may read a large model meanwhile; jax ends this process should host 0 die.
    """
    while True:
        try:
            return read_parity(inputs.folder, host.attempt)
        except FileNotFoundError:
            status = read_status(inputs.folder, 0, host.attempt)
            if status is not None and status.phase is Phase.failed:
                raise PeerEnded(0, f"host 0 failed: {status.error}") from None
            time.sleep(POLL_S)


def refusal(result: ParityRecord) -> str:
    tap = max(result.errors, key=lambda tap: result.errors[tap].largest)
    return (
        f"parity.limit={result.limit:g}: {tap} is {result.errors[tap].largest:.2g} off the reference "
        f"({result.reference}) on {result.rows} rows; the vectors would be wrong: use model.dtype=float32, or another "
        "jax version; raise parity.limit only if you know why"
    )
