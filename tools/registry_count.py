"""Counts the sparse autoencoders of SAELens' registry whose models run here: the table of docs/models.md.

`python -m tools.registry_count SITE_PACKAGES/sae_lens/pretrained_saes.yaml`, the file in the SAELens package.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

import msgspec
import yaml

from pod_job.models.families import FAMILIES, TOWERS

MODEL_TYPES = {
    r"gemma-3-(270m|1b)": "gemma3_text",
    r"gemma-3-": "gemma3",
    r"gemma-2-": "gemma2",
    r"gemma-2b": "gemma",
    r"pythia-": "gpt_neox",
    r"gpt2": "gpt2",
    r"llama-3|deepseek-r1-distill-llama": "llama",
    r"mistral-7b": "mistral",
    r"qwen3\.5-\d+b-a\d+b": "qwen3_5_moe",
    r"qwen3\.5-": "qwen3_5",
    r"qwen3-\d+b-a\d+b": "qwen3_moe",
    r"qwen3-": "qwen3",
    r"qwen2\.5-": "qwen2",
    r"gpt-oss": "gpt_oss",
}
"""The `model_type` of the models that the registry names, the first that fits."""


class Sae(msgspec.Struct):
    """One autoencoder; only its name is read."""

    id: str


class Release(msgspec.Struct):
    """Autoencoders that were published together, for one model."""

    model: str
    saes: list[Sae]


def model_type(model: str) -> str:
    """Returns the family of a model that the registry names; its name where it is none of those known."""
    name = model.rpartition("/")[2].lower()
    return next((family for pattern, family in MODEL_TYPES.items() if re.search(pattern, name)), model)


def table(path: Path) -> str:
    """Returns a Markdown table of families, autoencoders and releases, and the shares that run here."""
    releases = msgspec.convert(yaml.safe_load(path.read_text()), dict[str, Release])
    saes, counts = Counter[str](), Counter[str]()
    for release in releases.values():
        family = model_type(release.model)
        saes[family] += len(release.saes)
        counts[family] += 1
    lines = ["| `model_type` | SAEs | releases | runs here |", "|---|---|---|---|"]
    runs = {family for family in saes if family in FAMILIES or family in TOWERS}
    for family, number in saes.most_common():
        lines.append(f"| `{family}` | {number:,} | {counts[family]} | {'yes' if family in runs else 'no'} |")
    for name, of_family in (("SAEs", saes), ("releases", counts)):
        here, total = sum(of_family[family] for family in runs), of_family.total()
        lines.append(f"\n{here:,} of {total:,} {name} ({100 * here / total:.2f}%) are for models that run here.")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.registry_count", description="Count models that run here.")
    parser.add_argument("registry", type=Path, help="pretrained_saes.yaml of the SAELens package")
    print(table(parser.parse_args(argv).registry))
    return 0


if __name__ == "__main__":
    sys.exit(main())
