"""The launcher's output: progress from statuses, the summary from metadata."""

import io
import itertools
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from launch.view import progress, summary
from launch.view.progress import Bar, Screen, bars, slice_bars
from pod_job.config.load import load
from pod_job.run_folder.metadata import BatchEntry, Metadata, read_any
from pod_job.run_folder.status import HostStatus, Phase, TrainingStatus, waited_share
from pod_job.storage.open import open_folder

CONFIG = load(["experiment=demo"])
OLD_RUNS = Path(__file__).parent.parent / "data/old_runs"


def status(host: int, phase: Phase, **counts) -> HostStatus:
    return HostStatus(host=host, attempt="a", phase=phase, **counts)


def test_bars_count_hosts_past_each_phase() -> None:
    shown = bars([status(0, Phase.compiling), status(1, Phase.weights), status(2, Phase.checking), None], batches=7)
    assert [(bar.name, bar.done, bar.total) for bar in shown] == [
        ("count prompts", 3, 4),
        ("hosts arrived", 2, 4),
        ("weights", 1, 4),
        ("compile", 0, 4),
        ("parity", 0, 4),
        ("tokens", 0, 0),
        ("merge", 0, 1),
    ]


def test_a_failed_host_is_past_no_phase() -> None:
    shown = bars([status(0, Phase.failed), status(1, Phase.extracting)], batches=7)
    assert [bar.done for bar in shown] == [1, 1, 1, 1, 1, 0, 0]


def tokens_of(statuses: list[HostStatus], batches: int = 99) -> Bar:
    return next(bar for bar in bars(statuses, batches) if bar.name == "tokens")


def extracting(host: int, seconds: float, tokens: int = 3000, batches_total: int = 5, **counts) -> HostStatus:
    counts |= {"tokens": tokens, "prompt_tokens": tokens, "batch_tokens": 1500.0, "batches_total": batches_total}
    return status(host, Phase.extracting, seconds=seconds, **counts)


def test_tokens_per_second_and_time_left_are_of_the_whole_pod() -> None:
    halves = [extracting(host, 4.0 - host) for host in range(2)]
    assert tokens_of(halves) == Bar("tokens", 6000, 15_000, "0 batches written, 1,500 tokens/s, 6 s left")


@pytest.mark.parametrize("written", [0, 1, 7])
def test_the_time_left_follows_what_is_computed_and_not_what_is_written(written: int) -> None:
    """At a constant rate it is right from the first step on, however many batches are committed at once."""
    for tenth in range(1, 10):
        one = extracting(0, 10.0 * tenth, tokens=1500 * tenth, batches_total=10, batches=min(written, tenth))
        assert tokens_of([one]).detail.endswith(f" {100 - 10 * tenth} s left")


def test_more_tokens_than_were_expected_are_not_more_than_all() -> None:
    shown = tokens_of([extracting(0, 1.0, tokens=9000)])
    assert (shown.done, shown.total, "left" in shown.detail) == (9000, 9000, False)


def test_slices_share_all_batches_but_those_done_before() -> None:
    shown = slice_bars([extracting(0, 2.0), extracting(1, 2.0), None], batches=10, done_before=2)
    bar = next(bar for bar in shown if bar.name == "tokens")
    assert (bar.done, bar.total) == (9000, 15_000)
    assert bar.detail.endswith("3,000 tokens/s, 2 s left")


def test_waiting_for_input_is_that_of_the_host_that_waited_most() -> None:
    waited = [extracting(host, 1.0, waited_steps=2 * host, steps=40, batches=1) for host in range(3)]
    assert waited_share([*waited, None]) == 0.1
    assert "9,000 tokens/s, 10% of steps waited for input, 2 s left" in tokens_of(waited).detail
    assert "waited" not in tokens_of(waited[:1]).detail


def test_a_run_with_nothing_left_shows_all_done() -> None:
    shown = bars([status(0, Phase.done), status(1, Phase.done)], batches=7)
    assert all(bar.done == bar.total for bar in shown)


def test_plain_screen_says_each_phase_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=4.0)
    monkeypatch.setattr(progress.clock, "monotonic", lambda: next(clock))
    screen = Console(file=io.StringIO(), width=200)
    with Screen(screen) as shown:
        for done in range(6):
            shown.show([Bar("weights", 2, 2), Bar("batches", done, 5)])
    assert isinstance(screen.file, io.StringIO)
    said = [line.split("s  ")[1] for line in screen.file.getvalue().splitlines()]
    assert said[0] == "weights 2/2"
    assert said[-1] == "batches 5/5"
    assert len(said) == len(set(said))
    assert 2 < len(said) < 6  # every PLAIN_EVERY_S, not every time


def test_a_terminal_gets_bars() -> None:
    screen = Console(file=io.StringIO(), width=100, force_terminal=True)
    with Screen(screen) as shown:
        shown.show([Bar("batches", 2, 5, "1,500 tokens/s")])
        shown.show([Bar("batches", 5, 5, "1,600 tokens/s")])
    assert isinstance(screen.file, io.StringIO)
    assert "1,600 tokens/s" in screen.file.getvalue()


def described(samples: int, files: list[tuple[str, int, int]]) -> Metadata:
    """Returns the metadata of a finished run with these files: layer, rows, size."""
    batches = [BatchEntry(1, layer, "file", 1, rows, 0, size, "crc") for layer, rows, size in files]
    finished = read_any(open_folder(OLD_RUNS / "bfloat16"))
    return msgspec.structs.replace(finished, total_samples=samples, batches=batches)


def test_summary_adds_up() -> None:
    metadata = described(11, [(layer, rows, 100 * rows) for rows in (8, 3) for layer in ("layer_6", "layer_30_norm")])
    counts = {"samples": 4, "cut_samples": 1, "tokens": 60, "positions": 80}
    hosts = [
        status(0, Phase.done, seconds=2.0, **counts),
        status(1, Phase.done, seconds=3.0, **counts),
    ]
    done = summary.summarise(CONFIG, metadata, hosts, 9.0, summary.Path("runs/logs/a"))
    assert done.rows_per_tap == {"layer_6": 11, "layer_30_norm": 11}
    assert done.bytes == 2200
    assert done.tokens_per_s == 40.0
    assert done.padding == 0.25
    screen = Console(file=io.StringIO(), width=200)
    summary.show(done, screen)
    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    for said in ("11 (2 cut, 8 of them in this attempt)", "11 for each of layer_6, layer_30_norm", "25.0%"):
        assert said in shown


def test_summary_of_a_run_with_nothing_left_to_do() -> None:
    done = summary.summarise(
        CONFIG, described(2, [("layer_6", 2, 9)]), [status(0, Phase.done)], 9.0, summary.Path("logs")
    )
    assert done.tokens_per_s is None
    assert done.padding is None
    screen = Console(file=io.StringIO())
    summary.show(done, screen)


def test_a_training_on_a_finished_run_shows_no_phase_of_prompts_or_a_model() -> None:
    names = {
        stored: [bar.name for bar in bars([status(0, Phase.training, training=at)], 100)]
        for stored in (False, True)
        for at in [TrainingStatus(step=40, steps=100, stored=stored)]
    }
    assert names[True] == ["hosts arrived", "statistics", "steps", "write SAEs"]
    assert set(names[False]) - set(names[True]) == {"count prompts", "weights", "compile", "parity"}


def test_the_time_left_of_training_is_by_the_steps_of_late_and_not_by_the_compiled_first() -> None:
    at = TrainingStatus(step=40, steps=100)
    one = status(0, Phase.training, training=at, steps=40, seconds=60.0, step_s=0.5, tokens=400)
    bar = next(bar for bar in bars([one], 100) if bar.name == "steps")
    assert bar.detail.endswith("7 tokens/s, 30 s left")
