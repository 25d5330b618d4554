"""The report on a job before it starts: memory, time and cost of its step on the pod.

In: the configuration, the model's config.json and the tasks. Out: a report; no weight, TPU or network is needed. Where
the step does not fit or waits for its results to leave, it says what to change, and has compiled that too.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pod_job.config import JobConfig, PodKind, Positions, Sharding, load
from pod_job.errors import JobError
from pod_job.models.arch import Arch, read_arch_file
from pod_job.models.sharding import check_divides
from pod_job.models.taps import Tap, resolve
from pod_job.models.weight_table import weight_table
from pod_job.preflight.tpu_facts import PRICES_FROM, Slice, read_accelerator_type
from pod_job.prompts.tasks import read_tasks
from pod_job.prompts.tokens import load_tokenizer, tokenize

if TYPE_CHECKING:
    from pod_job.preflight.forecast import Forecast

TOKENIZED_SAMPLES = 256  # from which the tokens of all are estimated
CHARACTERS_PER_TOKEN = 4  # of English text, where there is no tokenizer to ask
PACKED = 0.98  # share of positions that hold tokens, as packing reaches on real prompts
MOST_CHANGES = 2  # compiled and checked when something must change

Change = tuple[str, JobConfig, tuple[Tap, ...]]  # overrides, and what they make of the job


@dataclasses.dataclass(frozen=True)
class Run:
    """The whole run: what it stores, how long the pod computes and what that costs, start and compilation aside."""

    samples: int
    tokens: int
    rows: int
    bytes: int
    steps: int
    hours: float
    usd_list: float
    usd_spot: float


def preflight(overrides: Sequence[str]) -> dict[str, Any]:
    """The report as JSON values. Raises JobError for whatever can be seen to be wrong with the job."""
    config = load(overrides)
    pod = pod_slice(config)
    model_dir = config_folder(config.model.path, config.model.revision)
    arch = read_arch_file(model_dir / "config.json")
    taps = resolve(config.extract.layers, config.extract.taps, arch.layers)
    check_divides(weight_table(arch), config.mesh, config.sharding)
    from pod_job.preflight.forecast import forecast  # jax, only once the configuration is sound

    found = forecast(config, arch, taps, pod)
    changes = []
    for change, changed, fewer_taps in list(proposals(config, arch, taps, found))[:MOST_CHANGES]:
        outcome = forecast(changed, arch, fewer_taps, pod)
        changes.append({"change": change} | step_report(outcome))
        if outcome.fits and outcome.bottleneck == "compute":
            break
    run = dataclasses.asdict(whole_run(config, arch, taps, model_dir, pod, found)) if found.fits else None
    return {
        "model": config.model.path,
        "pod": config.pod.accelerator_type,
        "step": step_report(found),
        "changes": changes,
        "run": run,
        "prices": PRICES_FROM,
    }


def pod_slice(config: JobConfig) -> Slice:
    """The pod's slice. Raises JobError where it is no TPU pod, or its hosts are not what Google makes of the slice."""
    pod = config.pod
    if pod.kind is not PodKind.tpu or pod.accelerator_type is None:
        raise JobError(f"pod.kind={pod.kind.value}: a preflight is for TPU pods; set pod=v5e_64 or another of kind tpu")
    found = read_accelerator_type(pod.accelerator_type)
    if (pod.hosts, pod.devices_per_host) != (found.hosts, found.chips_per_host):
        raise JobError(
            f"pod.hosts={pod.hosts} x pod.devices_per_host={pod.devices_per_host}, but {pod.accelerator_type} is "
            f"{found.hosts} hosts of {found.chips_per_host} chips; set those"
        )
    return found


def config_folder(path: str, revision: str | None) -> Path:
    """The folder with the model's config.json and tokenizer: a local one, or from the hub; no weight is fetched."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=["config.json", "tokenizer*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise JobError(
            f"model.path={path} is no local folder, and the hub does not give its config.json ({reason}); "
            "without a network, give a folder that holds config.json"
        ) from error


def proposals(config: JobConfig, arch: Arch, taps: tuple[Tap, ...], found: "Forecast") -> Iterator[Change]:
    """What may help where a step does not fit, or its results leave more slowly than they are computed."""
    if not found.fits:
        if config.sharding is Sharding.replicated and arch.hidden % config.mesh.model == 0 and config.mesh.model > 1:
            yield "sharding=fsdp", dataclasses.replace(config, sharding=Sharding.fsdp), taps
        rows = config.extract.rows_per_device
        while rows > 1:
            rows //= 2
            extract = dataclasses.replace(config.extract, rows_per_device=rows)
            yield f"extract.rows_per_device={rows}", dataclasses.replace(config, extract=extract), taps
    elif found.bottleneck in ("host", "bucket"):
        while len(taps) > 1:
            taps = taps[1::2] if len(taps) > 2 else taps[-1:]
            yield f"fewer taps: {', '.join(tap.name for tap in taps)}", config, taps


def step_report(found: "Forecast") -> dict[str, Any]:
    """A forecast as JSON values, with what follows from it."""
    derived = {
        "step_s": found.step_s,
        "bottleneck": found.bottleneck,
        "mfu": found.mfu,
        "compute_mfu": found.compute_mfu,
        "tokens_per_s": found.tokens / found.step_s if found.step_s else 0.0,
    }
    return dataclasses.asdict(found) | derived


def whole_run(
    config: JobConfig, arch: Arch, taps: tuple[Tap, ...], model_dir: Path, pod: Slice, found: "Forecast"
) -> Run:
    """What the run comes to. Tokens are estimated from a part of the samples; without a tokenizer, from characters."""
    samples = read_tasks(config.tasks).samples
    every = max(1, len(samples) // TOKENIZED_SAMPLES)
    chosen = samples[::every]
    if any(model_dir.glob("tokenizer*")):
        prompts = tokenize(load_tokenizer(model_dir), chosen, config.extract.seq_len, config.extract.too_long)
        lengths = [len(prompt.token_ids) for prompt in prompts]
    else:
        lengths = [min(len(sample.content()) // CHARACTERS_PER_TOKEN, config.extract.seq_len) for sample in chosen]
    tokens = max(1, round(sum(lengths) / len(chosen) * len(samples)))
    rows = len(samples) if config.extract.positions is Positions.last else tokens
    steps = -(-tokens // round(PACKED * found.tokens))
    hours = steps * found.step_s / 3600
    itemsize = {"float32": 4}.get(config.extract.dtype.value, 2)
    return Run(
        samples=len(samples),
        tokens=tokens,
        rows=rows,
        bytes=rows * itemsize * sum(tap.width(arch) for tap in taps),
        steps=steps,
        hours=hours,
        usd_list=hours * pod.chips * pod.chip.list_usd_hour,
        usd_spot=hours * pod.chips * pod.chip.spot_usd_hour,
    )
