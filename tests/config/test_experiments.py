"""Every experiment can be started: its layers exist, its mesh fits its model, and `make sim-NAME` has all it needs."""

import re
import shlex
from pathlib import Path

import pytest
from forecasts import preflight_report, step_values

from pod_job.config.load import conf_dir, load
from pod_job.errors import JobError
from pod_job.models.arch import read_arch_file
from pod_job.models.sharding import check_divides
from pod_job.models.taps import resolve
from pod_job.models.weight_table import weight_table
from pod_job.planning.inputs import check_context
from pod_job.planning.training import look_at_prompts, read_job_inputs
from pod_job.preflight.tpu_facts import PRICES_FROM, V5E
from tools.plans import (
    COLUMNS,
    PAGE,
    TRAINING_COLUMNS,
    configuration,
    experiment_of,
    experiments,
    line_of,
    plan_rows,
    sizes_of,
    with_lines,
)
from tools.tiny_model import write_tiny_model

FILES = {path.stem: path.read_text() for path in sorted((conf_dir() / "experiment").glob("*.yaml"))}
EVERY = list(FILES)
# Composed only where a test runs; the rehearsal's model is a random one.
ON_PODS = [name for name, text in FILES.items() if "override /pod: local" not in text and name != "rehearsal"]


def test_every_model_of_a_pod_is_planned_but_the_rehearsals_random_one() -> None:
    assert experiments() == ON_PODS
    assert configuration("rehearsal").pod.kind.value == "tpu"


@pytest.mark.parametrize("name", ON_PODS)
def test_layers_mesh_and_context_fit_the_model(name: str) -> None:
    config = configuration(name)
    arch = read_arch_file(sizes_of(config) / "config.json")
    assert resolve(config.extract.layers, config.extract.taps, arch)
    check_divides(weight_table(arch), config.mesh, config.sharding)
    check_context(config, arch)


@pytest.fixture(scope="module")
def sim_overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that the Makefile's sim-% adds to every experiment."""
    model = write_tiny_model(tmp_path_factory.mktemp("sim") / "model", layers=32)
    (text,) = re.findall(r"^SIM_OVERRIDES = ((?:.*\\\n)*.*)$", Path("Makefile").read_text(), re.MULTILINE)
    return shlex.split(text.replace("\\\n", " ").replace("$(SIM_MODEL)", str(model)))


@pytest.mark.parametrize("name", EVERY)
def test_every_experiment_can_be_simulated(name: str, sim_overrides: list[str], tmp_path: Path) -> None:
    inputs = read_job_inputs(load([f"experiment={name}", *sim_overrides, f"storage.run_dir={tmp_path}"]))
    look_at_prompts(inputs)
    assert inputs.identity.taps


def test_a_plan_is_a_row_of_the_page() -> None:
    step = step_values(hbm={"total": 3 << 30}, seconds={"compute": 0.5}, ideal_s=0.305, tokens=500_000)
    name = "qwen7b-text-v5e64"
    [cells] = plan_rows(name, preflight_report(step, None))
    assert len([*cells, "date"]) == len(COLUMNS)
    # A million tokens/s, rows 98% full: 1020 s of 64 chips; a vector is 3584 x 2 bytes.
    list_usd, spot_usd = (f"{64 * 1e9 / 980_000 / 3600 * usd:,.0f}" for usd in (V5E.list_usd_hour, V5E.spot_usd_hour))
    assert cells[4:] == [
        "3.00 of 15.75 GiB",
        "500 ms",
        "compute",
        "61.0%",
        "1,000,000",
        "0.28",
        list_usd,
        spot_usd,
        "7.17 TB",
    ]


def test_a_time_says_where_the_kernels_instructions_were_not_counted() -> None:
    step = step_values(hbm={"total": 3 << 30}, seconds={"compute": 0.5}, tokens=500_000, kernel_origin="FLOPs")
    [cells] = plan_rows("qwen7b-text-v5e64", preflight_report(step, None))
    assert cells[5] == "500 ms (kernel by its FLOPs)"


def test_lines_of_one_experiment_change_nothing_else_of_the_page() -> None:
    table = line_of(COLUMNS) + line_of(["---"] * len(COLUMNS))
    page = f"before\n\n{table}| a | 1 |\n| b | 1 |\n| b: new tokens | 1 |\n| d | 1 |\n\nafter\n"
    changed = with_lines(page, COLUMNS, "b", ["| b | 2 |\n", "| b: new tokens | 2 |\n"])
    assert changed == page.replace("| b | 1 |", "| b | 2 |").replace("tokens | 1 |", "tokens | 2 |")
    assert with_lines(page, COLUMNS, "c", ["| c | 1 |\n"]) == page.replace("| d |", "| c | 1 |\n| d |")
    with pytest.raises(JobError, match="no table with the columns experiment, model, pod, SAEs"):
        with_lines(page, TRAINING_COLUMNS, "b", [])


def test_the_page_has_a_line_of_every_experiment_on_a_pod_and_the_present_prices() -> None:
    text = PAGE.read_text()
    lines = text.splitlines()
    assert f"Prices: {PRICES_FROM}." in lines
    assert {experiment_of(line) for line in lines if "libtpu" in line and line.startswith("|")} == set(ON_PODS)
