"""Estimates a whole run from the forecasts of its programs: samples, tokens, bytes, hours and cost. No jax."""

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pod_job.config.cloud import Capacity
from pod_job.config.generate import Mode
from pod_job.config.schema import JobConfig, Positions
from pod_job.planning.inputs import token_counter
from pod_job.planning.model_cost import stored_rows, vector_bytes
from pod_job.planning.task_index import ESTIMATED, find_tasks
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.planned_job import PlannedJob
from pod_job.preflight.prices import pod_usd_per_hour
from pod_job.preflight.records import StartTimes, WholeRun
from pod_job.preflight.tpu_facts import BUCKET_BYTES_S, Slice
from pod_job.prompts.prompt import PromptRules
from pod_job.prompts.samples import Samples, without_broken
from pod_job.prompts.tokenizer import TokenizerFolder, has_vocabulary, load_tokenizer
from pod_job.prompts.tokens import usable_prompts
from pod_job.storage.open import open_folder
from pod_job.units import GB

TOKENIZED_SAMPLES = 256
CHARACTERS_PER_TOKEN = 4
"""Characters per token of English text, assumed where the model has no tokenizer."""
PREPARE_S = 120.0
"""Seconds in which hosts make the environment with uv: an assumption; docs/launching.md has what was rehearsed."""
PACKED = 0.98
"""Share of positions that hold tokens, as packing reaches on real prompts."""


def whole_run(job: PlannedJob, model_dir: Path, forecasts: Sequence[Forecast]) -> WholeRun:
    """Returns the size, time and cost of the run.

    Tokens are estimated from TOKENIZED_SAMPLES samples; from their characters where the model has no tokenizer.
    """
    config, pod = job.config, job.pod
    folder = open_folder(config.storage.run_dir)
    counter = token_counter(config, TokenizerFolder(model_dir)) if has_vocabulary(model_dir) else None
    samples = find_tasks(config.tasks, counter=counter, folder=folder, reading=ESTIMATED).samples
    tokens = estimated_tokens(samples, model_dir, config)
    first = forecasts[0]
    new_tokens = len(samples) * config.generate.max_new_tokens if config.mode is Mode.generate else 0
    steps = math.ceil(tokens / (PACKED * first.tokens))
    seconds = steps * first.step_s + decode_seconds(config, forecasts, new_tokens)
    rows = {
        Positions.last: new_tokens or len(samples),
        Positions.all: tokens + new_tokens,
        Positions.generated: new_tokens,
    }.get(config.extract.positions, stored_rows(config.extract, len(samples), tokens))
    run = WholeRun(
        samples=len(samples),
        tokens=tokens,
        new_tokens=new_tokens,
        rows=rows,
        bytes=rows * vector_bytes(job.arch, job.taps, config.extract),
        steps=steps,
        hours=seconds / 3600 / config.pod.slices,
        slices=config.pod.slices,
    )
    return priced(run, start_times(config, forecasts, pod), config)


def start_times(config: JobConfig, programs: Sequence[Forecast], pod: Slice) -> StartTimes:
    """Returns the times from a READY pod to the first step, by the programs that are compiled then."""
    weights = max(program.hbm.get("weights and inputs", 0) for program in programs) * pod.chips_per_host
    rate = (config.preflight.bucket_gb_s or BUCKET_BYTES_S / GB) * GB
    return StartTimes(
        prepare_s=PREPARE_S, weights_s=weights / rate, compile_s=sum(program.compile_s for program in programs)
    )


def priced(run: WholeRun, start: StartTimes, config: JobConfig) -> WholeRun:
    """Returns the run with its start and its cost, that of all slices' starts too; in the dearest of the zones."""
    zones, pod_h = config.cloud.zones, run.slices * (start.seconds / 3600 + run.hours)
    zone = "the dearest zone" if len(zones) > 1 else "".join(zones)
    hourly = [pod_usd_per_hour(config, capacity=kind) for kind in (Capacity.on_demand, Capacity.spot)]
    usd_list, usd_spot = (None if usd is None else pod_h * usd for usd in hourly)
    return msgspec.structs.replace(run, start=start, usd_list=usd_list, usd_spot=usd_spot, zone=zone)


def dollars(seconds: float, pod: Slice, usd_hour: float | None) -> float | None:
    """Returns the cost of the slice for so long at a price of a chip-hour; None where that is not known."""
    return None if usd_hour is None else seconds / 3600 * pod.chips / pod.chip.devices * usd_hour


def decode_seconds(config: JobConfig, forecasts: Sequence[Forecast], new_tokens: int) -> float:
    """Returns the seconds in which all rows add so many tokens, a row that ends being taken by the next prompt."""
    if config.mode is not Mode.generate:
        return 0.0
    decode = forecasts[1]
    longest = math.ceil(config.generate.max_new_tokens / decode.tokens_in_turn)
    return max(longest, math.ceil(new_tokens / decode.tokens)) * decode.step_s


def tokens_per_s(config: JobConfig, forecasts: Sequence[Forecast]) -> float:
    """Returns the prompt tokens that the pod computes per second; with mode=generate new tokens, prefill included."""
    if not all(forecast.fits for forecast in forecasts):
        return 0.0
    if config.mode is not Mode.generate:
        return forecasts[0].tokens_per_s
    prefill, decode = forecasts
    rows = decode.tokens // decode.tokens_in_turn
    prefills = math.ceil(rows * config.extract.seq_len / prefill.tokens)
    new_tokens = rows * config.generate.max_new_tokens
    return new_tokens / (prefills * prefill.step_s + decode_seconds(config, forecasts, new_tokens))


def estimated_tokens(samples: Samples, model_dir: Path, config: JobConfig) -> int:
    """Returns the number of tokens of all samples, as prompts, from a part of them at even distances."""
    looked_at, _ = without_broken(samples.survey())
    chosen = looked_at[:: max(1, len(looked_at) // TOKENIZED_SAMPLES)]
    if has_vocabulary(model_dir):
        prompts = usable_prompts(load_tokenizer(model_dir), chosen, PromptRules.of(config)).prompts
        lengths = [len(prompt.token_ids) for prompt in prompts]
    else:
        lengths = [min(len(sample.content()) // CHARACTERS_PER_TOKEN, config.extract.seq_len) for sample in chosen]
    return max(1, round(sum(lengths) / max(1, len(chosen)) * len(samples)))
