"""Runs with prompts that cannot be used: left out and counted by reason, whole batches of them too, in either mode."""

import json
from pathlib import Path

import pytest
from job_processes import finish, overrides, start

from pod_job.checking.verify import verify
from pod_job.reading.dataset import ActivationDataset
from pod_job.run_folder.commit import PromptCounts, read_record
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

TEXTS = ["one", "x" * 65, "y" * 65, "z" * 65, "two", "half \ud83d", "", "x" * 65, "y" * 65]
"""In batches of two without those that are broken: one usable, none, one, none."""


@pytest.mark.pod
@pytest.mark.parametrize(("mode", "hosts"), [("prefill", 2), ("generate", 1)])
def test_prompts_that_cannot_be_used_are_left_out_and_counted(tmp_path: Path, mode: str, hosts: int) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    changes = {"tasks": "arc_sample", "tasks.format": "jsonl", "tasks.path": tasks, "tasks.on_broken": "skip"}
    changes |= {"extract.seq_len": 64, "extract.save_every_n_samples": 2, "extract.layers": "[1]", "mode": mode}
    changes |= {"generate.max_new_tokens": 2, "mesh.data": hosts, "parity.samples": 1}
    model = write_tiny_model(tmp_path / "model", layers=2)
    output = finish(start(overrides(model, tmp_path / "run", **changes), hosts, 1))
    assert "Traceback" not in output
    assert "task line_2, sample 0 has 65 tokens" in output
    folder = open_folder(tmp_path / "run")
    metadata = ActivationDataset(tmp_path / "run", layer=1).metadata
    assert metadata.prompts == PromptCounts(skipped={"blank": 1, "broken": 1, "too_long": 5})
    assert metadata.total_samples == 2
    records = [read_record(folder, batch) for batch in (1, 2, 3, 4)]
    assert [record.n_samples for record in records] == [1, 0, 1, 0]
    assert [bool(record.rows) for record in records] == [True, False, True, False]
    rows = ActivationDataset(tmp_path / "run", layer=1).rows(slice(None))
    assert sorted(set(rows["task_id"].tolist())) == ["line_1", "line_5"]
    assert verify(tmp_path / "run").sound
