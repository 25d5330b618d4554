"""The verb `plan`: everything a run would do, checked and shown; nothing is started."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from launch import shell
from launch.facts import show_facts
from launch.local import coordinator_address
from launch.options import Options
from launch.pod import HostCommand, host_commands, new_attempt
from pod_job.config import JobConfig, PodKind, load
from pod_job.errors import JobError
from pod_job.inputs import Inputs, read_inputs
from pod_job.preflight.lines import lines as preflight_lines


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
    commands: list[HostCommand]
    preflight: dict[str, Any] | None  # of a TPU pod: what the step takes there (pod_job/preflight)


def plan(overrides: Sequence[str], options: Options) -> int:
    """Shows the plan for `overrides` on stdout. Raises JobError for whatever would make the run fail before it starts.

    A dry run changes nothing: a plan is one.
    """
    config = load(overrides)
    inputs = read_inputs(config)
    report = run_preflight(overrides) if config.pod.kind is PodKind.tpu else None
    made = make_plan(config, inputs, planned_commands(config, overrides), report)
    if options.as_json:
        print(json.dumps(dataclasses.asdict(made), indent=2))
    else:
        show(made, Console())
    return 0


def run_preflight(overrides: Sequence[str]) -> dict[str, Any]:
    """The preflight's report, from a process of its own: it needs jax. Raises JobError with what it refused."""
    done = shell.call([sys.executable, "-m", "pod_job.preflight", *overrides, "--json"])
    if done.out.startswith("{"):
        return json.loads(done.out)
    last = (done.err.strip().splitlines() or [f"exit status {done.code}"])[-1]
    raise JobError(f"preflight: {last.removeprefix('error: ')}")


def planned_commands(config: JobConfig, overrides: Sequence[str]) -> list[HostCommand]:
    """The commands as `run` would start them now: on a local pod, with a coordinator port that is free."""
    coordinator = coordinator_address(config.pod.port) if config.pod.kind is PodKind.local else ""
    return host_commands(config, overrides, coordinator, new_attempt())


def make_plan(config: JobConfig, inputs: Inputs, commands: list[HostCommand], preflight: dict[str, Any] | None) -> Plan:
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
        commands=commands,
        preflight=preflight,
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
        ("host 0 runs", str(first)),
    ]
    if others:
        facts.append(("each other", f"{same} (--json shows them all)"))
    show_facts(facts, console)
    if made.preflight is not None:
        for line in preflight_lines(made.preflight):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
