"""The job, as every host runs it: from the configuration to committed batches and, on the last host in, metadata."""

import logging

import jax
import msgspec
import numpy as np
from jax.sharding import Mesh

from pod_job.config.generate import Mode
from pod_job.config.schema import JobConfig, PodKind
from pod_job.extraction.batch_source import Assigned, LeasedBatches, Reporting
from pod_job.extraction.feeder import from_host_0
from pod_job.extraction.feeding import Feeding, feeding, step_rows
from pod_job.extraction.pipeline import PackedFeeder, extract
from pod_job.extraction.step import Step
from pod_job.extraction.writers import Writers
from pod_job.finishing.merge import merge
from pod_job.finishing.merge_once import takes_merge
from pod_job.generation.generate import PromptFeeder, generate
from pod_job.generation.generator import Generator
from pod_job.generation.predictions import write_predictions
from pod_job.host.chips import free_chips
from pod_job.host.departure import clear_departure, reporting_failure
from pod_job.host.rendezvous import Host, await_hosts, start, this_host
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.host.watchdog import Watchdog
from pod_job.models.mesh import make_mesh
from pod_job.planning.batches import assign_batches
from pod_job.planning.host_checks import available_memory, check_machine
from pod_job.planning.inputs import Inputs, claim_run, open_run_folder, read_inputs
from pod_job.planning.memory import check_rows, explaining_memory
from pod_job.planning.prompt_survey import survey_share
from pod_job.planning.shared_work import Share
from pod_job.planning.task_index import Counting, TaskReading
from pod_job.planning.training import TrainInputs, claim_training, is_complete, prompts_of, read_train_inputs
from pod_job.planning.training_memory import check_buffer
from pod_job.preflight.chosen_rows import with_chosen_rows
from pod_job.programs import compile_program, load_model, pass_gate
from pod_job.prompts.tasks import Tasks
from pod_job.prompts.tokenizer import has_vocabulary
from pod_job.run_folder.layout import committed
from pod_job.run_folder.leases import Blocks, Holder, Holders, Leases, agreed_blocks, per_block
from pod_job.run_folder.slices import report_folder
from pod_job.run_folder.status import EndKind, Phase, TrainingStatus
from pod_job.run_folder.tokenizer import copy_tokenizer, store_tokenizer
from pod_job.training.run import run_source, train
from pod_job.training.sources import StreamSource

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
        if config.mode is Mode.train:
            return train_saes(read_train_inputs(config, folder, reading), host, reporter, stop)
        inputs = with_chosen_rows(read_inputs(config, folder, reading))
        check_prompts(inputs, host, reporter)
        if config.pod.kind is PodKind.local and (free := available_memory()) is not None:
            check_rows(inputs, free // config.pod.devices, "this machine, for each of its devices,")
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


def check_prompts(inputs: Inputs, host: Host, reporter: Reporter) -> None:
    """Raises JobError for prompts that cannot be used, or where this machine lacks something for them."""
    reporter.phase(Phase.checking)
    log_skipped(inputs.tasks, reporter)
    batch_tokens = survey_share(inputs, host.index, host.count)
    reporter.set(batch_tokens=round(sum(batch_tokens) / max(1, len(batch_tokens)), 1))
    check_machine(inputs, batch_tokens)


def train_saes(inputs: TrainInputs, host: Host, reporter: Reporter, stop: StopRequest) -> bool:
    """Runs this host's part of training; returns False where a host was asked to stop before its end."""
    reporter.set(training=TrainingStatus(step=0, steps=inputs.train.steps, stored=inputs.stream is None))
    if inputs.stream is not None:
        check_prompts(inputs.stream, host, reporter)
    if inputs.config.pod.kind is PodKind.local and (free := available_memory()) is not None:
        check_buffer(inputs, free // inputs.config.pod.devices, "this machine, for each of its devices,")
    join_hosts(inputs, host, reporter)
    stop.on_signal()
    if not is_complete(inputs.folder, inputs.config.mode):
        mesh = make_mesh(inputs.config.mesh)
        source = stream_source(inputs.stream, mesh, host, reporter) if inputs.stream else run_source(inputs, mesh)
        if not train(inputs, source, mesh, reporter, stop):
            reporter.phase(Phase.stopped, error=stop.reason or "another host was asked to stop", end=EndKind.stopped)
            return False
    reporter.phase(Phase.done)
    return True


def stream_source(inputs: Inputs, mesh: Mesh, host: Host, reporter: Reporter) -> StreamSource:
    """Returns the forward pass, held against the reference as that of an extraction is."""
    part = feeding(step_rows(inputs.config, mesh), jax.process_index())
    reporter.phase(Phase.weights)
    with explaining_memory(inputs):
        model, params = load_model(inputs, mesh)
        reporter.phase(Phase.compiling)
        step = compile_program(inputs, model, params, part)
    assert isinstance(step, Step)
    reporter.phase(Phase.parity)
    hold = pass_gate(inputs, host, step, model, part)
    return StreamSource(inputs, step, inputs.config.train.batch_rows, hold)


def join_hosts(inputs: Inputs | TrainInputs, host: Host, reporter: Reporter) -> None:
    """Waits for the other hosts, makes the run folder this run's, and starts jax on all hosts."""
    config = inputs.config
    if config.pod.kind is PodKind.tpu:
        free_chips(config.storage.run_dir)
    _ = inputs.identity  # which may read weights whole: before others wait for this host
    reporter.phase(Phase.arrived)
    await_hosts(report_folder(inputs.folder, host.slice), host, config.pod.arrival_timeout_s)
    prompts = prompts_of(inputs)
    if prompts is not None:
        claim_run(prompts)
    elif isinstance(inputs, TrainInputs):
        claim_training(inputs)
    if host.index == 0:
        keep_tokenizer(inputs)
    start(host)
    reporter.timeline.device = jax.devices()[0].device_kind
    reporter.timeline.devices = jax.local_device_count()


def keep_tokenizer(inputs: Inputs | TrainInputs) -> None:
    """Keeps the tokenizer in the run folder, so that rows are shown as text wherever the folder is."""
    if isinstance(inputs, TrainInputs) and inputs.run is not None:
        copy_tokenizer(inputs.run.folder, inputs.folder)
        return
    prompts = prompts_of(inputs)
    assert prompts is not None
    if has_vocabulary(prompts.model_dir) and not store_tokenizer(prompts.folder, prompts.tokenizer):
        log.warning(
            "%s: no tokenizer.json can be made of its tokenizer; texts of rows need the model", prompts.model_dir
        )


def compute(inputs: Inputs, pending: list[int], host: Host, reporter: Reporter, stop: StopRequest) -> None:
    """Loads weights, compiles and runs this host's share of the `pending` batches, until they are committed."""
    config, mesh = inputs.config, make_mesh(inputs.config.mesh)
    rows = step_rows(config, mesh)
    part = feeding(rows, jax.process_index())
    reporter.phase(Phase.weights)
    source = batch_source(inputs, pending, host, part, Reporting(reporter, stop))
    make_feeder = PromptFeeder if config.mode is Mode.generate else PackedFeeder
    feeder = make_feeder(source.batches(), inputs, part, reporter, stop)  # reads ahead from here on
    model, params = load_model(inputs, mesh)

    reporter.phase(Phase.compiling)
    program = compile_program(inputs, model, params, part)
    reporter.phase(Phase.parity)
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
    slices = inputs.config.pod.slices
    return Leases(inputs.folder, holder, slices), Holders(inputs.folder, inputs.config.pod.lease_timeout_s)


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
    done = from_host_0(done)
    return [batch for batch in range(1, inputs.total_batches + 1) if not done[batch]]
