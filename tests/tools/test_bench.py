"""The benchmarks: what a worker answers, how figures become a table, and that the page says where ours is behind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pod_job.errors import JobError
from tools.bench.__main__ import begin
from tools.bench.page import READER_TITLES, TITLES, lines_of, page
from tools.bench.rounds import WAYS, ask
from tools.peers import PEERS, make, quiet_environment
from tools.tiny_model import write_tiny_model


def answers(cpu_s: float, tokens: int, rounds: int = 3) -> list[dict[str, Any]]:
    sizes = {"bytes": 2e6, "peak_bytes": 1 << 29}
    return [{"wall_s": 2 * cpu_s, "cpu_s": cpu_s, "tokens": tokens, "apart": 0.002} | sizes] * rounds


def results(faster: float) -> dict[str, Any]:
    """Made-up answers; Hugging Face needs `faster` CPU seconds to our 1."""
    ways: dict[str, Any] = {name: answers(4.0, 1000) for name in WAYS}
    ways |= {"ours": answers(1.0, 1000), "hugging_face": answers(faster, 1000), "document": answers(5.0, 50)}
    readers = {name: [{"batches": 10, "wall_s": 1.0, "cpu_s": 0.5, "bytes": 1e6}] for name in ("ours", "memory_map")}
    return {
        "settings": {"prompts": 8, "rounds": 3},
        "prompts": {"count": 8, "tokens": 1000},
        "one tap, all": ways,
        "one tap, last": ways | {"sae_lens": [{"failed": "no answer in 300 s"}], "document": answers(1.5, 1000)},
        "reading": {"rows": 40_960, "width": 576, "batch": 4096, "answers": readers},
        "versions": {"torch": "2"},
    }


def rows_of(text: str, way: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")][1:] for line in text.splitlines() if f"| {way} |" in line
    ]


def test_speeds_and_ratios() -> None:
    text = page(results(faster=2.0))
    # 1000 tokens in 2 s of wall and 1 s of CPU time; a twentieth of the document's tokens in 5 CPU seconds.
    assert rows_of(text, TITLES["ours"])[0] == ["500", "1,000", "1.00", "512", "2.00", "0.20%", "1"]
    assert rows_of(text, TITLES["hugging_face"])[0][:3] == ["250", "500", "2.00"]
    assert rows_of(text, TITLES["document"])[0][:5] == ["5", "10", "100.00", "512", "40.00"]
    assert rows_of(text, TITLES["document"])[1][:3] == ["333", "667", "1.50"]
    assert rows_of(text, TITLES["sae_lens"])[1][:6] == ["-"] * 6
    assert f"No figures: {TITLES['sae_lens']} (one tap, last): no answer in 300 s." in text
    assert "No way takes less CPU time for a token than ours" in text


def test_the_page_says_where_ours_is_behind() -> None:
    text = page(results(faster=0.8))
    assert f"Ours is behind {TITLES['hugging_face']} (one tap, all: 1.25 times as fast)" in text


def test_every_way_has_a_title_an_environment_and_lines() -> None:
    assert set(WAYS) <= set(TITLES)
    assert {peer for peer in WAYS.values() if peer} <= set(PEERS)
    assert lines_of("ours") == 1
    assert all(10 <= lines_of(name) <= 40 for name in WAYS if name != "ours")
    assert READER_TITLES["sae_lens"] != TITLES["sae_lens"]


def test_an_unknown_environment_is_refused() -> None:
    with pytest.raises(JobError, match=r"nnsigt: not one of trainers, "):
        make("nnsigt")


def program(text: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_a_way_that_hangs_or_ends_is_an_answer_with_its_reason(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Traceback\nKeyError: 'layer'\n")
    with program("import time; time.sleep(60)") as hanging:
        assert ask(hanging, {}, 0.1, log) == {"failed": "no answer in 0 s"}
        assert hanging.wait(10) != 0
    with program("") as ending:
        ending.wait(10)
        assert ask(ending, {}, 10, log) == {"failed": "KeyError: 'layer'"}


def test_an_interrupted_benchmark_goes_on_and_a_finished_one_starts_over() -> None:
    settings = {"prompts": 8, "rounds": 3}
    kept = {"settings": settings, "one tap, all": {"ours": answers(1.0, 1000)}, "reading": {"rows": 1}}
    assert begin(kept, settings, ["one tap, all", "reading"]) == kept
    assert begin({**kept, "finished": True}, settings, ["one tap, all", "reading"]) == {"settings": settings}
    only = begin({**kept, "finished": True}, settings, ["reading"])
    assert only == {name: found for name, found in kept.items() if name != "reading"}
    assert begin(kept, {"prompts": 9, "rounds": 3}, ["reading"]) == {"settings": {"prompts": 9, "rounds": 3}}


@pytest.mark.pod
def test_a_worker_of_ours_answers_for_each_workload(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", layers=3)
    prompts = [[number % 256 for number in range(length)] for length in (40, 60, 500)]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    jobs = [
        {"layers": [0, 2], "positions": "all", "reference": str(tmp_path / "all.npy")},
        {"layers": [1], "positions": "last", "reference": str(tmp_path / "last.npy")},
    ] * 2
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench.worker", "ours", model, tmp_path / "prompts.json", tmp_path / "scratch"],
        env=quiet_environment(),
        input="".join(json.dumps(job) + "\n" for job in jobs),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["tokens"] for answer in found] == [600] * 4
    assert [np.load(tmp_path / name).shape for name in ("all.npy", "last.npy")] == [(2, 600, 64), (1, 3, 64)]
    assert all(answer["apart"] == 0.0 for answer in found)
    # Two taps of 64 bfloat16 values, beside tables and records.
    assert 600 * 2 * 64 * 2 < found[0]["bytes"] < 600 * 2 * 64 * 2 + 50_000
    assert all(answer["wall_s"] > 0 and answer["cpu_s"] > 0 for answer in found)
    assert not (tmp_path / "scratch").exists()
