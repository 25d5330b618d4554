"""A training run on paper, for people and programs."""

from collections.abc import Sequence

import msgspec
from rich.console import Console

from launch.host_commands import HostCommand
from launch.view.facts import MOST_ALLOWED, show_facts
from pod_job.planning.training import TrainInputs
from pod_job.planning.training_memory import TrainingMemory, steps_line, training_memory
from pod_job.preflight.lines import NAME_WIDTH
from pod_job.run_folder.train_identity import TrainIdentity


class TrainingPlan(msgspec.Struct, frozen=True):
    """Training on paper; `commands` has one entry per host, in order, `widths` the size of a vector of each tap."""

    model: str
    trained_on: str
    widths: dict[str, int]
    pod: str
    hosts: int
    devices: int
    mesh: dict[str, int]
    train: TrainIdentity
    memory: TrainingMemory
    run_dir: str
    commands: list[HostCommand]


def make_training_plan(inputs: TrainInputs, commands: Sequence[HostCommand]) -> TrainingPlan:
    """Returns the plan of checked inputs."""
    config, pod = inputs.config, inputs.config.pod
    if inputs.run is not None:
        trained_on = f"the {inputs.run.metadata.rows:,} rows of {inputs.run.folder.url}"
    else:
        samples = inputs.identity.tasks.samples
        most = MOST_ALLOWED if samples == config.tasks.limit else ","
        trained_on = f"the forward pass over {samples:,} samples{most} of which nothing is stored"
    return TrainingPlan(
        model=inputs.identity.model.name,
        trained_on=trained_on,
        widths=inputs.widths,
        pod=pod.accelerator_type or pod.kind.value,
        hosts=pod.hosts,
        devices=pod.devices,
        mesh={"data": config.mesh.data, "model": config.mesh.model},
        train=inputs.train,
        memory=training_memory(inputs),
        run_dir=config.storage.run_dir,
        commands=list(commands),
    )


def show_training_plan(plan: TrainingPlan, console: Console) -> None:
    """Prints the plan line by line."""
    first, *others = plan.commands
    facts = [
        ("model", plan.model),
        ("trained on", plan.trained_on),
        ("taps", ", ".join(f"{tap} of width {width}" for tap, width in plan.widths.items())),
        ("pod", f"{plan.pod}: {plan.hosts} hosts, {plan.devices} devices"),
        ("mesh", " x ".join(f"{name} {size}" for name, size in plan.mesh.items())),
        *(("SAE", f"{sae.name}: seed {sae.seed}, learning rate {sae.learning_rate:g}") for sae in plan.train.saes),
        ("schedule", steps_line(plan.train)),
        ("memory", str(plan.memory)),
        ("run folder", plan.run_dir),
        ("host 0 runs", str(first)),
    ]
    if others:
        facts.append(("each other", "the same with its own POD_JOB_HOST (--json shows them all)"))
    show_facts(facts, console, NAME_WIDTH)
