"""Model families: one table file for each, from which everything that differs between them is read. No jax."""

from collections.abc import Mapping

from pod_job.models.families import gemma, gpt, llama, mixture, olmo, phi, qwen_next
from pod_job.models.families.family import Family
from pod_job.models.families.towers import TOWERS

FAMILIES: Mapping[str, Family] = (
    llama.FAMILIES
    | gemma.FAMILIES
    | olmo.FAMILIES
    | gpt.FAMILIES
    | phi.FAMILIES
    | mixture.FAMILIES
    | qwen_next.FAMILIES
)
"""By the `model_type` of a config.json."""

CAUSAL = tuple(name for name, family in FAMILIES.items() if family.architecture is not None)
"""Families that are models by themselves, and not only a part of models with vision."""

__all__ = ["CAUSAL", "FAMILIES", "TOWERS", "Family"]
