"""The benchmarks: what a worker answers, how figures become a table, and that the page says where ours is behind."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pod_job.errors import JobError
from tools.bench import workloads
from tools.bench.__main__ import chosen
from tools.bench.cases import CASES, LOADS, WAYS, Figure
from tools.bench.measure import answer_of
from tools.bench.page import TITLES, page, shown
from tools.bench.results import Answer, Results, read_results, write_results
from tools.bench.ways import ours
from tools.bench.workloads.extraction import lines_of
from tools.peers import PEERS, make, quiet_environment
from tools.tiny_model import write_tiny_model

WAY_FILES = Path(workloads.__path__[0]).parent / "ways"
TOKENS = 1000


def answer(cpu_s: float, tokens: int) -> Answer:
    sizes = {"bytes": 2e6 * TOKENS / tokens, "peak_bytes": 5e8}
    return Answer({"wall_s": 2 * cpu_s, "cpu_s": cpu_s, "amount": tokens, "apart": 0.002, "lines": 1} | sizes)


def results(faster: float) -> Results:
    """Made-up answers; Hugging Face needs `faster` CPU seconds to our 1."""
    made = Results()
    for case, cpu_s in (("extract-one-tap-all", {"document": 5.0}), ("extract-one-tap-last", {"document": 1.5})):
        for way in WAYS:
            tokens = 50 if way == "document" and case.endswith("all") else TOKENS
            seconds = {"ours": 1.0, "hugging_face": faster, **cpu_s}.get(way, 4.0)
            failed = Answer(failed="no answer in 300 s") if (way, case[-4:]) == ("sae_lens", "last") else None
            for _ in range(3):
                made.add(case, way, failed or answer(seconds, tokens))
    for reader, cpu_s in (("ours", 0.5), ("memory_map", 0.25)):
        made.add("read", reader, Answer({"wall_s": 1.0, "cpu_s": cpu_s, "amount": 1.0}))
    return made


def rows_of(text: str, way: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")][1:] for line in text.splitlines() if f"| {way} |" in line
    ]


def test_speeds_and_ratios() -> None:
    text = page(results(faster=2.0))
    # 1000 tokens in 2 s of wall and 1 s of CPU time; a twentieth of the document's tokens in 5 CPU seconds.
    assert rows_of(text, "ours")[0] == ["500", "1,000", "1.00", "0%", "500.00", "2.00", "0.20%", "1"]
    assert rows_of(text, TITLES["hugging_face"])[0][:3] == ["250", "500", "2.00"]
    assert rows_of(text, TITLES["document"])[0][:6] == ["5", "10", "100.00", "0%", "500.00", "40.00"]
    assert rows_of(text, TITLES["document"])[1][:3] == ["333", "667", "1.50"]
    assert rows_of(text, TITLES["sae_lens"])[1][:6] == ["-"] * 6
    assert f"No figures: {TITLES['sae_lens']} (one tap, last): no answer in 300 s." in text
    assert "No way takes less CPU time for a token than ours" in text
    assert rows_of(text, TITLES["memory_map"]) == [["1", "0.25", "0.50", "0%"]]


def test_the_page_says_where_ours_is_behind() -> None:
    text = page(results(faster=0.8))
    assert f"Ours is behind {TITLES['hugging_face']} (one tap, all: 1.25 times as fast)" in text


def test_figures_are_ratios_of_medians_beside_what_is_wanted() -> None:
    made = Results()
    for seconds in (1.0, 9.0, 2.0):
        made.add("generate", "four taps", Answer({"wall_s": seconds, "cpu_s": 1.0, "amount": 128}))
        made.add("generate", "loop of torch", Answer({"wall_s": 10 * seconds, "cpu_s": 1.0, "amount": 64}))
    (case,) = chosen(["generate"], every=False)
    text = shown(case, made)
    assert "document's loop, torch / ours: 20 (wanted: at least 10)" in text
    assert "four taps / no taps: not measured (wanted: at most 1.05)" in text
    made.add("load", "folder, 1, replicated", Answer({"over_share": 1.1, "wall_s": 1.0}))
    made.add("load", "bucket, 4, fsdp", Answer({"over_share": 1.2, "wall_s": 1.0}))
    assert Figure("worst", "", "over_share").value("load", made) == 1.2


def test_every_variant_has_an_environment_a_title_and_lines() -> None:
    for case in CASES:
        assert set(case.peers.values()) <= set(PEERS)
        assert set(case.peers) <= {*case.variants, "inputs"}
    assert len({case.name for case in CASES}) == len(CASES)
    assert set(WAYS) - {"ours", "nnsight"} <= set(TITLES)
    assert lines_of(WAY_FILES / "ours.py") == 1
    assert all(10 <= lines_of(WAY_FILES / f"{way}.py") <= 40 for way in WAYS if way != "ours")
    assert len(LOADS) == 12


def test_cases_are_chosen_by_their_beginnings() -> None:
    assert {case.name for case in chosen([], every=False)} == {case.name for case in CASES if case.on_page}
    assert {case.name for case in chosen(["storage", "read"], every=False)} == {
        *("read", "storage-write", "storage-cold", "storage-bucket", "storage-compact", "storage-memory")
    }
    with pytest.raises(JobError, match=r"CASE=raed: not a case; use one of extract-one-tap-all, "):
        chosen(["raed"], every=False)


def test_an_unknown_environment_is_refused() -> None:
    with pytest.raises(JobError, match=r"nnsigt: not one of trainers, "):
        make("nnsigt")


def test_a_way_that_hangs_or_ends_is_an_answer_with_its_reason(tmp_path: Path) -> None:
    def run(text: str, limit_s: float) -> Answer:
        return answer_of([sys.executable, "-c", text], {}, limit_s, tmp_path / "log")

    assert run("import time; time.sleep(60)", 0.1) == Answer(failed="no answer in 0 s")
    assert run("{}['layer']", 10) == Answer(failed="KeyError: 'layer'")
    assert run("raise SystemExit(3)", 10) == Answer(failed="exit status 3")
    assert run('print(\'{"metrics": {"wall_s": 1.5}}\')', 10) == Answer({"wall_s": 1.5})


def test_an_interrupted_benchmark_goes_on_and_a_finished_one_starts_over(tmp_path: Path) -> None:
    made = Results()
    made.begin(["extract-one-tap-all", "read"], 3, {"prompts": "8"})
    made.add("extract-one-tap-all", "ours", answer(1.0, TOKENS))
    made.add("read", "ours", answer(1.0, TOKENS))
    write_results(tmp_path / "kept.json", made)

    def kept(cases: list[str], rounds: int, settings: dict[str, str], finished: bool = False) -> set[str]:
        results = read_results(tmp_path / "kept.json")
        results.unfinished = [] if finished else results.unfinished
        results.begin(cases, rounds, settings)
        return {record.case for record in results.records}

    both = ["extract-one-tap-all", "read"]
    assert kept(both, 3, {"prompts": "8"}) == set(both)
    assert kept(both, 3, {"prompts": "8"}, finished=True) == set()
    assert kept(["read"], 3, {"prompts": "8"}, finished=True) == {"extract-one-tap-all"}
    assert kept(both, 3, {"prompts": "9"}) == set()
    assert read_results(tmp_path / "none.json") == Results()
    one = read_results(tmp_path / "kept.json")
    one.begin(both, 1, {}, only="hugging")  # measures other variants again
    assert len(one.records) == len(made.records)


@pytest.mark.pod
def test_a_worker_of_ours_answers_for_each_workload(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", layers=3)
    prompts = [[number % 256 for number in range(length)] for length in (40, 60, 500)]
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "prompts.json").write_text(json.dumps(prompts))
    (inputs / "tasks.jsonl").write_text("".join(json.dumps({"input_ids": prompt}) + "\n" for prompt in prompts))
    for layers, positions, shape in (([0, 2], "all", (2, 600, 64)), ([1], "last", (1, 3, 64))):
        np.save(inputs / "reference.npy", np.ones(shape, np.float32))
        options = json.dumps({"model": str(model), "layers": layers, "positions": positions})
        argv = [sys.executable, "-m", "tools.bench.worker", "extraction", "ours", options, str(tmp_path)]
        first = answer_of(argv, quiet_environment(), 300, tmp_path / "log")
        assert first.failed == "", (tmp_path / "log").read_text()
        assert first.metrics["apart"] > 0
        stored = [np.concatenate([*ours.stored(tmp_path / "scratch" / "out", layer)]) for layer in layers]
        np.save(inputs / "reference.npy", np.stack(stored).astype(np.float32))
        answer = answer_of(argv, quiet_environment(), 300, tmp_path / "log")
        assert answer.metrics["apart"] == 0.0
        assert answer.metrics["amount"] == 600
        assert answer.metrics["wall_s"] > 0
        assert answer.metrics["cpu_s"] > 0
        assert answer.metrics["lines"] == 1
        assert answer.metrics["filled"] == 600 / 2560
        # Taps of 64 bfloat16 values, beside tables and records.
        vectors = shape[0] * shape[1] * shape[2] * 2
        assert vectors < answer.metrics["bytes"] < vectors + 50_000
        assert answer.versions["jax"]
