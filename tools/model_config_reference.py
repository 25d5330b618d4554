"""Writes docs/model-configs.md from pod_job.models: what is done with each key of a `config.json`.

`python -m tools.model_config_reference > docs/model-configs.md`, or `make docs`.
"""

import json
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

from pod_job.models.families import FAMILIES, TOWERS
from pod_job.models.families.family import COMMON_KEYS, Family
from pod_job.models.hf_config import COMPUTED, INERT, QUANTIZATION


def page() -> str:
    """Returns docs/model-configs.md."""
    families = [
        f"| `{name}` | {applied(family)} | {listed(family.inert) or 'none'} |" for name, family in FAMILIES.items()
    ]
    computed = [computed_row(f"`{key}`", values) for key, values in COMPUTED.items()]
    for name, family in FAMILIES.items():
        computed += [computed_row(f"`{key}` (`{name}`)", values) for key, values in family.computed.items()]
    lines = [
        "# Keys of config.json, family by family",
        "",
        paragraph(
            "Which keys of a Hugging Face `config.json` are applied, inert or refused. Made by `make docs` from "
            "`pod_job/models/families` and `pod_job/models/hf_config.py`; do not edit."
        ),
        "",
        paragraph(
            "The configuration class of the family in transformers fills in defaults. A key that is not on this page "
            "is passed over if it is null, has the family's default, or occurs nowhere in the sources of the family's "
            "model in transformers; else it is refused by name. Of a model with vision the text model is read: "
            f"{', '.join(f'`{tower.family}` of `{name}`' for name, tower in TOWERS.items())}."
        ),
        "",
        "## Applied",
        "",
        paragraph(f"In every family that has no other name for it: {listed(COMMON_KEYS)}."),
        "",
        "| `model_type` | applied too | without effect in this family |",
        "|---|---|---|",
        *families,
        "",
        "## Computed for some values only",
        "",
        "Any other value is refused.",
        "",
        "| key | values |",
        "|---|---|",
        *computed,
        f"| {listed(QUANTIZATION)} | absent or empty: quantized weights are refused |",
        "",
        "## Inert",
        "",
        paragraph(f"No vector depends on these, whatever their value: {listed(INERT)}."),
        "",
        "Nor on these beside `text_config`:",
        "",
        *(paragraph(f"- `{name}`: {listed(tower.inert)}") for name, tower in TOWERS.items()),
    ]
    return "\n".join(lines) + "\n"


def computed_row(key: str, values: Iterable[Any]) -> str:
    return f"| {key} | {', '.join(f'`{json.dumps(value)}`' for value in values)} |"


def applied(family: Family) -> str:
    """Returns what a family applies beside the common keys, its own names of those, and those that it has not."""
    parts = [listed(family.applied)] if family.applied else []
    parts += [f"`{own}` for `{key}`" for key, own in sorted(family.renamed.items())]
    return ", ".join(parts) + (f"; not {listed(family.without)}" if family.without else "")


def paragraph(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def listed(keys: Iterable[str]) -> str:
    """Returns the keys as one text; those of a set, which has no order, sorted."""
    return ", ".join(f"`{key}`" for key in (sorted(keys) if isinstance(keys, frozenset) else keys))


if __name__ == "__main__":
    sys.stdout.write(page())
