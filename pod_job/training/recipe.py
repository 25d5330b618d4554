"""How sparse autoencoders are trained: what each one is, and the settings they share. No jax.

Defaults are those of published recipes, named beside each.
"""

import msgspec

from pod_job.errors import JobError, at_least
from pod_job.training.architectures.shape import SaeShape, check_shape


class SaePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One SAE to train.

    Attributes:
        name: in messages and folders.
        inputs: names of the taps that it reads; several for a crosscoder.
        targets: names of the taps that it reconstructs; by default `inputs`.
        learning_rate: at its height; SAELens' default. 2e-4 / sqrt(latents / 2^14) is that of Gao et al. 2024.
        sparsity: coefficient of the sparsity loss at its height (relu, gated, jump_relu).
        auxiliary: coefficient of AuxK (Gao et al. 2024, appendix A.2).
        seed: of the first parameters, and of resampling.
    """

    name: str
    shape: SaeShape
    inputs: tuple[str, ...]
    targets: tuple[str, ...] = ()
    learning_rate: float = 3e-4
    sparsity: float = 0.0
    auxiliary: float = 1 / 32
    seed: int = 0

    @property
    def reconstructed(self) -> tuple[str, ...]:
        return self.targets or self.inputs


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a training that all of its SAEs share.

    Attributes:
        steps: of the optimizer; the schedules end there.
        warm_up_steps: over which the learning rate rises (dictionary_learning: 1000).
        decay_steps: over which it falls to 0 at the end; None for a fifth of the steps (Anthropic, April 2024).
        sparsity_warm_up_steps: over which the sparsity coefficient rises; None for 5% of the steps (Anthropic,
            April 2024).
        beta1, beta2, epsilon: of Adam (Gao et al. 2024, appendix A.3).
        max_gradient_norm: gradients of an SAE are scaled down to this norm (Gao et al. 2024; SAELens).
        dead_rows: a latent is dead that was not active in this many rows (Gao et al. 2024: 10 million).
        resample_steps: relu and gated: dead latents are drawn again every so many steps in the first half of the
            training (Bricken et al. 2023: every 25,000); 0 for never.
        threshold_rate: of the moving average of BatchTopK's threshold, at least (SAELens: 0.01); it is higher in the
            first steps.
        unit_norm: decoder rows keep norm 1 (Bricken et al. 2023; Gao et al. 2024).
        buffer_steps: rows of the shuffle buffer, in steps' worth of rows; 0 for no buffer.
        dtype: of the factors of matrix products; master weights are float32 always.
        seed: of the order of rows.
    """

    steps: int
    warm_up_steps: int = 1000
    decay_steps: int | None = None
    sparsity_warm_up_steps: int | None = None
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 6.25e-10
    max_gradient_norm: float = 1.0
    dead_rows: int = 10_000_000
    resample_steps: int = 25_000
    threshold_rate: float = 0.01
    unit_norm: bool = True
    buffer_steps: int = 16
    dtype: str = "bfloat16"
    seed: int = 0

    @property
    def decay(self) -> int:
        return self.steps // 5 if self.decay_steps is None else self.decay_steps

    @property
    def sparsity_warm_up(self) -> int:
        return self.steps // 20 if self.sparsity_warm_up_steps is None else self.sparsity_warm_up_steps


def check_recipe(recipe: Recipe) -> None:
    """Raises JobError where the settings contradict each other."""
    at_least("steps", recipe.steps, 1)
    for name in ("warm_up_steps", "buffer_steps", "resample_steps"):
        at_least(name, getattr(recipe, name), 0)
    if recipe.warm_up_steps + recipe.decay > recipe.steps:
        both = f"warm_up_steps={recipe.warm_up_steps} and decay_steps={recipe.decay}"
        raise JobError(f"{both} are more than the steps={recipe.steps} that the rows are enough for; lower them")
    if recipe.dtype not in ("float32", "bfloat16"):
        raise JobError(f"dtype={recipe.dtype} is not a type to compute in; use float32 or bfloat16")


def check_plans(plans: tuple[SaePlan, ...], widths: dict[str, int]) -> None:
    """Raises JobError where an SAE's sizes contradict each other or the taps' widths, given by name."""
    for plan in plans:
        check_shape(plan.shape, plan.name)
        for field, taps, width in (
            ("input_width", plan.inputs, plan.shape.input_width),
            ("output_width", plan.reconstructed, plan.shape.output_width),
        ):
            absent = [tap for tap in taps if tap not in widths]
            if absent:
                raise JobError(f"{plan.name}: no tap is named {absent[0]}; there are {', '.join(widths)}")
            total = sum(widths[tap] for tap in taps)
            if total != width:
                names = " and ".join(taps)
                raise JobError(f"{plan.name}: {field}={width}, but {names} has {total} dimensions; set it to {total}")
        if len(plan.inputs) != plan.shape.taps:
            raise JobError(f"{plan.name}: {len(plan.inputs)} input taps with taps={plan.shape.taps}; make them equal")
        if plan.shape.transcoder == (plan.reconstructed == plan.inputs):
            raise JobError(f"{plan.name}: only a transcoder (transcoder=true) has other targets than inputs")
