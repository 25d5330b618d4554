"""The compiled text of decode for TPU: nothing of the cache's size is copied, and depth does not lengthen it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.tiny_model import write_tiny_model

ROOT = Path(__file__).parent.parent.parent
COMPILE = """
import json, os, sys
from pathlib import Path
from pod_job import environment
os.environ.update(environment.COMPILE_ONLY)
from pod_job.config.load import load
from pod_job.models.arch import read_arch_file
from pod_job.models.taps import resolve
from pod_job.preflight.planned_job import PlannedJob
from pod_job.preflight.pod_compiler import compile_for
from pod_job.preflight.pod_devices import pod_devices
from pod_job.preflight.report import pod_slice
texts = []
for model in sys.argv[1:]:
    pod = ["pod=v5e_64", "pod.accelerator_type=v5litepod-1", "pod.hosts=1", "pod.devices_per_host=1", "mesh=1x1"]
    rows = ["mode=generate", "extract.seq_len=1024", "extract.rows_per_device=8", "extract.layers=[2,5]"]
    config = load([f"model.path={model}", "tasks=arc_sample", "storage.run_dir=r", *pod, *rows])
    arch = read_arch_file(Path(model) / "config.json")
    job = PlannedJob(config, arch, resolve([2, 5], [], arch), pod_slice(config))
    decode = compile_for(job, pod_devices(job.pod))[1].compiled
    texts.append([decode.as_text(), decode.memory_analysis().temp_size_in_bytes])
print(json.dumps(texts))
"""
LAYERS = (9, 14)
KEYS_OF_A_LAYER = 8 * 2 * 64 * (1024 + 256) * 2
"""Bytes: rows, heads, head size, slots, bfloat16."""
WITHOUT_DATA = ("parameter", "get-tuple-element", "tuple", "while", "bitcast", "dynamic-update-slice")
"""Kinds of operations that write nothing, or in place."""
PREFETCHES = ("copy-start", "copy-done")


@pytest.mark.slow
@pytest.mark.pod
def test_decode_copies_nothing_of_the_caches_size_at_any_depth(
    tmp_path: Path, require: Callable[[bool, str], None]
) -> None:
    require(importlib.util.find_spec("libtpu") is not None, "libtpu (pip install .[preflight])")
    from pod_job.preflight.compiled_text import read_program

    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 64}
    folders = [str(write_tiny_model(tmp_path / str(layers), layers=layers, **sizes)) for layers in LAYERS]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMPILE, *folders]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    operations = []
    for text, temporaries in json.loads(done.stdout):
        large = [op for op in read_program(text) if op.bytes >= KEYS_OF_A_LAYER and op.kind not in WITHOUT_DATA]
        assert not large, [(op.kind, op.name, op.shape) for op in large]
        assert temporaries < KEYS_OF_A_LAYER
        # Without prefetches of small arrays, and places in the source, which the text lists too.
        operations.append(sum(op.kind not in PREFETCHES for op in read_program(text)))
    assert operations[0] == operations[1], "compile time grows with depth"
