"""Extraction through to files on this machine's CPU, ours beside Hugging Face torch with forward hooks.

Both run the same random model of Qwen2.5-0.5B's shape on the same prompts in one process on all cores, four taps, all
positions, in turn; each turn ends when its files are on disk. Ours is timed a second way, forward passes alone, to
show what copying and writing cost, and in each round both libraries multiply bare matrices of the model's sizes: the
most that either can do here. CPU seconds stand beside wall seconds. Prints one JSON object.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pod_job.config import JobConfig, load
from pod_job.distributed import Host
from pod_job.extraction.forward import compile_step, place
from pod_job.extraction.packing import Queued, pack_steps
from pod_job.extraction.pipeline import Writers, extract, packed_feeder
from pod_job.inputs import Inputs, read_inputs
from pod_job.mesh import feeding, make_mesh, placement, row_sharding, weight_shardings
from pod_job.models.arch import Arch
from pod_job.models.decoder import Decoder
from pod_job.models.weight_table import weight_table
from pod_job.models.weights import load_params
from pod_job.preflight.model_cost import layer_flops
from pod_job.prompts.tokens import load_tokenizer, tokenize
from pod_job.reporter import Reporter
from pod_job.stopping import StopWish
from pod_job.storage import open_folder
from tools.tiny_model import write_tiny_model

LAYERS = [6, 12, 18, 23]
SEQ_LEN = 1280  # of these prompts, 241 to 359 tokens long, a row of 512 would hold one
ROWS = 2  # in one of our steps
TORCH_PROMPTS = 4  # in one of torch's batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/models/random-qwen2.5-0.5b"), help="made if missing")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prompts", type=int, default=44)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not options.model.is_dir():
        write_tiny_model(options.model, layers=24, hidden=896, heads=14, kv_heads=2, mlp=4864, vocab=151936, tied=True)
    with tempfile.TemporaryDirectory() as scratch:
        print(
            json.dumps(compare(options.model, options.dtype, options.prompts, options.rounds, Path(scratch)), indent=2)
        )


def compare(model: Path, dtype: str, prompts: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """The ways and the bare products, round by round in turn, and the ratios of their medians."""
    config = load(
        [
            f"model.path='{model}'",
            f"model.dtype={dtype}",
            "tasks=arc_sample",
            f"tasks.limit={prompts}",
            "extract=all_tokens",
            f"extract.layers={LAYERS}",
            f"extract.dtype={dtype}",
            f"extract.seq_len={SEQ_LEN}",
            f"extract.rows_per_device={ROWS}",
            "extract.save_every_n_samples=8",
            f"storage.run_dir='{scratch}/ours'",
        ]
    )
    inputs = read_inputs(config)
    tokenizer = load_tokenizer(inputs.model_dir)
    tokenized = tokenize(tokenizer, inputs.tasks.samples, SEQ_LEN, config.extract.too_long)
    encoded = [prompt.token_ids for prompt in tokenized]
    queued = (Queued(1, index, prompt) for index, prompt in enumerate(tokenized))
    steps = list(pack_steps(queued, ROWS, SEQ_LEN, config.extract.prompts_per_row))
    ways = {
        "ours": ours(config, inputs, tokenizer, scratch, write=True),
        "ours, forward only": ours(config, inputs, tokenizer, scratch, write=False),
        "hugging face": hugging_face(model, dtype, encoded, scratch),
        "jax, bare products": jax_products(inputs.arch, dtype),
        "torch, bare products": torch_products(inputs.arch, dtype),
    }
    timed: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            wall, cpu = time.monotonic(), time.process_time()
            run()
            timed[name].append((time.monotonic() - wall, time.process_time() - cpu))
    return summary(inputs.arch, encoded, len(steps), timed) | {
        "dtype": dtype,
        "layers": LAYERS,
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "torch": torch_version(),
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def summary(
    arch: Arch, encoded: list[np.ndarray], steps: int, timed: dict[str, list[tuple[float, float]]]
) -> dict[str, Any]:
    """What the times say; GFLOP/s count the weights' products of real tokens, nothing of padding or attention."""
    wall, cpu = ({name: [each[kind] for each in found] for name, found in timed.items()} for kind in (0, 1))
    tokens = sum(map(len, encoded))
    token_flop = (LAYERS[-1] + 1) * layer_flops(arch)
    computed = {name: ROWS * SEQ_LEN if "bare" in name else tokens for name in timed}
    flop = {name: count * (layer_flops(arch) if "bare" in name else token_flop) for name, count in computed.items()}
    gflops = {name: flop[name] / statistics.median(wall[name]) / 1e9 for name in timed}
    starts = range(0, len(encoded), TORCH_PROMPTS)
    batches = [list(map(len, encoded[start : start + TORCH_PROMPTS])) for start in starts]

    def ratio(measured: dict[str, list[float]], other: str) -> float:
        return statistics.median(measured[other]) / statistics.median(measured["ours"])

    return {
        "tokens_per_s": {name: [tokens / s for s in wall[name]] for name in timed if "bare" not in name},
        "cpu_s": cpu,
        "gflops": gflops,
        "most tokens_per_s that products allow": {
            name.split(",")[0]: found * 1e9 / token_flop for name, found in gflops.items() if "bare" in name
        },
        "ours / hugging face": ratio(wall, "hugging face"),
        "ours / hugging face, by CPU seconds": ratio(cpu, "hugging face"),
        "writing costs": 1 / ratio(wall, "ours, forward only") - 1,
        "writing costs, CPU seconds": 1 / ratio(cpu, "ours, forward only") - 1,
        "filled": {
            "ours": tokens / (steps * ROWS * SEQ_LEN),
            "hugging face": tokens / sum(len(lengths) * max(lengths) for lengths in batches),
        },
        "steps": steps,
        "tokens": tokens,
    }


def ours(config: JobConfig, inputs: Inputs, tokenizer: Any, scratch: Path, *, write: bool) -> Callable[[], None]:
    """A function that extracts all batches into a fresh folder, or only computes them; loaded and compiled before."""
    mesh = make_mesh(config.mesh)
    rows = row_sharding(mesh, config.sharding)
    shardings = weight_shardings(mesh, config.sharding, inputs.table)
    dtype = jnp.dtype(config.model.dtype.value)
    params = load_params(inputs.checkpoint, inputs.table, dtype, shardings)
    model = Decoder(inputs.arch, inputs.taps, dtype, placement(mesh, config.sharding, shardings))
    step = compile_step(model, params, mesh, rows, ROWS, config.extract)
    part = feeding(rows, ROWS, 0)
    batches = range(1, inputs.total_batches + 1)

    def run() -> None:
        folder = open_folder(tempfile.mkdtemp(dir=scratch))
        with Reporter(folder, Host(0, 1, "bench", None)) as reporter:
            feeder = packed_feeder(batches, inputs, tokenizer, config.extract, ROWS, write, reporter, StopWish())
            if write:
                with Writers(config.storage.writers, folder, 0, reporter.committed) as writers:
                    extract(step, params, feeder, rows, part, writers, reporter)
                return
            while feeder.has(0):
                jax.block_until_ready(step(params, *place(feeder.take(), False, rows, part)))

    return run


def hugging_face(model: Path, dtype: str, encoded: list[np.ndarray], scratch: Path) -> Callable[[], None]:
    """A function that runs right-padded batches with hooks, stops after the last of them and saves each batch."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def run() -> None:
        for start in range(0, len(encoded), TORCH_PROMPTS):
            chosen = encoded[start : start + TORCH_PROMPTS]
            mask = torch.zeros(len(chosen), max(map(len, chosen)), dtype=torch.long)
            ids = torch.zeros_like(mask)
            for row, prompt in enumerate(chosen):
                mask[row, : len(prompt)] = 1
                ids[row, : len(prompt)] = torch.from_numpy(prompt.astype(np.int64))
            with torch.no_grad(), hooks(network.model.layers) as caught, contextlib.suppress(Enough):
                network.model(input_ids=ids, attention_mask=mask, use_cache=False)
            kept = {layer: hidden[mask.bool()] for layer, hidden in caught.items()}
            torch.save(kept, scratch / f"hugging_face_{start}.pt")

    return run


def product_sizes(arch: Arch) -> list[tuple[int, int]]:
    """(inputs, outputs) of a layer's matrices."""
    weights = (weight for weight in weight_table(arch).values() if weight.stacked and weight.linear)
    return [(inputs, outputs) for outputs, inputs in (weight.checkpoint_shape for weight in weights)]


def jax_products(arch: Arch, dtype: str) -> Callable[[], None]:
    """A function that multiplies a step's positions by each of a layer's matrices."""
    sizes = product_sizes(arch)
    x = {inputs: jnp.ones((ROWS * SEQ_LEN, inputs), dtype) for inputs, _ in sizes}
    weights = [jnp.ones(size, dtype) for size in sizes]

    @jax.jit
    def multiply(x: dict[int, jax.Array], weights: list[jax.Array]) -> list[jax.Array]:
        return [x[len(weight)] @ weight for weight in weights]

    jax.block_until_ready(multiply(x, weights))
    return lambda: jax.block_until_ready(multiply(x, weights)) and None


def torch_products(arch: Arch, dtype: str) -> Callable[[], None]:
    """The same in torch, as its Linear does it."""
    import torch

    sizes, kind = product_sizes(arch), getattr(torch, dtype)
    x = {inputs: torch.ones(ROWS * SEQ_LEN, inputs, dtype=kind) for inputs, _ in sizes}
    weights = [torch.ones(outputs, inputs, dtype=kind) for inputs, outputs in sizes]

    def multiply() -> None:
        for weight in weights:
            torch.nn.functional.linear(x[weight.shape[1]], weight)

    multiply()
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


def torch_version() -> str:
    import torch

    return torch.__version__


if __name__ == "__main__":
    main()
