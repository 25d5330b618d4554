"""The job, as every host runs it: from the configuration to committed batches and, on the last host in, metadata."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from pod_job.checking.gate_prompts import gate_prompts
from pod_job.checking.parity import check_parity
from pod_job.checking.short_rows import short_rows
from pod_job.checking.trial import try_program
from pod_job.checkpoints.checkpoint import unread
from pod_job.checkpoints.load import load_params
from pod_job.config.generate import Mode
from pod_job.config.schema import JobConfig, PodKind
from pod_job.extraction.batch_source import Assigned, LeasedBatches, Reporting
from pod_job.extraction.feeding import Feeding, feeding, step_rows
from pod_job.extraction.pipeline import FirstStep, PackedFeeder, extract
from pod_job.extraction.step import Step, compile_step
from pod_job.extraction.writers import Writers
from pod_job.finishing.merge import merge
from pod_job.finishing.merge_once import takes_merge
from pod_job.generation.completions import Ending
from pod_job.generation.decoding import compile_generation
from pod_job.generation.generate import PromptFeeder, generate
from pod_job.generation.generator import Generator
from pod_job.generation.predictions import write_predictions
from pod_job.generation.shape import shape_for
from pod_job.host.chips import free_chips
from pod_job.host.compile_cache import compile_cache
from pod_job.host.departure import clear_departure, reporting_failure
from pod_job.host.rendezvous import Host, await_hosts, start, this_host
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.host.watchdog import Watchdog
from pod_job.models.decoder import Decoder, Params
from pod_job.models.mesh import make_mesh, placement, weight_shardings
from pod_job.models.sharding import sharding_line
from pod_job.planning.batches import assign_batches
from pod_job.planning.host_checks import check_machine
from pod_job.planning.inputs import Inputs, claim_run, open_run_folder, read_inputs
from pod_job.planning.memory import explaining_memory
from pod_job.planning.prompt_survey import survey_share
from pod_job.planning.shared_work import Share
from pod_job.planning.task_index import Counting, TaskReading
from pod_job.prompts.tasks import Tasks
from pod_job.prompts.tokenizer import has_vocabulary
from pod_job.run_folder.layout import committed
from pod_job.run_folder.leases import Blocks, Holder, Holders, Leases, agreed_blocks, per_block
from pod_job.run_folder.slices import report_folder
from pod_job.run_folder.status import EndKind, Phase
from pod_job.run_folder.tokenizer import store_tokenizer

log = logging.getLogger("pod_job")


def run(config: JobConfig) -> bool:
    """Runs this host's part; returns when every batch of the run that fell to it is committed.

    Returns:
        False where it was asked to stop before that.

    Raises:
        JobError: bad input, found before any weight is loaded.
    """
    host = this_host(config.pod)
    folder = open_run_folder(config)
    reports = report_folder(folder, host.slice)
    clear_departure(reports, host.attempt)
    with (
        StopRequest() as stop,
        Reporter(reports, host) as reporter,
        reporting_failure(reporter, reports, host),
        Watchdog(reports, host, stop, reporter),
    ):
        listen(stop, config)
        reading = TaskReading(Counting.hosts, Share(host.index, host.count))
        inputs = read_inputs(config, folder, reading)
        log_skipped(inputs.tasks, reporter)
        check_machine(inputs, survey_share(inputs, host.index, host.count))
        join_hosts(inputs, host, reporter)
        stop.on_signal()
        pending = pending_batches(inputs)
        log.info("%d of %d batches to do", len(pending), inputs.total_batches)
        if pending:
            with explaining_memory(inputs):
                compute(inputs, pending, host, reporter, stop)
        return finish(inputs, host, reporter, stop)


def listen(stop: StopRequest, config: JobConfig) -> None:
    """Lets a signal or, on a TPU VM, the notice of its preemption or the limit of the run's cost request a stop."""
    stop.on_signal()
    if config.pod.kind is PodKind.tpu:
        stop.on_notice()
        stop.on_limit()


def join_hosts(inputs: Inputs, host: Host, reporter: Reporter) -> None:
    """Waits for the other hosts, makes the run folder this run's, and starts jax on all hosts."""
    config = inputs.config
    if config.pod.kind is PodKind.tpu:
        free_chips(config.storage.run_dir)
    _ = inputs.identity  # which may read weights whole: before others wait for this host
    reporter.phase(Phase.arrived)
    await_hosts(report_folder(inputs.folder, host.slice), host, config.pod.arrival_timeout_s)
    claim_run(inputs)
    if host.index == 0:
        keep_tokenizer(inputs)
    start(host)
    reporter.timeline.device = jax.devices()[0].device_kind
    reporter.timeline.devices = jax.local_device_count()


def keep_tokenizer(inputs: Inputs) -> None:
    """Keeps the tokenizer in the run folder, so that rows are shown as text wherever the folder is."""
    if has_vocabulary(inputs.model_dir) and not store_tokenizer(inputs.folder, inputs.tokenizer):
        log.warning(
            "%s: no tokenizer.json can be made of its tokenizer; texts of rows need the model", inputs.model_dir
        )


def compute(inputs: Inputs, pending: list[int], host: Host, reporter: Reporter, stop: StopRequest) -> None:
    """Loads weights, compiles and runs this host's share of the `pending` batches, until they are committed."""
    config, mesh = inputs.config, make_mesh(inputs.config.mesh)
    rows = step_rows(config, mesh)
    part = feeding(rows, jax.process_index())
    reporter.phase(Phase.weights)
    source = batch_source(inputs, pending, host, part, Reporting(reporter, stop))
    make_feeder = PackedFeeder if config.mode is Mode.prefill else PromptFeeder
    feeder = make_feeder(source.batches(), inputs, part, reporter, stop)  # reads ahead from here on
    model, params = load_model(inputs, mesh)

    reporter.phase(Phase.compiling)
    program = compile_program(inputs, model, params, part)
    hold = None
    if config.parity.samples:
        hold = pass_gate(inputs, host, program, model, part)

    reporter.phase(Phase.extracting)
    on_nonfinite = config.extract.on_nonfinite
    with Writers(config.storage.writers, inputs.folder, host.index, reporter.committed, on_nonfinite) as writers:
        while True:
            match program, feeder:
                case Step(), PackedFeeder():
                    extract(program, feeder, writers, reporter, hold)
                case Generator(), PromptFeeder():
                    generate(program, feeder, writers, reporter)
            if not source.more():
                break
            feeder = make_feeder(source.batches(), inputs, part, reporter, stop)


def batch_source(
    inputs: Inputs, pending: list[int], host: Host, part: Feeding, reporting: Reporting
) -> Assigned | LeasedBatches:
    """Returns where this host's batches come from: its share of the `pending` ones, or leases among several slices."""
    if host.slice is None:
        batches = assign_batches(pending, part.feeders)[part.feeder]
        log.info("%d batches here", len(batches))
        reporting.reporter.set(batches_total=len(batches) if part.writes else 0)
        return Assigned(batches)
    pod, total = inputs.config.pod, inputs.total_batches
    blocks = agreed_blocks(inputs.folder, Blocks(total, per_block(total, part.feeders * pod.slices)))
    log.info("slice %s takes batches by lease, %d at a time", host.slice, blocks.per_block)
    return LeasedBatches(blocks, pending, *leases_of(inputs, host), part, reporting)


def leases_of(inputs: Inputs, host: Host) -> tuple[Leases, Holders]:
    """Returns the leases of the run as this host of a slice takes them, and its view of other holders."""
    holder = Holder(host.slice or "", host.index, host.attempt)
    return Leases(inputs.folder, holder), Holders(inputs.folder, inputs.config.pod.lease_timeout_s)


def pass_gate(inputs: Inputs, host: Host, program: Step | Generator, model: Decoder, part: Feeding) -> FirstStep | None:
    """Compares vectors with the reference; returns what the first step is held against, where one is needed.

    Raises:
        JobError: the vectors would be wrong.
    """
    extract = inputs.config.extract
    with_host_0 = part.feeder == feeding(part.rows, 0).feeder
    with compile_cache(inputs.config.storage.compile_cache):
        short = short_rows(program, model, inputs, gate_prompts(inputs)) if isinstance(program, Step) else None
    if short is None:
        check_parity(inputs, host, partial(try_program, program, extract), with_host_0)
        return None
    tried = partial(try_program, short.step, short.extract)
    result = check_parity(inputs, host, tried, with_host_0, short.extract.seq_len)
    return partial(short.hold, parity=result)


def load_model(inputs: Inputs, mesh: Mesh) -> tuple[Decoder, Params]:
    """Returns the model as it lies on the mesh, and its weights there."""
    config = inputs.config
    log.info("%s", sharding_line(inputs.table, config.mesh, config.sharding))
    if names := unread(inputs.checkpoint, inputs.table):
        log.info("left unread in the checkpoint: %s", ", ".join(names))
    dtype, shardings = jnp.dtype(config.model.dtype.value), weight_shardings(mesh, config.sharding, inputs.table)
    params = load_params(inputs.checkpoint, inputs.table, dtype, shardings)
    return Decoder(inputs.arch, inputs.taps, dtype, placement(mesh, config.sharding, shardings)), params


def compile_program(inputs: Inputs, model: Decoder, params: Params, part: Feeding) -> Step | Generator:
    """Returns what computes the run's vectors: the packed step, or with mode=generate prefill and decode."""
    config = inputs.config
    with compile_cache(config.storage.compile_cache):
        if config.mode is Mode.prefill:
            return Step(compile_step(model, params, part.rows, config.extract), params, part, config.extract.positions)
        ending = Ending(config.generate, inputs.end_tokens, inputs.tokenizer)
        shape = shape_for(part.rows, config.extract)
        programs = compile_generation(model, params, shape, config.extract, config.generate)
        prefill = feeding(shape.prefill_rows, jax.process_index())
        return Generator(programs, params, part, prefill, ending, config.extract.positions)


def finish(inputs: Inputs, host: Host, reporter: Reporter, stop: StopRequest) -> bool:
    """Writes metadata.json if no batch is missing, and before it what was predicted; False after a stop before that.

    Every host tries as it ends, so the last one in succeeds; of several slices, the first host of one.
    """
    complete = len(committed(inputs.folder)) >= inputs.total_batches
    if stop and not complete:
        reporter.phase(Phase.stopped, error=stop.reason, end=EndKind.stopped)
        return False
    reporter.phase(Phase.merging)
    if complete and (host.slice is None or (host.index == 0 and takes_merge(*leases_of(inputs, host), stop))):
        if inputs.config.mode is Mode.generate:
            summary = write_predictions(inputs.folder, inputs.total_batches, inputs.tasks_config)
            log.info(
                "predictions: %s",
                ", ".join(f"{name} {value}" for name, value in msgspec.structs.asdict(summary).items()),
            )
        merge(inputs.folder)
    reporter.phase(Phase.done)
    return True


def log_skipped(tasks: Tasks, reporter: Reporter) -> None:
    """Logs the broken tasks that are left out, by name."""
    reporter.set(skipped_tasks=tasks.skipped)
    for message in tasks.messages:
        log.warning("skipped: %s", message)
    if tasks.skipped > len(tasks.messages):
        log.warning("skipped: %d more", tasks.skipped - len(tasks.messages))


def pending_batches(inputs: Inputs) -> list[int]:
    """Returns the batches without a commit record, as host 0 sees them: all hosts must assign the same ones."""
    done = np.zeros(inputs.total_batches + 1, np.int8)
    if jax.process_index() == 0:
        done[sorted(committed(inputs.folder))] = 1
    if jax.process_count() > 1:
        done = np.asarray(multihost_utils.broadcast_one_to_all(done))
    return [batch for batch in range(1, inputs.total_batches + 1) if not done[batch]]
