"""What a whole run comes to, from what its programs take: samples, tokens, bytes, hours, cost. No jax."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pod_job.config.generate import Mode
from pod_job.config.schema import JobConfig, Positions
from pod_job.models.arch import Arch
from pod_job.models.taps import Tap
from pod_job.planning.model_cost import vector_bytes
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.tpu_facts import Slice
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tasks import read_tasks
from pod_job.prompts.tokens import load_tokenizer, tokenize

TOKENIZED_SAMPLES = 256  # from which the tokens of all are estimated
CHARACTERS_PER_TOKEN = 4  # of English text, where there is no tokenizer to ask
PACKED = 0.98  # share of positions that hold tokens, as packing reaches on real prompts


@dataclass(frozen=True)
class Run:
    """The whole run: what it stores, how long the pod computes and what that costs, start and compilation aside.

    `tokens` are of prompts; `new_tokens` what is generated after them if every completion is as long as it may be.
    """

    samples: int
    tokens: int
    new_tokens: int
    rows: int
    bytes: int
    steps: int
    hours: float
    usd_list: float
    usd_spot: float


def whole_run(
    config: JobConfig, arch: Arch, taps: tuple[Tap, ...], model_dir: Path, pod: Slice, found: Sequence[Forecast]
) -> Run:
    """What the run comes to. Tokens are estimated from a part of the samples; without a tokenizer, from characters."""
    samples = read_tasks(config.tasks).samples
    tokens = estimated_tokens(samples, model_dir, config)
    new, first = 0, found[0]
    if config.mode is Mode.generate:
        new = len(samples) * config.generate.max_new_tokens
        steps = math.ceil(len(samples) * config.extract.seq_len / first.tokens)
        seconds = steps * wave_seconds(config, found)
    else:
        steps = math.ceil(tokens / (PACKED * first.tokens))
        seconds = steps * first.step_s
    rows = {
        Positions.last: new or len(samples),
        Positions.all: tokens + new,
        Positions.generated: new,
    }[config.extract.positions]
    chip_hours = seconds / 3600 * pod.chips
    return Run(
        samples=len(samples),
        tokens=tokens,
        new_tokens=new,
        rows=rows,
        bytes=rows * vector_bytes(arch, taps, config.extract),
        steps=steps,
        hours=seconds / 3600,
        usd_list=chip_hours * pod.chip.list_usd_hour,
        usd_spot=chip_hours * pod.chip.spot_usd_hour,
    )


def wave_seconds(config: JobConfig, found: Sequence[Forecast]) -> float:
    """One prefill, and as many calls of decode as the longest completion takes."""
    prefill, decode = found
    return prefill.step_s + math.ceil(config.generate.max_new_tokens / decode.tokens_in_turn) * decode.step_s


def tokens_per_s(config: JobConfig, found: Sequence[Forecast]) -> float:
    """What the pod does all told: positions of prompts; with mode=generate new tokens, prefill's time included."""
    if not all(each.fits for each in found):
        return 0.0
    if config.mode is not Mode.generate:
        return found[0].tokens / found[0].step_s
    rows = found[0].tokens // config.extract.seq_len
    return rows * config.generate.max_new_tokens / wave_seconds(config, found)


def estimated_tokens(samples: Sequence[Sample], model_dir: Path, config: JobConfig) -> int:
    every = max(1, len(samples) // TOKENIZED_SAMPLES)
    chosen = samples[::every]
    if any(model_dir.glob("tokenizer*")):
        prompts = tokenize(load_tokenizer(model_dir), chosen, config.extract.seq_len, config.extract.too_long)
        lengths = [len(prompt.token_ids) for prompt in prompts]
    else:
        lengths = [min(len(sample.content()) // CHARACTERS_PER_TOKEN, config.extract.seq_len) for sample in chosen]
    return max(1, round(sum(lengths) / len(chosen) * len(samples)))
