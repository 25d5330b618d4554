"""`python -m tools.plans [PAGE.md]`: what every experiment on a TPU pod takes and costs, in the tables of a page.

`--only EXPERIMENT ...` compiles these alone. Lines of other experiments stay as they are, and so does all text around
the tables. Needs libtpu and no TPU, weights, network or prompts: a model's sizes are in tests/data/configs, and time
and cost are given for a billion tokens.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import takewhile
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
from pod_job.preflight.tpu_facts import read_accelerator_type
from pod_job.preflight.whole_run import PACKED, dollars

CONFIGS = Path("tests/data/configs")
PAGE = Path("docs/plans.md")
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
    "compiled",
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
    "compiled",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.plans", description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, default=PAGE)
    parser.add_argument("--only", nargs="+", metavar="EXPERIMENT", help="these alone")
    options = parser.parse_args(argv)
    compiled = f"{datetime.now(UTC).date().isoformat()}, libtpu {version('libtpu')}"
    for name in options.only or experiments():
        print(f"{name} ...", file=sys.stderr, flush=True)
        report = preflight(name)
        training = report.mode is Mode.train
        rows = [training_row(name, report)] if training else plan_rows(name, report)
        lines = [line_of([*cells, compiled]) for cells in rows]
        columns = TRAINING_COLUMNS if training else COLUMNS
        options.page.write_text(with_lines(options.page.read_text(), columns, name, lines))
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


def with_lines(page: str, columns: Sequence[str], name: str, lines: Sequence[str]) -> str:
    """Returns the page with these lines for an experiment in the table with these columns, which is in order of names.

    Raises:
        JobError: the page has no such table.
    """
    before, head, after = page.partition(line_of(columns) + line_of(["---"] * len(columns)))
    if not head:
        raise JobError(f"the page has no table with the columns {', '.join(columns)}; write its two first lines")
    old = list(takewhile(lambda line: line.startswith("|"), after.splitlines(keepends=True)))
    others = [line for line in old if experiment_of(line) != name]
    # By name alone: the lines of one experiment stay in their order.
    table = sorted([*others, *lines], key=experiment_of)
    return before + head + "".join(table) + after[len("".join(old)) :]


def experiment_of(line: str) -> str:
    """Returns the experiment that a line of a table is of."""
    return line.split("|")[1].strip().partition(":")[0]


def line_of(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def plan_rows(name: str, report: PreflightReport) -> list[list[str]]:
    """Returns the lines of an experiment that stores vectors: one, or with mode=generate two."""
    step, *more = report.programs
    config = configuration(name)
    return [row(name, config, step), *(row(f"{name}: new tokens", config, program, packed=1.0) for program in more)]


def milliseconds(seconds: float, program: Forecast, digits: int = 0) -> str:
    """Returns a time, and what of it is no count of the attention kernel's instructions."""
    counted = program.kernel_origin in ("", "bundles")
    return f"{1e3 * seconds:.{digits}f} ms" + ("" if counted else f" (kernel by its {program.kernel_origin})")


def training_row(name: str, report: PreflightReport) -> list[str]:
    """Returns one line of the table of trainings."""
    config, training, run = configuration(name), report.training, report.run
    forward, program = report.programs[0], report.programs[-1]
    specs = config.train.specs
    memory = f"{program.hbm['total'] / 2**30:.2f} of {program.hbm_available / 2**30:.2f} GiB"
    start = [name, Path(config.model.path).name, report.pod, f"{len(specs)} of {specs[0].latents:,}", memory]
    if training is None or run is None:
        return [*start, "does not fit", *[""] * (len(TRAINING_COLUMNS) - len(start) - 2)]
    parts = training.seconds
    return [
        *start,
        milliseconds(training.step_s, program, 1),
        milliseconds(parts["forward"], forward, 1),
        *(milliseconds(parts[part], program, 1) for part in ("trainer", "network")),
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
        return [*start, "does not fit", *[""] * (len(COLUMNS) - len(start) - 2)]
    hours = 1e9 / (packed * step.tokens_per_s) / 3600
    usd = [dollars(3600 * hours, slice_, price) for price in (slice_.chip.list_usd_hour, slice_.chip.spot_usd_hour)]
    return [
        *start,
        milliseconds(step.step_s, step),
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
