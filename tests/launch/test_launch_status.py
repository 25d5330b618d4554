"""Status adds up: the run, every pod it has had, what they cost; as a table in a terminal and as lines elsewhere."""

import io
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from sample_runs import identity

from launch.__main__ import main
from launch.cloud.observe import read_all
from launch.cloud.pod_records import all_records, note_end, note_start, record_of
from launch.cloud.pods import Pod
from launch.cloud.run_status import planned_batches, run_status
from launch.cloud.tpu_api import Node
from launch.view.status_view import Live, PodHours, RunStatus, line, table
from pod_job.config.cloud import Capacity
from pod_job.config.load import load, to_json
from pod_job.config.schema import JobConfig
from pod_job.errors import JobError
from pod_job.preflight.prices import hours, pod_usd_per_hour, spent, usd_per_hour
from pod_job.preflight.region_prices import USD_HOUR
from pod_job.preflight.tpu_facts import PREFIXES, read_accelerator_type
from pod_job.report.overview import read_overview
from pod_job.report.work import read_work
from pod_job.run_folder.identity import claim
from pod_job.run_folder.pods import PodRecord
from pod_job.run_folder.slices import report_folder
from pod_job.run_folder.status import HostStatus, Phase, write_status
from pod_job.run_folder.timeline import Timeline, read_timelines, write_timeline
from pod_job.storage.folder import Folder
from pod_job.storage.open import open_folder

NOW = 1_800_000_000.0
HOUR = 3600.0


def pod(created: float, zone: str = "us-west4-a", state: str = "READY", **node: Any) -> Pod:
    stamp = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
    fields = {"state": state, "createTime": stamp, "acceleratorType": "v5litepod-64", "health": "HEALTHY"}
    return Pod("extract-1", zone, msgspec.convert({"name": "extract-1"} | fields | node, Node), None)


def config(*more: str) -> JobConfig:
    return load(["experiment=v5e64", "storage.run_dir=gs://bucket/run", *more])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A run of 10 batches of 4 samples, 5 of them done at a rate of one in 100 s, on two hosts."""
    folder = open_folder(tmp_path / "run")
    claim(folder, identity(39, per_batch=4))
    for batch in range(1, 6):
        folder.create(f"commits/batch_{batch:06d}.json", [b"{}"])
    for host in range(2):
        counts = {"batches": 2 + host, "batches_total": 5, "tokens": 1000, "seconds": 500.0, "steps": 9}
        write_status(folder, HostStatus(host=host, attempt="a", phase=Phase.extracting, **counts))
    return folder


def at_now(folder: Folder, pods: list[Pod], *more: str) -> RunStatus:
    job = config("pod.hosts=2", "mesh.data=8", "mesh.model=1", *more)
    return run_status(job, folder, planned_batches(job, folder), read_all(folder, 2, "a"), pods, NOW)


def test_rate_and_time_left_are_of_the_whole_run(folder: Folder) -> None:
    run = at_now(folder, [])
    assert (run.batches_done, run.batches) == (5, 10)
    assert run.batches_per_hour == pytest.approx(36)
    assert run.left_s == pytest.approx(500)
    assert run.ready_at == pytest.approx(NOW + 500)
    assert run.tokens_per_s == pytest.approx(4)
    assert run.cost_so_far is None


def test_costs_are_of_every_pod_the_run_has_had(folder: Folder) -> None:
    """One deleted by us after 2 h, one taken away, which nobody saw, and one that lives for an hour."""
    ours, taken, living = pod(NOW - 9 * HOUR), pod(NOW - 6 * HOUR, "us-west4-b"), pod(NOW - HOUR)
    for each in (ours, taken, living):
        note_start(folder, record_of(each, Capacity.spot))
        note_start(folder, record_of(each, Capacity.spot))
    note_end(folder, record_of(ours, Capacity.spot), NOW - 7 * HOUR)
    note_end(folder, record_of(ours, Capacity.spot), NOW)  # the first counts
    records = all_records(folder, [living], config())
    alive = {record_of(living, Capacity.spot).key}
    paid = hours(records, alive, heard=NOW - 3 * HOUR, now=NOW)
    assert [time_h for _, time_h in paid] == pytest.approx([2, 3, 1])
    heard_since = hours(records, alive, heard=NOW, now=NOW)  # by hosts of the living one
    assert [time_h for _, time_h in heard_since] == pytest.approx([2, 5, 1])
    price = 64 * 0.48
    assert spent(paid, None) == pytest.approx(6 * price)  # in us-west4, dearer than us-central1
    assert spent(paid, 2.0) == pytest.approx(6 * 128)


def test_a_pod_that_lives_counts_noted_or_not(folder: Folder) -> None:
    run = at_now(folder, [pod(NOW - HOUR)], "cloud.price_per_chip_hour=1")
    assert run.cost_so_far == pytest.approx(64)
    assert run.cost_expected == pytest.approx(64 + 64 * 500 / HOUR)
    assert run.pod_hours == [PodHours("us-west4-a", 1.0)]


def test_prices_follow_capacity_and_are_unknown_for_unknown_chips() -> None:
    chip = read_accelerator_type("v6e-16").chip
    assert chip.spot_usd_hour is not None
    assert chip.list_usd_hour is not None
    assert usd_per_hour("v6e-16", "spot", None) == pytest.approx(16 * chip.spot_usd_hour)
    assert usd_per_hour("v6e-16", "on_demand", None) == pytest.approx(16 * chip.list_usd_hour)
    assert usd_per_hour("v9-16", "spot", None) is None
    assert usd_per_hour("v6e-16", "spot", None, "europe-west4-a") == pytest.approx(16 * 1.037)
    assert usd_per_hour("v6e-16", "spot", 2.0, "europe-west4-a") == pytest.approx(16 * 2)
    unknown = usd_per_hour("v6e-16", "spot", None, "mars-north1-a")
    assert unknown == usd_per_hour("v6e-16", "spot", None)


def test_of_several_zones_the_dearest_is_the_price_of_what_may_come() -> None:
    zones = load(["experiment=v5e64", "storage.run_dir=gs://b/r", "cloud.zones=[us-central1-a,us-west4-a]"])
    assert pod_usd_per_hour(zones) == pytest.approx(64 * 0.48)
    assert pod_usd_per_hour(zones, "us-central1-a") == pytest.approx(64 * 0.245)


@pytest.mark.parametrize("chip", sorted(USD_HOUR))
def test_the_prices_without_a_zone_are_those_of_one_region(chip: str) -> None:
    facts = next(each for each in PREFIXES.values() if each.name == chip)
    assert (facts.list_usd_hour, facts.spot_usd_hour) in USD_HOUR[chip].values()
    assert spent([(PodRecord("n", "z", "v9-16", "spot", 1.0), 1.0)], None) is None


def shown(run: RunStatus, terminal: bool) -> str:
    console = Console(file=io.StringIO(), width=140, force_terminal=terminal, color_system=None)
    with Live(console) as live:
        live.show(run)
        live.show(run)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


SICK = {
    "health": "UNHEALTHY_TENSORFLOW",
    "healthDescription": "no answer",
    "symptoms": [{"symptomType": "LOW_MEMORY", "workerId": "3"}],
    "upcomingMaintenance": {"windowStartTime": "2026-12-01T00:00:00Z"},
}


def test_a_terminal_gets_one_table_and_others_a_line_per_change(folder: Folder) -> None:
    run = at_now(folder, [pod(NOW - HOUR, **SICK)])
    drawn = shown(run, terminal=True)
    plain = shown(run, terminal=False)
    for said in (drawn, plain):
        for part in ("5 of 10 batches, 4 tokens/s, 500 s left", "READY", "LOW_MEMORY 3", "maintenance from 2026-12-01"):
            assert part in said
    assert "\x1b[" in drawn  # drawn in place
    assert "host  phase" in drawn
    assert plain.count("\n") == 1
    assert "2 extracting" in plain


def test_the_table_shows_costs_and_what_a_host_says(folder: Folder) -> None:
    write_status(folder, HostStatus(host=1, attempt="a", phase=Phase.failed, error="KeyError: '[x]'"))
    run = at_now(folder, [pod(NOW - HOUR)], "cloud.price_per_chip_hour=1")
    console = Console(file=io.StringIO(), width=140)
    more = msgspec.structs.replace(run, hosts=[*run.hosts, None])
    console.print(table(more))
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "$64.00 for 1.00 h of 1 pod" in said
    assert "KeyError: '[x]'" in said
    assert "not heard of yet" in said
    assert "1 not heard of" in line(more)


def test_status_needs_no_inputs_once_the_run_has_begun(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither model nor tasks of this experiment are on this machine."""
    job = ["experiment=demo", "model.path=/gone", "tasks.path=/gone", "pod.hosts=2", "mesh=2x2"]
    assert main(["status", *job, f"storage.run_dir={folder.url}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batches"] == 10


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"name": "n"}', b'{"created": "x"}'])
def test_a_damaged_record_of_a_pod_is_named(folder: Folder, content: bytes) -> None:
    note_start(folder, record_of(pod(NOW), Capacity.spot))
    [name] = folder.names("pods/")
    whole = json.loads(folder.read(name))
    folder.replace(name, json.dumps(whole | json.loads(content)).encode() if b"x" in content else content)
    with pytest.raises(JobError, match=f"{name}: .*; the file is damaged"):
        at_now(folder, [])


@pytest.mark.parametrize(("first", "latest"), [(1, 3), (4, 2)])
def test_the_hosts_are_those_of_the_latest_start(
    first: int, latest: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = open_folder(tmp_path / "run")
    job = ["experiment=demo", f"storage.run_dir={folder.url}", f"pod.hosts={first}", "pod.devices_per_host=1"]
    claim(folder, identity(8), to_json(load([*job, f"mesh.data={first}", "mesh.model=1"])))
    for attempt, hosts in (("a", first), ("b", latest)):
        for host in range(hosts):
            write_status(folder, HostStatus(host=host, hosts=hosts, attempt=attempt, phase=Phase.done))
            folder.replace(f"logs/host_{host:02d}.log", f"{attempt} of {host}".encode())
    assert main(["status", folder.url, "--json"]) == 0
    assert [host["host"] for host in json.loads(capsys.readouterr().out)["hosts"]] == list(range(latest))
    assert main(["logs", folder.url]) == 0
    assert len(capsys.readouterr().out.splitlines()) == max(first, latest)


def test_status_of_nothing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "experiment=demo", f"storage.run_dir={tmp_path}/gone"]) == 2
    assert "gone: no run is there, and no pod of one" in capsys.readouterr().err
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("arguments", ["status experiment=demo --json", "up experiment=v5e64 --dry-run"])
def test_quick_verbs_load_nothing_slow(folder: Folder, arguments: str) -> None:
    """They answer in less than a second on an idle machine, most of which is spent on imports."""
    program = "import sys; from launch.__main__ import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    run_dir = folder.url if "demo" in arguments else "gs://bucket/run"
    command = [sys.executable, "-c", program, *arguments.split(), f"storage.run_dir={run_dir}"]
    done = subprocess.run([*command, "cloud.zones=[us-west4-a]"], capture_output=True, text=True, check=True)
    slow = {"jax", "torch", "transformers", "pyarrow", "google.cloud.storage", "huggingface_hub", "pandas", "flax"}
    assert slow & set(done.stderr.split()) == set()


@pytest.fixture
def slices(tmp_path: Path) -> Folder:
    """A run of slices a, of two hosts, and b, of one, which is done; a third has not come."""
    folder = open_folder(tmp_path / "run")
    job = ["experiment=demo", f"storage.run_dir={folder.url}", "pod.hosts=2", "pod.slices=3", "mesh=2x2"]
    claim(folder, identity(8), to_json(load(job)))
    for name, hosts, phase in (("a", 2, Phase.extracting), ("b", 1, Phase.done)):
        reports = report_folder(folder, name)
        for host in range(hosts):
            write_status(reports, HostStatus(host=host, hosts=hosts, attempt="x", phase=phase))
            text = f"2026-11-26 10:00:0{host + 2 * (name == 'a')},000 INFO {name}\n"
            reports.replace(f"logs/host_{host:02d}.log", text.encode())
            timeline = Timeline(host=host, attempt=f"{name}-start", devices=4)
            timeline.phases["extracting"], timeline.points = 0.0, [[10.0, 1, 1, 100, 200, 0, 0, 0]]
            write_timeline(reports, timeline)
    return folder


def test_logs_are_of_all_slices_or_of_one(slices: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", slices.url, "--follow"]) == 0  # which b has seen to the end
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["b/00", "a/00", "a/01"]
    assert main(["logs", slices.url, "--slice", "a", "--host", "1"]) == 0
    assert capsys.readouterr().out.startswith("a/01 2026-11-26")
    assert main(["logs", slices.url, "--slice", "c"]) == 2
    assert "--slice c has reported nothing; use one of a, b" in capsys.readouterr().err


def test_the_timelines_of_a_run_are_those_of_all_its_slices(slices: Folder) -> None:
    timelines = list(read_timelines(slices))
    assert [(timeline.slice, timeline.host) for timeline in timelines] == [("a", 0), ("a", 1), ("b", 0)]
    work = read_work(read_overview(slices.url))
    assert work is not None
    assert (work.starts, work.hosts, work.devices, work.tokens) == (2, 2, 8, 300)
    assert (work.wall_s, work.pod_s, work.phase_s["extracting"]) == (10, 20, 20)
    assert work.tokens_per_s == pytest.approx(30)  # of both slices at once
    assert set(work.rates) == {"a/0", "a/1", "b/0"}
