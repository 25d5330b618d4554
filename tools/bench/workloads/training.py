"""From text to a trained SAE, beside SAELens' runner: the tokens of a longer training that a shorter one lacks.

Starts, compilation and loading are in both, and so in neither figure.
"""

import time
from pathlib import Path

import msgspec

from tools import peers
from tools.bench.work import Metrics, Work
from tools.sae_peers.runner import Trial, cpu_seconds_of

ROOT = Path(__file__).parents[3]
SIDES = {"ours": "ours", "sae_lens": "SAELens"}
"""Names in `tools.sae_peers.runner`, by the first word of a variant; the second is the dtype, float32 without one."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Trainings on `few` and on `more` tokens of `documents`, by the residual stream of `model`."""

    model: str = "runs/models/SmolLM2-135M-Instruct"
    documents: str = "runs/demo-text.jsonl"
    few: int = 16_384
    more: int = 49_152


def make_inputs(options: Options, inputs: Path) -> None:
    for path in (options.model, options.documents):
        if not (ROOT / path).exists():
            raise NotImplementedError(f"{path} is missing; `make demo-sae` makes it")
    peers.make("trainers")


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    way, *dtype = variant.split()
    trial = Trial(str(ROOT / options.model), str(ROOT / options.documents), bfloat16=dtype == ["bfloat16"])

    def cost(tokens: int) -> tuple[float, float]:
        started = time.monotonic()
        cpu_s = cpu_seconds_of(SIDES[way], trial, tokens)
        return time.monotonic() - started, cpu_s

    def train() -> Metrics:
        few, more = cost(options.few), cost(options.more)
        return Metrics(wall_s=more[0] - few[0], cpu_s=more[1] - few[1])

    return Work(train, amount=options.more - options.few)
