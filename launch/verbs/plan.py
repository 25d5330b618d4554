"""Checks the inputs and shows what a run would do: mesh, hosts, batches, memory and each host's command.

Starts nothing. For a TPU pod the preflight follows, which compiles: the plan is shown before it.
"""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

import msgspec
from rich.console import Console

from launch.cloud.checks import check_pod, slice_of
from launch.cloud.uploads import to_upload, upload_line
from launch.host_commands import HostCommand
from launch.job_config import config_to_start
from launch.local_slices import planned_here
from launch.preflight import NO_COMPILER, compiler_here, refuse_what_does_not_fit, run_preflight
from launch.reference import expected_reference
from launch.verbs.arguments import add_accept_identity, add_no_preflight, start_overrides
from launch.view.facts import MOST_ALLOWED, show_facts
from launch.view.training_plan import make_training_plan, show_training_plan
from pod_job.commands.command_line import DONE, Command, add_json, add_overrides
from pod_job.config.generate import Mode
from pod_job.config.schema import JobConfig, PodKind
from pod_job.errors import NoWeights
from pod_job.formats.records import encode
from pod_job.planning.batches import feeding_hosts, idle_line
from pod_job.planning.inputs import Inputs, Outline, read_inputs, read_outline
from pod_job.planning.memory import RunMemory, check_rows, described, run_memory
from pod_job.planning.prompt_survey import PromptSurvey, survey_run
from pod_job.planning.reading import read_line
from pod_job.planning.task_index import ESTIMATED
from pod_job.planning.training import look_at_prompts, read_train_inputs
from pod_job.planning.training_memory import check_buffer
from pod_job.preflight.chosen_rows import with_chosen_rows
from pod_job.preflight.lines import NAME_WIDTH, named_lines
from pod_job.preflight.records import PreflightReport
from pod_job.terminal import SafeConsole

EXAMPLES = ("experiment=demo", "experiment=qwen05b-text-v5e64 storage.run_dir=gs://my-bucket/run --json")


class Plan(msgspec.Struct, frozen=True):
    """A run on paper; `commands` has one entry per host, in order, and `reference` is that of the parity gate.

    `preflight` is what compiling for the pod has shown; where nothing was compiled, `no_preflight` is the reason.
    """

    model: str
    family: str
    layers: int
    hidden: int
    pod: str
    slices: int  # pods of this kind that work on the run at the same time
    hosts: int
    devices_per_host: int
    devices: int
    mesh: dict[str, int]
    sharding: str
    samples: int
    limit: int | None  # tasks.limit, where the samples are as many
    samples_error: float  # the part of `samples` by which they may be wrong, with 95% certainty; 0: they were counted
    tokens: int | None  # of all prompts, about; None where none were looked at
    tokens_error: float
    batches: int
    taps: list[str]
    positions: str
    dtype: str
    run_dir: str
    prompts: PromptSurvey | None  # None where the model has no tokenizer
    weights_found: bool  # and their headers checked; False: the plan is made from config.json alone
    memory: RunMemory
    reference: str
    commands: list[HostCommand]
    uploads: str | None = None  # what a start uploads first, and about how long that takes
    idle: str | None = None  # hosts without a batch, and the number of samples that gives each one
    reading: str | None = None  # how often hosts read files that they share and cannot read in ranges
    preflight: PreflightReport | None = None
    no_preflight: str | None = None


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    add_accept_identity(parser)
    add_no_preflight(parser)
    add_json(parser, "the plan")


def plan(options: Namespace) -> int:
    """Shows the plan on stdout. Raises JobError for whatever would make the run fail before it starts."""
    overrides = start_overrides(options)
    config = config_to_start(overrides)
    check_pod(config)
    if config.mode is Mode.train:
        return plan_training(config, overrides, options)
    run = with_chosen_rows(inputs_or_outline(config))
    if config.pod.kind is PodKind.tpu and (wanted := slice_of(config)) is not None:
        check_rows(run, wanted.chip.hbm_bytes, f"a {wanted.chip.name} chip")
    job_plan = make_plan(run, survey_run(run), planned_here(config, overrides))
    screen = SafeConsole()
    if not options.json:
        show(job_plan, screen)
    reason = no_preflight_reason(config, options.no_preflight)
    report = None if reason else run_preflight(overrides)
    if options.json:
        checked_plan = msgspec.structs.replace(job_plan, preflight=report, no_preflight=reason)
        print(msgspec.json.format(encode(checked_plan), indent=2).decode())
    else:
        show_facts(list(named_lines(report)) if report else [("preflight", f"none: {reason}")], screen, NAME_WIDTH)
    if report:
        refuse_what_does_not_fit(report)
    return DONE


def plan_training(config: JobConfig, overrides: Sequence[str], options: Namespace) -> int:
    """Shows what training would do, and what its programs take. JobError as of `plan`."""
    inputs = read_train_inputs(config, reading=ESTIMATED)
    look_at_prompts(inputs)
    if (wanted := slice_of(config)) is not None:
        check_buffer(inputs, wanted.chip.hbm_bytes, f"a {wanted.chip.name} chip")
    training_plan = make_training_plan(inputs, planned_here(config, overrides))
    screen = SafeConsole()
    if options.json:
        print(msgspec.json.format(encode(training_plan), indent=2).decode())
    else:
        show_training_plan(training_plan, screen)
    reason = no_preflight_reason(config, options.no_preflight)
    if reason or options.json:
        return DONE
    report = run_preflight(overrides)
    show_facts(list(named_lines(report)), screen, NAME_WIDTH)
    refuse_what_does_not_fit(report)
    return DONE


def inputs_or_outline(config: JobConfig) -> Inputs | Outline:
    """Returns the inputs, or for a model without weights their outline, from config.json alone."""
    try:
        return read_inputs(config, reading=ESTIMATED)
    except NoWeights:
        return read_outline(config, ESTIMATED)


def no_preflight_reason(config: JobConfig, unwanted: bool) -> str | None:
    """Returns why nothing is compiled for the pod; None where it is. `unwanted`: --no-preflight was given."""
    if config.pod.kind is not PodKind.tpu:
        return f"pod.kind={config.pod.kind.value} has no TPU"
    if unwanted:
        return "--no-preflight"
    return None if compiler_here() else NO_COMPILER


def make_plan(inputs: Inputs | Outline, prompts: PromptSurvey | None, commands: list[HostCommand]) -> Plan:
    """Returns the plan of checked inputs, without a preflight."""
    config = inputs.config
    pod, extract = config.pod, config.extract
    samples, error = len(inputs.tasks.samples), inputs.tasks.samples.error
    return Plan(
        model=config.model.path,
        family=inputs.arch.family,
        layers=inputs.arch.layers,
        hidden=inputs.arch.hidden,
        pod=pod.accelerator_type or pod.kind.value,
        slices=1 if pod.slice is not None else pod.slices,
        hosts=pod.hosts,
        devices_per_host=pod.devices_per_host,
        devices=pod.devices,
        mesh={"data": config.mesh.data, "model": config.mesh.model},
        sharding=config.sharding.value,
        samples=samples,
        limit=config.tasks.limit if config.tasks.limit == samples else None,
        samples_error=error,
        tokens=None if prompts is None else round(prompts.tokens_per_sample * samples),
        tokens_error=error if prompts is None else math.hypot(error, prompts.tokens_error),
        batches=inputs.total_batches,
        taps=[tap.name for tap in inputs.taps],
        positions=extract.positions.value,
        dtype=extract.dtype.value,
        run_dir=config.storage.run_dir,
        prompts=prompts,
        weights_found=isinstance(inputs, Inputs),
        memory=run_memory(inputs),
        reference=expected_reference(inputs),
        commands=commands,
        uploads=uploads_of(config),
        idle=idle_line(samples, inputs.total_batches, feeding_hosts(config)),
        reading=read_line(inputs.tasks.sequential, feeding_hosts(config)),
    )


def uploads_of(config: JobConfig) -> str | None:
    """Returns what a start uploads first, in one line; None where that is nothing."""
    return upload_line(sources, config) if (sources := to_upload(config)) else None


def data_line(job_plan: Plan) -> str:
    """Returns samples, batches and tokens, with what is not known of them."""
    about = within(job_plan.samples_error)
    tokens = "" if job_plan.tokens is None else f", {job_plan.tokens:,} tokens{within(job_plan.tokens_error)}"
    most = "" if job_plan.limit is None else MOST_ALLOWED
    return f"{job_plan.samples:,} samples{about}{most} in {job_plan.batches:,} batches{tokens}"


def pod_line(job_plan: Plan) -> str:
    """Returns the pod's shape; of several slices, that of each."""
    shape = f"{job_plan.pod}: {job_plan.hosts} hosts x {job_plan.devices_per_host} devices = {job_plan.devices}"
    return shape if job_plan.slices == 1 else f"{job_plan.slices} slices, each {shape}"


def within(error: float) -> str:
    return f" (+-{error:.1%})" if error else ""


def show(job_plan: Plan, console: Console) -> None:
    """Prints the plan line by line, then the command of host 0 and what the other hosts' commands differ in."""
    mesh = " x ".join(f"{name} {size}" for name, size in job_plan.mesh.items())
    first, *others = job_plan.commands
    same = "the same" if all(other == first for other in others) else "the same with its own POD_JOB_HOST"
    same += ", and that of its slice in pod.slice" if job_plan.slices > 1 else ""
    facts = [
        ("model", f"{job_plan.model}: {job_plan.family}, {job_plan.layers} layers of width {job_plan.hidden}"),
        ("pod", pod_line(job_plan)),
        ("mesh", f"{mesh}, weights {job_plan.sharding}"),
        ("data", data_line(job_plan)),
        ("prompts", str(job_plan.prompts or "not looked at: the model has no tokenizer yet")),
        ("taps", ", ".join(job_plan.taps)),
        ("rows", f"positions {job_plan.positions}, {job_plan.dtype}"),
        ("run folder", job_plan.run_dir),
        ("memory", described(job_plan.memory)),
        ("reference", job_plan.reference),
        ("host 0 runs", str(first)),
    ]
    if job_plan.reading:
        facts.insert(4, ("reading", job_plan.reading))
    if job_plan.uploads:
        facts.insert(-1, ("first", f"{job_plan.uploads}; what is there already is left"))
    if not job_plan.weights_found:
        facts.insert(1, ("weights", "none at model.path: planned from config.json; a start reads and checks them"))
    if others:
        facts.append(("each other", f"{same} (--json shows them all)"))
    if job_plan.idle:
        facts.insert(4, ("idle", job_plan.idle))
    show_facts(facts, console, NAME_WIDTH)


COMMAND = Command("plan", __doc__, EXAMPLES, add_arguments, plan)
