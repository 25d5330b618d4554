"""Commands of the launcher start without torch, which they do not need and which takes seconds to import."""

import subprocess
import sys
from pathlib import Path

from tools.tiny_model import write_tiny_model

PROGRAM = """
import sys
from launch.__main__ import main
status = main()
print("ended with", status, "torch" in sys.modules)
from pod_job.checking.reference import torch_installed
print("installed", torch_installed())
"""


def test_plan_reads_a_model_without_importing_torch(torch_there: None, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", layers=2)
    (tmp_path / "texts.jsonl").write_text('{"text": "1 2 3"}\n')
    words = ["plan", f"model.path={model}", f"tasks.path={tmp_path}/texts.jsonl", "extract.layers=[0]"]
    words += ["extract.seq_len=32", f"storage.run_dir={tmp_path}/run"]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-2:] == ["ended with 0 False", "installed True"], done.stderr
