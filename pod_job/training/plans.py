"""SAEs and schedule of a training run as the trainer takes them."""

from pod_job.run_folder.train_identity import SaeRecord, TrainIdentity
from pod_job.training.architectures.shape import Architecture, SaeShape
from pod_job.training.recipe import Recipe, SaePlan


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
