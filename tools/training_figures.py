"""Speed and memory of training on a pod, by the TPU compiler: `python -m tools.training_figures [CASE...]` prints JSON.

Each case compiles the forward pass of an experiment and the trainer of its SAEs, buffer included.
The times of both programs are added, and those of all collectives but for what goes on beside a product by the
compiler's own schedule. Needs libtpu and no TPU.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from pod_job.environment import COMPILE_ONLY

os.environ.update(COMPILE_ONLY)

import msgspec
from msgspec.structs import replace

from pod_job.commands.command_line import exit_status
from pod_job.config.schema import MeshConfig
from pod_job.config.train import Architecture
from pod_job.models.mesh import make_mesh
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.pod_devices import pod_devices
from pod_job.preflight.tpu_facts import read_accelerator_type
from pod_job.preflight.trainer_compiler import forecast
from pod_job.preflight.training_forecast import TrainingForecast, beside_model, training_forecast
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.recipe import Recipe, SaePlan
from pod_job.training.trainer import Trainer
from tools.plans import preflight


class Case(msgspec.Struct, frozen=True):
    """One training: SAEs of one shape, each on a tap of its own.

    Attributes:
        experiment: whose forward pass feeds it; None to compile the trainer alone.
        rows: of one step of the optimizer.
        auxiliary: whether AuxK is compiled in; it runs only in steps before which a latent is dead, and the forecast is
            that of a step before which up to an eighth of the latents are.
    """

    width: int
    latents: int
    saes: int = 1
    experiment: str | None = None
    rows: int = 65536
    pod: str = "v5litepod-64"
    mesh: tuple[int, int] = (8, 8)
    auxiliary: bool = True
    architecture: Architecture = Architecture.topk


QWEN = Case(width=896, latents=16384, saes=4, experiment="qwen05b-text-v5e64")
QWEN_7B = Case(width=3584, latents=65536, experiment="qwen7b-text-v5e64", auxiliary=False)
CASES = {
    "qwen05b-4x16k": QWEN,
    "qwen05b-4x16k-no-dead-latents": replace(QWEN, auxiliary=False),
    "qwen05b-4x16k-batch-topk": replace(QWEN, architecture=Architecture.batch_topk),
    "qwen7b-65k-no-dead-latents": QWEN_7B,
    "qwen7b-65k-no-dead-latents-131k-rows": replace(QWEN_7B, rows=131072),  # rows of a step in Gao et al.
    "d4096-131k": Case(width=4096, latents=131072, rows=16384),
}


class Figures(msgspec.Struct, frozen=True):
    """Forecast of one case: of the trainer's program beside the forward pass, and of a step with both.

    Attributes:
        attention_by: what the forward pass's attention kernel is counted by: `bundles` of instructions, or `FLOPs`, too
            few, where these could not be read; "" without a forward pass.
    """

    trainer: Forecast
    training: TrainingForecast
    attention_by: str


def figures(case: Case) -> Figures:
    """Compiles the programs of the case and returns their forecast."""
    forward = preflight(case.experiment).programs[0] if case.experiment else None
    pod = read_accelerator_type(case.pod)
    trainer = forecast(trainer_of(case, case.rows), pod)
    if forward is not None:
        trainer = beside_model(trainer, forward)
    return Figures(trainer, training_forecast(trainer, forward), forward.kernel_origin if forward else "")


def trainer_of(case: Case, rows: int) -> Trainer:
    """Returns the trainer of the case on its pod's devices."""
    pod = read_accelerator_type(case.pod)
    mesh = make_mesh(MeshConfig(data=case.mesh[0], model=case.mesh[1]), pod_devices(pod))
    shape = SaeShape(
        architecture=case.architecture, input_width=case.width, output_width=case.width, latents=case.latents, k=32
    )
    taps = [f"tap{i}" for i in range(case.saes)]
    auxiliary = 1 / 32 if case.auxiliary else 0.0
    plans = tuple(SaePlan(name=tap, shape=shape, inputs=(tap,), auxiliary=auxiliary) for tap in taps)
    return Trainer(plans, Recipe(steps=100_000), mesh, ("data", "model"), dict.fromkeys(taps, case.width), rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.training_figures", description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))
    for name in parser.parse_args(argv).cases or CASES:
        print(msgspec.json.format(msgspec.json.encode({name: figures(CASES[name])}), indent=2).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
