"""`python -m tools.plans [OUT.md]`: what every experiment on a TPU pod takes and costs, by its preflight, as a page.

Needs libtpu and no TPU, weights, network or prompts: a model's sizes are in tests/data/configs, and time and cost are
given for a billion tokens.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from pod_job.commands.command_line import exit_status
from pod_job.config.generate import Mode
from pod_job.config.load import conf_dir, load
from pod_job.config.schema import JobConfig, PodKind, Positions
from pod_job.errors import JobError
from pod_job.formats.records import decode
from pod_job.models.arch import read_arch_file
from pod_job.models.taps import resolve
from pod_job.preflight.forecast import Forecast
from pod_job.preflight.records import PreflightReport
from pod_job.preflight.tpu_facts import PRICES_FROM, read_accelerator_type
from pod_job.preflight.whole_run import PACKED, dollars

CONFIGS = Path("tests/data/configs")
OUT = Path("docs/plans.md")
BFLOAT16_BYTES = 2
UNUSED = "storage.run_dir=gs://unused/run"
COLUMNS = (
    "experiment",
    "model",
    "pod",
    "taps",
    "memory per chip",
    "step",
    "bound by",
    "MFU",
    "tokens/s",
    "hours per billion tokens",
    "list $",
    "spot $",
    "vectors",
)
TRAINING_COLUMNS = (
    "experiment",
    "model",
    "pod",
    "SAEs",
    "memory per chip",
    "step",
    "forward",
    "trainer",
    "network",
    "tokens/s",
    "of the forward pass alone",
    "rows",
    "hours",
    "list $",
    "spot $",
)
HEAD = """# Plans: what each experiment takes and costs

Memory, time and cost of each experiment in `conf/experiment` on its pod.

Made by `make plans` ({made}) from the preflight of each experiment: the step compiled by the TPU compiler for that pod,
not measured on one. [preflight.md](preflight.md) explains the numbers and their assumptions. Time and cost are per
billion tokens in rows that are 98% full, without start and compilation; *vectors* is the size of the result in the
bucket, in bfloat16. *Memory* is the compiler's count (weights, temporaries, results twice) and the limit for a program:
15.75 of the 16 GiB of a v5e chip, 31.25 of the 32 of a v6e.

Prices: {prices}.

"""
TRAINING_HEAD = """
## Training

Nothing is stored: the forward pass feeds the trainer on the same chips. A *step* is one of the optimizer; its parts are
added as if nothing overlapped: the *forward* passes that feed it, the *trainer*'s computing, and its collectives on the
*network*. The step compiled is one in which dead latents are revived, the slowest. Hours and cost are of all *rows* of
the experiment. *Memory* is that of both programs with the shuffle buffer.

"""
FOOT = """
With only the last token of each ARC prompt, there is one vector per about 1,900 tokens: the 416 prompts of the 400
training tasks have 795,020 tokens (SmolLM2's tokenizer) and yield {arc_mb:.1f} MB for each tap of width 896, so such
a run takes the time of its start and compilation on any pod.

Where the table says "bucket", the vectors leave the pod more slowly than it computes them: with fewer `extract.layers`,
the same tokens take less time.

`make plan-NAME ARGS="storage.run_dir=gs://... tasks.path=..."` plans one of them with your own prompts; `make sim-NAME`
runs its pod shape, mesh and taps on this machine with a tiny random model.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.plans", description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=OUT)
    parser.add_argument("--only", nargs="+", metavar="EXPERIMENT", help="these alone, printed and not written")
    options = parser.parse_args(argv)
    reports = {}
    for name in options.only or experiments():
        print(f"{name} ...", file=sys.stderr, flush=True)
        reports[name] = preflight(name)
    made = f"{datetime.now(UTC).date().isoformat()}, jax {version('jax')}, libtpu {version('libtpu')}"
    text = page(reports, made)
    if options.only:
        print(text)
    else:
        options.out.write_text(text)
    return 0


def experiments() -> list[str]:
    """Returns the experiments on TPU pods of a model whose sizes are known here."""
    names = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
    return [name for name in names if sizes_of(configuration(name)).is_dir()]


def configuration(name: str) -> JobConfig:
    return load([f"experiment={name}", UNUSED])


def sizes_of(config: JobConfig) -> Path:
    """Returns the folder with the config.json of the model; one that is not there for a pod on this machine."""
    return CONFIGS / (Path(config.model.path).name if config.pod.kind is PodKind.tpu else "none")


def preflight(name: str) -> PreflightReport:
    """Returns the report on the experiment. JobError with what the preflight refused."""
    argv = [sys.executable, "-m", "pod_job.preflight", f"experiment={name}", UNUSED]
    argv += [f"model.path={sizes_of(configuration(name))}", "tasks=arc_sample", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        raise JobError(f"experiment={name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return decode(done.stdout, PreflightReport, f"report on experiment={name}")


def page(reports: dict[str, PreflightReport], made: str) -> str:
    rows = []
    for name, report in reports.items():
        if report.mode is not Mode.train:
            step, *more = report.programs
            config = configuration(name)
            rows.append(row(name, config, step))
            rows += [row(f"{name}: new tokens", config, program, packed=1.0) for program in more]
    training = [training_row(name, report) for name, report in reports.items() if report.mode is Mode.train]
    text = HEAD.format(made=made, prices=PRICES_FROM) + table(COLUMNS, rows) + FOOT.format(arc_mb=416 * 896 * 2 / 1e6)
    return text + (TRAINING_HEAD + table(TRAINING_COLUMNS, training) if training else "")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def training_row(name: str, report: PreflightReport) -> list[str]:
    """Returns one line of the table of trainings."""
    config, program, training, run = configuration(name), report.programs[-1], report.training, report.run
    specs = config.train.specs
    memory = f"{program.hbm['total'] / 2**30:.2f} of {program.hbm_available / 2**30:.2f} GiB"
    start = [name, Path(config.model.path).name, report.pod, f"{len(specs)} of {specs[0].latents:,}", memory]
    if training is None or run is None:
        return [*start, "does not fit", *[""] * (len(TRAINING_COLUMNS) - len(start) - 1)]
    parts = (training.seconds[part] for part in ("forward", "trainer", "network"))
    return [
        *start,
        *(f"{1e3 * seconds:.1f} ms" for seconds in (training.step_s, *parts)),
        f"{training.tokens_per_s:,.0f}",
        f"{training.of_forward_alone:.1%}",
        f"{run.rows:,}",
        f"{run.hours:.2f}",
        *("unknown" if price is None else f"{price:,.0f}" for price in (run.usd_list, run.usd_spot)),
    ]


def row(name: str, config: JobConfig, step: Forecast, packed: float = PACKED) -> list[str]:
    """Returns one line of the table; `packed` is the share of the step's positions that hold tokens."""
    slice_ = read_accelerator_type(str(config.pod.accelerator_type))
    layers = "all" if config.extract.layers is None else ", ".join(map(str, config.extract.layers))
    memory = f"{step.hbm['total'] / 2**30:.2f} of {step.hbm_available / 2**30:.2f} GiB"
    start = [name, Path(config.model.path).name, str(config.pod.accelerator_type)]
    start += [f"{layers}; {config.extract.positions.value}", memory]
    if not step.fits:
        return [*start, "does not fit", *[""] * (len(COLUMNS) - len(start) - 1)]
    hours = 1e9 / (packed * step.tokens_per_s) / 3600
    usd = [dollars(3600 * hours, slice_, price) for price in (slice_.chip.list_usd_hour, slice_.chip.spot_usd_hour)]
    return [
        *start,
        f"{1e3 * step.step_s:.0f} ms",
        step.bottleneck,
        f"{step.mfu:.1%}",
        f"{step.tokens_per_s:,.0f}",
        f"{hours:.2f}",
        *("unknown" if price is None else f"{price:,.0f}" for price in usd),
        stored(config),
    ]


def stored(config: JobConfig) -> str:
    """Returns the size of the vectors: of a billion tokens, or of each prompt where only its last token is stored."""
    arch = read_arch_file(sizes_of(config) / "config.json")
    taps = resolve(config.extract.layers, config.extract.taps, arch)
    vector_bytes = BFLOAT16_BYTES * sum(tap.width(arch) for tap in taps)
    if config.mode is Mode.generate:
        return f"{vector_bytes / 1e3:.1f} kB a new token"
    if config.extract.positions is Positions.last:
        return f"{vector_bytes / 1e3:.1f} kB a prompt"
    return f"{1e9 * vector_bytes / 1e12:.2f} TB"


if __name__ == "__main__":
    sys.exit(exit_status(main))
