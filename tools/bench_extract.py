"""Extraction through to files on this machine's CPU or GPU, ours beside Hugging Face torch with forward hooks.

Both run the same random model (by default of Qwen2.5-0.5B's shape) on the same prompts in one process, four taps, all
positions, in turn; each turn ends when its files are on disk. Both are timed a second way, forward passes alone, to
show what copying and writing cost, and in each round both libraries multiply bare matrices of the model's sizes: the
most that either can do here. CPU seconds stand beside wall seconds. Afterwards the vectors of the last turns are
compared. Prints one JSON object.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from pod_job.checking.reference import relative_errors
from pod_job.checkpoints.load import load_params
from pod_job.config.load import load
from pod_job.config.schema import JobConfig
from pod_job.extraction.feeding import feeding, step_rows
from pod_job.extraction.packing import Queued, pack_steps
from pod_job.extraction.pipeline import PackedFeeder, extract
from pod_job.extraction.step import Step, compile_step
from pod_job.extraction.writers import Writers
from pod_job.formats.safetensors import map_tensors
from pod_job.host.rendezvous import Host
from pod_job.host.reporter import Reporter
from pod_job.host.stop_request import StopRequest
from pod_job.models.arch import Arch
from pod_job.models.decoder import Decoder
from pod_job.models.mesh import make_mesh, placement, weight_shardings
from pod_job.models.weight_table import weight_table
from pod_job.planning.inputs import Inputs, read_inputs
from pod_job.planning.model_cost import layer_flops
from pod_job.prompts.tokens import tokenize
from pod_job.storage.open import open_folder
from tools.tiny_model import write_tiny_model

LAYERS = [6, 12, 18, 23]
SEQ_LEN = 1280  # of these prompts, 241 to 359 tokens long, a row of 512 would hold one
ROWS = 2  # in one of our steps
PEAK_BFLOAT16 = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
"""FLOP/s of dense matrix products, of the maker's data sheets."""


@dataclass(frozen=True)
class Workload:
    """What both compute, and in what portions.

    Attributes:
        rows: of `SEQ_LEN` positions, in one of our steps.
        torch_prompts: in one of torch's batches; as many or more in one of our files.
        device: where both compute, cpu or gpu.
    """

    model: Path
    dtype: str
    prompts: int
    rounds: int
    rows: int
    torch_prompts: int
    writers: int
    device: str

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device == "gpu" else self.device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/models/random-qwen2.5-0.5b"), help="made if missing")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prompts", type=int, default=44, help="past 40 tasks, augmented forms of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=ROWS, help="of a step of ours")
    parser.add_argument("--torch-prompts", type=int, default=4, help="of a batch of torch's")
    parser.add_argument("--writers", type=int, default=4, help="batches of ours that are written at a time")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    workload = Workload(**vars(parser.parse_args()))
    if workload.device == "gpu":
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs its part of the memory
    jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda,cpu"}[workload.device])
    if not workload.model.is_dir():
        write_tiny_model(workload.model, layers=24, hidden=896, heads=14, kv_heads=2, mlp=4864, vocab=151936, tied=True)
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(compare(workload, Path(scratch)), indent=2))


def compare(workload: Workload, scratch: Path) -> dict[str, Any]:
    """The ways and the bare products, round by round in turn, and the ratios of their medians."""
    config = load(
        [
            f"model.path='{workload.model}'",
            f"model.dtype={workload.dtype}",
            "tasks=arc_sample",
            f"tasks.limit={workload.prompts}",
            f"tasks.arc.predictions={-(-workload.prompts // 44)}",
            "extract=all_tokens",
            f"extract.layers={LAYERS}",
            f"extract.dtype={workload.dtype}",
            f"extract.seq_len={SEQ_LEN}",
            f"extract.rows_per_device={workload.rows}",
            f"extract.save_every_n_samples={max(8, workload.torch_prompts)}",
            f"storage.writers={workload.writers}",
            f"storage.run_dir='{scratch}/ours'",
        ]
    )
    inputs = read_inputs(config)
    tokenized = tokenize(inputs.tokenizer, inputs.tasks.samples, SEQ_LEN, config.extract.too_long)
    encoded = [prompt.token_ids for prompt in tokenized]
    queued = (Queued(1, index, prompt) for index, prompt in enumerate(tokenized))
    steps = list(pack_steps(queued, workload.rows, SEQ_LEN, config.extract.prompts_per_row))
    our_folder, their_folder = scratch / "ours", scratch / "hugging face"
    ways = {
        "ours": ours(config, inputs, our_folder, write=True),
        "ours, forward only": ours(config, inputs, our_folder, write=False),
        "hugging face": hugging_face(workload, encoded, their_folder, write=True),
        "hugging face, forward only": hugging_face(workload, encoded, their_folder, write=False),
        "jax, bare products": jax_products(workload, inputs.arch),
        "torch, bare products": torch_products(workload, inputs.arch),
    }
    timed: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(workload.rounds + 1):
        for name, run in ways.items():
            if name in (our_folder.name, their_folder.name):
                shutil.rmtree(scratch / name, ignore_errors=True)
            wall, cpu = time.monotonic(), time.process_time()
            run()
            if turn > 0:  # the first warms up what is compiled or tuned when it first runs
                timed[name].append((time.monotonic() - wall, time.process_time() - cpu))
    return summary(workload, inputs.arch, encoded, len(steps), timed) | {
        "apart": apart(our_folder, their_folder),
        "workload": {name: str(value) for name, value in vars(workload).items()},
        "layers": LAYERS,
        "device": jax.devices()[0].device_kind,
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def summary(
    workload: Workload, arch: Arch, encoded: list[np.ndarray], steps: int, timed: dict[str, list[tuple[float, float]]]
) -> dict[str, Any]:
    """What the times say; GFLOP/s count the weights' products of real tokens, nothing of padding or attention."""
    wall, cpu = ({name: [each[kind] for each in found] for name, found in timed.items()} for kind in (0, 1))
    tokens = sum(map(len, encoded))
    token_flop = (LAYERS[-1] + 1) * layer_flops(arch)
    bare = (workload.rows * SEQ_LEN) * layer_flops(arch)
    flop = {name: bare if "bare" in name else tokens * token_flop for name in timed}
    gflops = {name: flop[name] / statistics.median(wall[name]) / 1e9 for name in timed}
    peak = PEAK_BFLOAT16.get(jax.devices()[0].device_kind) if workload.dtype == "bfloat16" else None
    starts = range(0, len(encoded), workload.torch_prompts)
    batches = [list(map(len, encoded[start : start + workload.torch_prompts])) for start in starts]

    def ratio(measured: dict[str, list[float]], slower: str, faster: str) -> float:
        return statistics.median(measured[slower]) / statistics.median(measured[faster])

    return {
        "tokens_per_s": {name: [tokens / s for s in wall[name]] for name in timed if "bare" not in name},
        "cpu_s": cpu,
        "gflops": gflops,
        "mfu": None if peak is None else {name: found * 1e9 / peak for name, found in gflops.items()},
        "most tokens_per_s that products allow": {
            name.split(",")[0]: found * 1e9 / token_flop for name, found in gflops.items() if "bare" in name
        },
        "ours / hugging face": ratio(wall, "hugging face", "ours"),
        "ours / hugging face, forward only": ratio(wall, "hugging face, forward only", "ours, forward only"),
        "ours / hugging face, by CPU seconds": ratio(cpu, "hugging face", "ours"),
        "writing costs": ratio(wall, "ours", "ours, forward only") - 1,
        "writing costs, CPU seconds": ratio(cpu, "ours", "ours, forward only") - 1,
        "filled": {
            "ours": tokens / (steps * workload.rows * SEQ_LEN),
            "hugging face": tokens / sum(len(lengths) * max(lengths) for lengths in batches),
        },
        "steps": steps,
        "tokens": tokens,
    }


def ours(config: JobConfig, inputs: Inputs, scratch: Path, *, write: bool) -> Callable[[], None]:
    """A function that extracts all batches into a fresh folder, or only computes them; loaded and compiled before."""
    mesh = make_mesh(config.mesh)
    shardings = weight_shardings(mesh, config.sharding, inputs.table)
    dtype = jnp.dtype(config.model.dtype.value)
    params = load_params(inputs.checkpoint, inputs.table, dtype, shardings)
    model = Decoder(inputs.arch, inputs.taps, dtype, placement(mesh, config.sharding, shardings))
    part = replace(feeding(step_rows(config, mesh), 0), writes=write)
    step = Step(compile_step(model, params, part.rows, config.extract), params, part)
    batches = range(1, inputs.total_batches + 1)

    def run() -> None:
        scratch.mkdir(exist_ok=True)
        folder = open_folder(tempfile.mkdtemp(dir=scratch))
        with Reporter(folder, Host(0, 1, "bench", None)) as reporter:
            feeder = PackedFeeder(batches, inputs, part, reporter, StopRequest())
            if write:
                with Writers(config.storage.writers, folder, 0, reporter.committed) as writers:
                    extract(step, feeder, writers, reporter)
                return
            before: Any = None
            while feeder.has(0):
                now = step(feeder.take(), more=False)
                jax.block_until_ready(before)
                before = now
            jax.block_until_ready(before)

    return run


def hugging_face(workload: Workload, encoded: list[np.ndarray], scratch: Path, *, write: bool) -> Callable[[], None]:
    """A function that runs right-padded batches with hooks, stops after the last of them and saves each batch."""
    import torch
    from transformers import AutoModelForCausalLM

    device, dtype = torch.device(workload.torch_device), getattr(torch, workload.dtype)
    network: Any = cast(Any, AutoModelForCausalLM.from_pretrained(workload.model, dtype=dtype)).eval().to(device)

    def run() -> None:
        scratch.mkdir(exist_ok=True)
        for start in range(0, len(encoded), workload.torch_prompts):
            chosen = encoded[start : start + workload.torch_prompts]
            mask = torch.zeros(len(chosen), max(map(len, chosen)), dtype=torch.long)
            ids = torch.zeros_like(mask)
            for row, prompt in enumerate(chosen):
                mask[row, : len(prompt)] = 1
                ids[row, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64))
            ids, mask = ids.to(device), mask.to(device)
            with torch.no_grad(), hooks(network.model.layers) as caught, contextlib.suppress(Enough):
                network.model(input_ids=ids, attention_mask=mask, use_cache=False)
            if write:
                kept = {layer: hidden[mask.bool()].cpu() for layer, hidden in caught.items()}
                torch.save(kept, scratch / f"{start:06d}.pt")
        if workload.device == "gpu":
            torch.cuda.synchronize()

    return run


def apart(our_folder: Path, their_folder: Path) -> dict[str, float]:
    """Relative distances (L2) of our vectors from Hugging Face's, all taps of the prompts in its first file."""
    import torch

    run = next(folder for folder in our_folder.iterdir() if (folder / "activations").is_dir())
    errors = []
    for layer, kept in torch.load(min(their_folder.iterdir())).items():
        theirs = kept.float().numpy()
        file = min((run / "activations").glob(f"layer_{layer}_batch_*.safetensors"))
        errors.append(relative_errors(map_tensors(file)["activations"][: len(theirs)], theirs))
    return {"median": float(np.median(errors)), "largest": float(np.max(errors))}


def product_sizes(arch: Arch) -> list[tuple[int, int]]:
    """(inputs, outputs) of a layer's matrices."""
    weights = (weight for weight in weight_table(arch).values() if weight.stacked and weight.linear)
    return [(inputs, outputs) for outputs, inputs in (weight.checkpoint_shape for weight in weights)]


def jax_products(workload: Workload, arch: Arch) -> Callable[[], None]:
    """A function that multiplies a step's positions by each of a layer's matrices."""
    sizes = product_sizes(arch)
    x = {inputs: jnp.ones((workload.rows * SEQ_LEN, inputs), workload.dtype) for inputs, _ in sizes}
    weights = [jnp.ones(size, workload.dtype) for size in sizes]

    @jax.jit
    def multiply(x: dict[int, jax.Array], weights: list[jax.Array]) -> list[jax.Array]:
        return [x[len(weight)] @ weight for weight in weights]

    return lambda: jax.block_until_ready(multiply(x, weights)) and None


def torch_products(workload: Workload, arch: Arch) -> Callable[[], None]:
    """The same in torch, as its Linear does it."""
    import torch

    sizes, kind, device = product_sizes(arch), getattr(torch, workload.dtype), workload.torch_device
    x = {inputs: torch.ones(workload.rows * SEQ_LEN, inputs, dtype=kind, device=device) for inputs, _ in sizes}
    weights = [torch.ones(outputs, inputs, dtype=kind, device=device) for inputs, outputs in sizes]

    def multiply() -> None:
        for weight in weights:
            torch.nn.functional.linear(x[weight.shape[1]], weight)
        if workload.device == "gpu":
            torch.cuda.synchronize()

    return multiply


class Enough(Exception):
    """Raised by the last hook: nothing after it is wanted."""


@contextlib.contextmanager
def hooks(layers: Any) -> Iterator[dict[int, Any]]:
    caught: dict[int, Any] = {}

    def hook(layer: int) -> Callable[..., None]:
        def keep(module: Any, arguments: Any, output: Any) -> None:
            caught[layer] = output[0] if isinstance(output, tuple) else output
            if layer == LAYERS[-1]:
                raise Enough

        return keep

    handles = [layers[layer].register_forward_hook(hook(layer)) for layer in LAYERS]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    main()
