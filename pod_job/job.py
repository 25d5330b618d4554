"""The job, as every host runs it: from the configuration to committed batches and, on the last host in, metadata."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from pod_job.checking.parity import check_parity
from pod_job.checking.trial import try_generation, try_step
from pod_job.checkpoints.load import load_params
from pod_job.config.generate import Mode
from pod_job.config.load import to_json
from pod_job.config.schema import ExtractConfig, JobConfig, PodKind
from pod_job.errors import JobError
from pod_job.extraction.feeder import batch_prompts
from pod_job.extraction.feeding import feeding
from pod_job.extraction.pipeline import extract, packed_feeder
from pod_job.extraction.step import compile_step
from pod_job.extraction.writers import Writers
from pod_job.finishing.merge import merge
from pod_job.generation.decoding import compile_generation
from pod_job.generation.generate import Ending, generate, wave_feeder
from pod_job.generation.predictions import write_predictions
from pod_job.host.chips import free_chips
from pod_job.host.compile_cache import compile_cache
from pod_job.host.rendezvous import Host, await_hosts, start, this_host
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.host.watchdog import Watchdog, forget, report_end
from pod_job.models.decoder import Decoder
from pod_job.models.mesh import make_mesh, placement, row_sharding, weight_shardings
from pod_job.models.sharding import row_shards, stated
from pod_job.planning.batches import deal
from pod_job.planning.host_checks import check_machine
from pod_job.planning.inputs import Inputs, read_inputs
from pod_job.planning.memory import telling_what_is_held
from pod_job.prompts.tasks import Tasks
from pod_job.prompts.tokens import load_tokenizer
from pod_job.run_folder.identity import claim
from pod_job.run_folder.layout import committed
from pod_job.run_folder.status import Phase
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

log = logging.getLogger("pod_job")


def run(config: JobConfig) -> None:
    """Runs this host's part; returns when every batch of the run that fell to it is committed.

    Raises:
        JobError: bad input, found before any weight is loaded.
    """
    host = this_host(config.pod)
    folder = open_folder(config.storage.run_dir)
    folder.check_writable()
    forget(folder, host.attempt)
    with (
        StopRequest() as stop,
        Reporter(folder, host) as reporter,
        telling_failure(reporter, folder, host),
        Watchdog(folder, host, stop, reporter),
    ):
        stop.on_signal()
        if config.pod.kind is PodKind.tpu:
            stop.on_notice()
        inputs = read_inputs(config)
        tell_skipped(inputs.tasks, reporter)
        tokenizer = load_tokenizer(inputs.model_dir)
        check_machine(config, inputs, check_prompts(tokenizer, inputs, config.extract, host))
        if config.pod.kind is PodKind.tpu:
            free_chips()

        reporter.phase(Phase.arrived)
        await_hosts(folder, host, config.pod.arrival_timeout_s)
        claim(folder, inputs.identity, to_json(config))
        start(host)
        reporter.timeline.device = jax.devices()[0].device_kind
        reporter.timeline.devices = jax.local_device_count()
        stop.on_signal()

        pending = pending_batches(inputs)
        log.info("%d of %d batches to do", len(pending), inputs.total_batches)
        if pending:
            with telling_what_is_held(config, inputs):
                compute(config, inputs, pending, tokenizer, host, reporter, stop)

        if stop and len(committed(folder)) < inputs.total_batches:
            reporter.phase(Phase.stopped, error=stop.reason)
            return
        reporter.phase(Phase.merging)
        finish_when_whole(inputs, config)
        reporter.phase(Phase.done)


def compute(
    config: JobConfig,
    inputs: Inputs,
    pending: list[int],
    tokenizer: Any,
    host: Host,
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Loads weights, compiles and runs this host's share of the `pending` batches, until they are committed."""
    mesh = make_mesh(config.mesh)
    rows = row_sharding(mesh, config.sharding)
    global_rows = row_shards(config.mesh, config.sharding) * config.extract.rows_per_device
    part = feeding(rows, global_rows, jax.process_index())
    mine = deal(pending, part.feeders)[part.feeder]
    log.info("%d batches here", len(mine))

    reporter.phase(Phase.weights, batches_total=len(mine) if part.writes else 0)
    dtype = jnp.dtype(config.model.dtype.value)
    log.info("%s", stated(inputs.table, config.mesh, config.sharding))
    shardings = weight_shardings(mesh, config.sharding, inputs.table)
    params = load_params(inputs.checkpoint, inputs.table, dtype, shardings)

    reporter.phase(Phase.compiling)
    model = Decoder(inputs.arch, inputs.taps, dtype, placement(mesh, config.sharding, shardings))
    with compile_cache(config.storage.compile_cache):
        if config.mode is Mode.generate:
            ending = Ending(config.generate, inputs.end_tokens, tokenizer)
            programs = compile_generation(model, params, mesh, rows, global_rows, config.extract, ending)
            make_feeder, run_steps = wave_feeder, partial(generate, programs, ending)
            try_out = partial(try_generation, programs, ending)
        else:
            step = compile_step(model, params, mesh, rows, global_rows, config.extract)
            make_feeder, run_steps, try_out = packed_feeder, partial(extract, step), partial(try_step, step)
    feeder_rows = global_rows // part.feeders
    if config.parity.samples:
        tried = partial(try_out, params, rows, part, feeder_rows, config.extract)
        with_host_0 = part.feeder == feeding(rows, global_rows, 0).feeder
        check_parity(config, inputs, tokenizer, host, tried, with_host_0)

    reporter.phase(Phase.extracting)
    on_nonfinite = config.extract.on_nonfinite
    feeder = make_feeder(mine, inputs, tokenizer, config.extract, feeder_rows, part.writes, reporter, stop)
    with Writers(config.storage.writers, inputs.folder, host.index, reporter.committed, on_nonfinite) as writers:
        run_steps(params, feeder, rows, part, writers, reporter)


@contextmanager
def telling_failure(reporter: Reporter, folder: Folder, host: Host) -> Iterator[None]:
    """Puts the reason of a failure into this host's status, and where the other hosts look out for it."""
    try:
        yield
    except BaseException as error:
        reason = str(error) if isinstance(error, JobError) else f"{type(error).__name__}: {error}"
        log.error("%s", reason, exc_info=not isinstance(error, JobError))
        report_end(reporter, folder, host, Phase.failed, reason)
        raise


def tell_skipped(tasks: Tasks, reporter: Reporter) -> None:
    """Names the broken tasks that are left out."""
    reporter.set(skipped_tasks=tasks.skipped)
    for reason in tasks.reasons:
        log.warning("skipped: %s", reason)
    if tasks.skipped > len(tasks.reasons):
        log.warning("skipped: %d more", tasks.skipped - len(tasks.reasons))


def check_prompts(tokenizer: Any, inputs: Inputs, config: ExtractConfig, host: Host) -> list[int]:
    """Tokenises this host's share of the prompts, so that one too long is refused before any weight is loaded; the
    tokens of each of its batches.
    """
    batches = range(1 + host.index, inputs.total_batches + 1, host.count)
    return [
        sum(len(prompt.token_ids) for prompt in batch_prompts(batch, inputs, tokenizer, config)) for batch in batches
    ]


def pending_batches(inputs: Inputs) -> list[int]:
    """The batches without a commit record, as host 0 sees them: all hosts must deal the same ones."""
    done = np.zeros(inputs.total_batches + 1, np.int8)
    if jax.process_index() == 0:
        done[sorted(committed(inputs.folder))] = 1
    if jax.process_count() > 1:
        done = np.asarray(multihost_utils.broadcast_one_to_all(done))
    return [batch for batch in range(1, inputs.total_batches + 1) if not done[batch]]


def finish_when_whole(inputs: Inputs, config: JobConfig) -> None:
    """Writes metadata.json if no batch is missing, and before it what was predicted.

    Every host tries as it ends, so the last one in succeeds.
    """
    if len(committed(inputs.folder)) < inputs.total_batches:
        return
    if config.mode is Mode.generate:
        summary = write_predictions(inputs.folder, inputs.total_batches, config.tasks)
        log.info("predictions: %s", ", ".join(f"{name} {value}" for name, value in summary.items()))
    merge(inputs.folder)
