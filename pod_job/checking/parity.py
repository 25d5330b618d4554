"""The parity gate: before a run stores anything, the very step it will run is held against the float32 reference.

The first prompts of the run go through the compiled step on the whole mesh, packed as always; host 0 compares its rows
and leaves the result in the run folder, where the other hosts wait for it and merge finds it for metadata.json.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from pod_job.checking.reference import limit_of, reference_taps, relative_errors
from pod_job.config import JobConfig, Positions
from pod_job.distributed import Host
from pod_job.errors import JobError
from pod_job.extraction.forward import Step, local_rows, place
from pod_job.extraction.packing import Placed, Queued, lay_out, pack_steps
from pod_job.inputs import Inputs
from pod_job.mesh import feeding
from pod_job.prompts.tokens import Prompt, tokenize
from pod_job.run_folder import rundir
from pod_job.status import Phase, read_status

log = logging.getLogger("pod_job")

POLL_S = 0.5


@dataclass(frozen=True)
class Parity:
    """One start's result: per tap the relative L2 errors of its rows, `{"median": ..., "largest": ...}`."""

    attempt: str
    reference: str
    mesh: str
    sharding: str
    devices: str
    prompts: int
    rows: int
    limit: float
    passed: bool
    errors: dict[str, dict[str, float]]
    measured: str


def check_parity(
    config: JobConfig,
    inputs: Inputs,
    tokenizer: Any,
    host: Host,
    step: Step,
    params: Any,
    rows: NamedSharding,
    size: int,
) -> None:
    """Runs the step once, on every host, with the first prompts that fit; returns if it agrees with the reference.

    Args:
        rows: how a step's `size` rows are split.
    Raises:
        JobError: some tap is further off than `parity.limit`; the run must not go on.
    """
    extract, part = config.extract, feeding(rows, size, jax.process_index())
    samples = inputs.tasks.samples
    chosen = [samples[i] for i in range(min(config.parity.samples, len(samples)))]
    prompts = tokenize(tokenizer, chosen, extract.seq_len, extract.too_long)
    queued = [Queued(0, index, prompt) for index, prompt in enumerate(prompts)]
    layout = (size // part.feeders, extract.seq_len, extract.prompts_per_row)
    # Only the feeder to which host 0 belongs has prompts: host 0 sees their rows.
    with_host_0 = part.feeder == feeding(rows, size, 0).feeder
    item = next(pack_steps(queued, *layout)) if with_host_0 else lay_out([], *layout)
    output, _ = step(params, *place(item, False, rows, part))
    if jax.process_index() == 0:
        taps = {name: np.concatenate(local_rows(array)) for name, array in output.items()}
        result = compare(config, inputs, host, prompts, item.placed, taps)
        inputs.folder.replace(rundir.parity_file(host.attempt), json.dumps(asdict(result)).encode())
    else:
        result = await_result(inputs, host)
    if not result.passed:
        raise JobError(refusal(result))


def compare(
    config: JobConfig,
    inputs: Inputs,
    host: Host,
    prompts: Sequence[Prompt],
    placed: Sequence[Placed],
    taps: Mapping[str, np.ndarray],
) -> Parity:
    """The step's vectors of the placed prompts against the reference's."""
    last = config.extract.positions is Positions.last
    name, truths = reference_taps(inputs, [prompts[each.index].token_ids for each in placed])
    errors, count = {}, 0
    for tap, found in taps.items():
        ours = [found[p.row, [p.slot] if last else slice(p.start, p.start + p.length)] for p in placed]
        theirs = [truth[tap][-1:] if last else truth[tap] for truth in truths]
        each = relative_errors(np.concatenate(ours), np.concatenate(theirs))
        errors[tap] = {"median": float(np.median(each)), "largest": float(each.max())}
        count = len(each)
    limit = config.parity.limit or limit_of(config.model.dtype, config.extract.dtype)
    worst = max(error["largest"] for error in errors.values())
    log.info("parity with %s: %d rows, largest relative error %.2g, limit %.2g", name, count, worst, limit)
    return Parity(
        attempt=host.attempt,
        reference=name,
        mesh=f"{config.mesh.data}x{config.mesh.model}",
        sharding=config.sharding.value,
        devices=jax.devices()[0].device_kind,
        prompts=len(placed),
        rows=count,
        limit=limit,
        passed=worst <= limit,
        errors=errors,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def await_result(inputs: Inputs, host: Host) -> Parity:
    """What host 0 found. It may read a large model meanwhile, so there is no deadline; should it die, jax ends us."""
    while True:
        try:
            return Parity(**json.loads(inputs.folder.read(rundir.parity_file(host.attempt))))
        except FileNotFoundError:
            status = read_status(inputs.folder, 0, host.attempt)
            if status is not None and status.phase is Phase.failed:
                raise JobError(f"host 0 failed: {status.error}") from None
            time.sleep(POLL_S)


def refusal(result: Parity) -> str:
    tap = max(result.errors, key=lambda tap: result.errors[tap]["largest"])
    return (
        f"parity.limit={result.limit:g}: {tap} is {result.errors[tap]['largest']:.2g} off the reference "
        f"({result.reference}) on {result.rows} rows; the vectors would be wrong: use model.dtype=float32, or another "
        "jax version; raise parity.limit only if you know why"
    )
