"""SAEs and schedule of a training run as the trainer takes them."""

from collections.abc import Mapping

from jax.sharding import Mesh

from pod_job.config.schema import Sharding
from pod_job.config.train import Architecture
from pod_job.models.sharding import ROW_AXES
from pod_job.planning.trainer_layout import layout_of
from pod_job.run_folder.train_identity import SaeRecord, TrainIdentity
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.recipe import Recipe, SaePlan, check_plans, check_recipe
from pod_job.training.trainer import Trainer


def make_trainer(train: TrainIdentity, widths: Mapping[str, int], mesh: Mesh, sharding: Sharding) -> Trainer:
    """Returns the trainer of taps of these widths. JobError where the sizes of an SAE contradict each other."""
    plans, recipe = tuple(map(plan_of, train.saes)), recipe_of(train)
    check_plans(plans, dict(widths))
    check_recipe(recipe)
    layout = layout_of(train, mesh.size)
    return Trainer(plans, recipe, mesh, ROW_AXES[sharding], dict(widths), train.batch_rows, layout)


def plan_of(sae: SaeRecord) -> SaePlan:
    """Returns the SAE to train."""
    shape = SaeShape(
        architecture=Architecture(sae.architecture),
        input_width=sae.input_width,
        output_width=sae.output_width,
        latents=sae.latents,
        k=sae.k,
        group_sizes=tuple(sae.groups),
        transcoder=sae.target is not None,
        skip=sae.skip,
        taps=len(sae.taps),
    )
    return SaePlan(
        name=sae.name,
        shape=shape,
        inputs=tuple(sae.taps),
        targets=() if sae.target is None else (sae.target,),
        learning_rate=sae.learning_rate,
        sparsity=sae.sparsity or 0.0,
        seed=sae.seed,
    )


def recipe_of(train: TrainIdentity) -> Recipe:
    """Returns the settings that all SAEs share."""
    return Recipe(
        steps=train.steps,
        warm_up_steps=train.warmup_steps,
        decay_steps=train.decay_steps,
        sparsity_warm_up_steps=train.sparsity_warmup_steps,
        buffer_steps=min(train.buffer_rows // train.batch_rows, train.steps),
        dtype=train.dtype,
        seed=train.seed,
    )
