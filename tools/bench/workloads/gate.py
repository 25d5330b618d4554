"""The parity gate of a whole run, from its start to the verdict: imports, the reference, its step, and what is held.

Of the run's first step, which the run needs anyway, only the comparison counts.
"""

import json
import logging
import shutil
from pathlib import Path

import jax
import msgspec
import numpy as np

from pod_job.checking import reference
from pod_job.checkpoints.hf_folder import HfModel, write_hf_folder
from pod_job.checkpoints.random_model import byte_tokenizer, byte_tokenizer_config, random_weights
from pod_job.config.load import load
from pod_job.extraction.feeding import Feeding, feeding, step_rows
from pod_job.extraction.packing import Queued, StepInput, pack_steps
from pod_job.extraction.step import Step
from pod_job.host.rendezvous import this_host
from pod_job.models.mesh import make_mesh
from pod_job.planning.inputs import Inputs, claim_run, read_inputs
from pod_job.programs import compile_program, load_model, pass_gate
from tools.bench.work import Metrics, Work, measured
from tools.tiny_model import TinyModel

TASKS = 8
QWEN = TinyModel(
    layers=24, hidden=896, heads=14, kv_heads=2, mlp=4864, vocab=151936, tied=True, max_positions=32768, rope_theta=1e6
)
"""The shape of Qwen2.5-0.5B."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model: one of Qwen2.5-0.5B's shape with random weights in bfloat16 where nothing is at this path yet."""

    model: str = "runs/models/random-qwen2.5-0.5b-bfloat16"
    dtype: str = "bfloat16"


def make_inputs(options: Options, inputs: Path) -> None:
    if not Path(options.model).is_dir():
        weights = random_weights(QWEN.config(), seed=0)
        stored = {name: weight.astype(np.dtype("bfloat16")) for name, weight in weights.items()}
        config = byte_tokenizer_config(QWEN.max_positions)
        write_hf_folder(Path(options.model), HfModel(QWEN.config(), stored, byte_tokenizer(), config))
    tasks = [json.dumps({"text": f"{number} " + "some words here " * (4 + number)}) for number in range(TASKS)]
    (inputs / "tasks.jsonl").write_text("\n".join(tasks))


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    """Makes all ready that a run has when its gate begins; the variant says the reference and the length of rows."""
    way, seq_len = variant.split(", ")
    logging.disable(logging.INFO)
    shutil.rmtree(scratch / "run", ignore_errors=True)  # of the variant before
    if way == "NumPy":
        reference.torch_installed = lambda: False
    config = load(
        [
            *(f"model.path={options.model}", f"tasks.path={inputs}/tasks.jsonl", f"storage.run_dir={scratch}/run"),
            *(f"model.dtype={options.dtype}", f"extract.seq_len={seq_len}", "extract.positions=all"),
            f"extract.layers={list(range(QWEN.layers))}",
        ]
    )
    job, mesh = read_inputs(config), make_mesh(config.mesh)
    _ = job.identity  # which reads all weights
    part = feeding(step_rows(config, mesh), 0)
    model, params = load_model(job, mesh)
    program = compile_program(job, model, params, part)
    assert isinstance(program, Step)

    def gate() -> Metrics:
        hold, metrics = measured(lambda: pass_gate(job, this_host(config.pod), program, model, part))
        if hold is not None:
            item = first_step(job, part)
            output = jax.block_until_ready(program(item, more=False))
            _, held = measured(lambda: hold(item, output))
            metrics |= {name: metrics[name] + held[name] for name in ("wall_s", "cpu_s")}
            metrics["peak_bytes"] = max(metrics["peak_bytes"], held["peak_bytes"])
        return metrics

    return Work(gate, before=lambda: claim_run(job))


def first_step(job: Inputs, part: Feeding) -> StepInput:
    extract = job.config.extract
    queued = [Queued(1, number, prompt) for number, prompt in enumerate(job.first_prompts(TASKS))]
    return next(pack_steps(queued, part.feeder_rows, extract.seq_len, extract.prompts_per_row))
