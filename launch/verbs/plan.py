"""Checks the inputs and shows what a run would do: mesh, hosts, batches, memory and each host's command.

Starts nothing. For a TPU pod the preflight follows, which compiles: the plan is shown before it.
"""

import dataclasses
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from rich.console import Console

from launch.host_commands import HostCommand, host_commands, new_attempt
from launch.job_config import config_to_start
from launch.local import coordinator_address
from launch.preflight import NO_COMPILER, compiler_here, refuse_what_does_not_fit, run_preflight
from launch.verbs.arguments import add_no_preflight
from launch.view.facts import show_facts
from pod_job.commands.command_line import DONE, Command, add_json, add_overrides
from pod_job.config.schema import JobConfig, PodKind
from pod_job.errors import NoWeights
from pod_job.planning.inputs import Inputs, Outline, read_inputs, read_outline
from pod_job.planning.memory import Held, described, held
from pod_job.preflight.lines import lines as preflight_lines

EXAMPLES = ("experiment=demo", "experiment=v5e64 storage.run_dir=gs://my-bucket/qwen --json")


@dataclass(frozen=True)
class Plan:
    """A run on paper; `commands` has one entry per host, in order."""

    model: str
    family: str
    layers: int
    hidden: int
    pod: str
    hosts: int
    devices_per_host: int
    devices: int
    mesh: dict[str, int]
    sharding: str
    samples: int
    batches: int
    taps: list[str]
    positions: str
    dtype: str
    run_dir: str
    weights_found: bool  # and their headers checked; else all is as config.json says
    memory: dict[str, int]  # bytes held, see pod_job.memory.Held
    commands: list[HostCommand]


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    add_no_preflight(parser)
    add_json(parser, "the plan")


def plan(options: Namespace) -> int:
    """Shows the plan on stdout. Raises JobError for whatever would make the run fail before it starts."""
    overrides = options.overrides
    config = config_to_start(overrides)
    made = make_plan(config, inputs_or_outline(config), planned_commands(config, overrides))
    screen = Console()
    if not options.json:
        show(made, screen)
    reason = no_preflight_reason(config, options.no_preflight)
    report = None if reason else run_preflight(overrides)
    if options.json:
        preflight = {"preflight": msgspec.to_builtins(report), "no_preflight": reason}
        print(json.dumps(dataclasses.asdict(made) | preflight, indent=2))
    else:
        for line in preflight_lines(report) if report else [f"preflight   none: {reason}"]:
            screen.print(line, highlight=False, markup=False, soft_wrap=True)
    if report:
        refuse_what_does_not_fit(report)
    return DONE


def inputs_or_outline(config: JobConfig) -> Inputs | Outline:
    """What there is to plan with: of a model without weights, as config.json alone describes it."""
    try:
        return read_inputs(config)
    except NoWeights:
        return read_outline(config)


def no_preflight_reason(config: JobConfig, unwanted: bool) -> str | None:
    """Returns why nothing is compiled for the pod; None where it is. `unwanted`: --no-preflight was given."""
    if config.pod.kind is not PodKind.tpu:
        return f"pod.kind={config.pod.kind.value} has no TPU"
    if unwanted:
        return "--no-preflight"
    return None if compiler_here() else NO_COMPILER


def planned_commands(config: JobConfig, overrides: Sequence[str]) -> list[HostCommand]:
    """The commands as `run` would start them now: on a local pod, with a coordinator port that is free."""
    coordinator = coordinator_address(config.pod.port) if config.pod.kind is PodKind.local else ""
    return host_commands(config, overrides, coordinator, new_attempt())


def make_plan(config: JobConfig, inputs: Inputs | Outline, commands: list[HostCommand]) -> Plan:
    """The plan of a checked configuration."""
    pod, extract = config.pod, config.extract
    return Plan(
        model=config.model.path,
        family=inputs.arch.family,
        layers=inputs.arch.layers,
        hidden=inputs.arch.hidden,
        pod=pod.accelerator_type or pod.kind.value,
        hosts=pod.hosts,
        devices_per_host=pod.devices_per_host,
        devices=pod.devices,
        mesh={"data": config.mesh.data, "model": config.mesh.model},
        sharding=config.sharding.value,
        samples=len(inputs.tasks.samples),
        batches=inputs.total_batches,
        taps=[tap.name for tap in inputs.taps],
        positions=extract.positions.value,
        dtype=extract.dtype.value,
        run_dir=config.storage.run_dir,
        weights_found=isinstance(inputs, Inputs),
        memory=dataclasses.asdict(held(config, inputs)),
        commands=commands,
    )


def show(made: Plan, console: Console) -> None:
    """The plan line by line, then the commands; what hosts differ in stands once, in the command of host 0."""
    mesh = " x ".join(f"{name} {size}" for name, size in made.mesh.items())
    first, *others = made.commands
    same = "the same" if all(other == first for other in others) else "the same with its own POD_JOB_HOST"
    facts = [
        ("model", f"{made.model}: {made.family}, {made.layers} layers of width {made.hidden}"),
        ("pod", f"{made.pod}: {made.hosts} hosts x {made.devices_per_host} devices = {made.devices}"),
        ("mesh", f"{mesh}, weights {made.sharding}"),
        ("data", f"{made.samples:,} samples in {made.batches:,} batches"),
        ("taps", ", ".join(made.taps)),
        ("rows", f"positions {made.positions}, {made.dtype}"),
        ("run folder", made.run_dir),
        ("memory", described(Held(**made.memory))),
        ("host 0 runs", str(first)),
    ]
    if not made.weights_found:
        facts.insert(1, ("weights", "none at model.path: planned from config.json; a start reads and checks them"))
    if others:
        facts.append(("each other", f"{same} (--json shows them all)"))
    show_facts(facts, console)


COMMAND = Command("plan", __doc__, EXAMPLES, add_arguments, plan)
