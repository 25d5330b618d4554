"""Run folders of a stranger who thought about it: readers give the right data or one line, and touch nothing else."""

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_runs import TAPS, finished_run, rewrite

from pod_job.commands import diff, export, inspect, merge, report, shuffle, verify
from pod_job.commands.command_line import Command
from pod_job.errors import JobError
from pod_job.formats import rows_table
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder import layout
from pod_job.run_folder.status import HostStatus, Phase, write_status
from pod_job.storage.checksums import checksum
from pod_job.storage.open import open_folder

SECRET = "the reader's secret"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    finished_run(open_folder(tmp_path / "run"), [5, 7])
    return tmp_path / "run"


def outcomes(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, int]:
    """Runs every reader; returns its status, and fails where one ends with more than a line."""
    out = run.parent / "out"
    commands: dict[str, tuple[Command, list[str]]] = {
        "inspect": (inspect.COMMAND, [str(run)]),
        "row": (inspect.COMMAND, [str(run), "--row", "6"]),
        "verify": (verify.COMMAND, [str(run)]),
        "merge": (merge.COMMAND, [str(run)]),
        "export": (export.COMMAND, [str(run), str(out / "pickles")]),
        "shuffle": (shuffle.COMMAND, [str(run), str(out / "shuffled")]),
        "diff": (diff.COMMAND, [str(run), str(run)]),
    }
    statuses = {}
    for name, (command, words) in commands.items():
        capsys.readouterr()
        statuses[name] = command.main(words)
        printed = capsys.readouterr()
        assert SECRET not in printed.out + printed.err
        if statuses[name] == 2:
            assert printed.err.startswith("error: ")
            assert printed.err.count("\n") == 1
    for path in out.rglob("*") if out.exists() else ():
        assert path.is_dir() or SECRET.encode() not in path.read_bytes()
    return statuses


def records(run: Path) -> list[Path]:
    return sorted((run / "commits").iterdir())


SPELLINGS = {
    "full width": "activations/\uff0e\uff0e/\uff0e\uff0e/secret",  # NFKC makes ../../secret of it
    "one dot leaders": "activations/\u2024\u2024/\u2024\u2024/secret",
    "two dot leader": "\u2025/secret",
    "full width slash": "..\uff0fsecret",
    "backslash": "..\\secret",
    "right to left": "activations/\u202e/../../secret",
    "combining": "activations/laye\u0301r_6_batch_000001.safetensors",
    "no break": "\u00a0../secret",
    "zero width": ".\u200b./secret",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_names_that_become_others_by_normalization(
    run: Path, spelling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = SPELLINGS[spelling]
    for secret in {run.parent / "secret", Path(unicodedata.normalize("NFKC", str(run / name)))}:
        if secret.resolve().is_relative_to(run.parent):
            secret.parent.mkdir(parents=True, exist_ok=True)
            secret.write_text(SECRET)
    for path in (run / layout.METADATA, records(run)[0]):
        list_of = "batches" if path.name == "metadata.json" else "files"
        rewrite(path, lambda content, key=list_of: content[key][0].update(file=name))
    statuses = outcomes(run, capsys)
    assert (statuses["verify"], statuses["export"], statuses["shuffle"]) == (1, 2, 2)
    with pytest.raises(JobError):
        ActivationDataset(run, TAPS[0])[:]


def test_layers_under_each_others_names_are_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files, records and metadata.json agree that one layer is the other: only the files' headers tell."""
    for number in (1, 2):
        one, other = (run / layout.activations_file(tap, number) for tap in TAPS)
        content = one.read_bytes(), other.read_bytes()
        one.write_bytes(content[1])
        other.write_bytes(content[0])

        def exchange(record: dict[str, Any]) -> None:
            a, b = record["files"]
            record["files"] = [
                b | {key: a[key] for key in ("tap", "file")},
                a | {key: b[key] for key in ("tap", "file")},
            ]

        rewrite(run / layout.commit_file(number), exchange)
    (run / layout.METADATA).unlink()
    assert merge.main([str(run)]) == 0
    capsys.readouterr()
    assert verify.main([str(run)]) == 1
    shown = capsys.readouterr()
    assert f"is by its header of {TAPS[1]}, batch 1, its record says {TAPS[0]}, batch 1" in shown.out + shown.err


def test_hard_links_to_files_of_the_reader_are_not_written_through(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = {}
    for name in (layout.METADATA, layout.VERIFIED, "report/index.html", "status/host_00.json"):
        secret = run.parent / f"outside_{len(outside)}"
        secret.write_bytes((run / name).read_bytes() if (run / name).exists() else b"{}")
        outside[secret] = secret.read_bytes()
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).unlink(missing_ok=True)
        os.link(secret, run / name)
    assert merge.main([str(run)]) == 0
    assert verify.main([str(run)]) == 0
    write_status(open_folder(run), HostStatus(host=0, attempt="x", phase=Phase.done))
    capsys.readouterr()
    assert {path: path.read_bytes() for path in outside} == outside


@pytest.mark.parametrize("rows", [4, 6, 0, 50_000_000])
def test_rows_tables_of_other_lengths_than_the_vectors(
    run: Path, rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table, its record and metadata.json agree; the vectors are of another number of rows."""
    name = run / layout.rows_file(1)
    if rows < 100:
        table = rows_table.from_parquet(name.read_bytes())
        columns = {key: np.resize(getattr(table, key), rows) for key in rows_table.COLUMNS}
        name.write_bytes(rows_table.to_parquet(rows_table.from_columns(columns, table.timestamp)))
    stored = checksum([name.read_bytes()])
    described = {"rows": rows, "size": stored.size, "crc32c": stored.crc32c}
    rewrite(run / layout.commit_file(1), lambda record: record["rows_file"].update(described))
    rewrite(run / layout.METADATA, lambda content: content["rows_files"][0].update(described))
    statuses = outcomes(run, capsys)
    assert statuses["verify"] == 1
    assert {statuses[name] for name in ("row", "export", "shuffle", "merge")} == {2}


MARKS = '"><script>alert(1)</script><img src=x onerror=alert(2)>\x1b]52;c;eA==\x07\u202e${oc.env:HOME}'


@pytest.mark.pod
def test_markup_in_every_text_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts that no reader has a rule for are shown as they are, and neither a page nor a terminal acts on them."""

    def marked(content: Any, at: str = "") -> Any:
        if isinstance(content, dict):
            return {key: marked(value, key) for key, value in content.items()}
        if isinstance(content, list):
            return [marked(value, at) for value in content]
        return (
            MARKS
            if isinstance(content, str) and at in ("name", "fingerprint", "tokenizer", "pod_job_version")
            else content
        )

    claimed = marked(json.loads((run / layout.RUN).read_text()))
    (run / layout.RUN).write_text(json.dumps(claimed))
    table = rows_table.from_parquet((run / layout.rows_file(1)).read_bytes())
    columns = {key: getattr(table, key) for key in rows_table.COLUMNS} | {"task_id": [MARKS] * len(table)}
    (run / layout.rows_file(1)).write_bytes(rows_table.to_parquet(rows_table.from_columns(columns, MARKS)))
    stored = checksum([(run / layout.rows_file(1)).read_bytes()])
    described = {"size": stored.size, "crc32c": stored.crc32c}
    rewrite(run / layout.commit_file(1), lambda record: record["rows_file"].update(described))
    write_status(open_folder(run), HostStatus(host=0, attempt="x", phase=Phase.done, error=MARKS))
    (run / layout.METADATA).unlink()
    shown = ""
    commands: list[tuple[Callable[..., int], list[str]]] = [
        (merge.main, []),
        (verify.main, []),
        (inspect.main, []),
        (inspect.main, ["--row", "1"]),
        (report.main, ["--out", str(run.parent / "page.html")]),
    ]
    for command, words in commands:
        assert command([str(run), *words]) in (0, 1)
        printed = capsys.readouterr()
        shown += printed.out + printed.err
    assert "<script>alert(1)" in shown
    assert not any(mark in shown for mark in ("\x1b]52", "\x07", "\u202e"))
    page = (run.parent / "page.html").read_text()
    assert "alert(1)" in page
    assert not any(mark in page for mark in ("<script>alert", "<img src=x", "\x1b", "\u202e"))
    assert os.environ["HOME"] not in page
