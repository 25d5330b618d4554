"""Generation with a cache beside the extraction document's own loop, on this machine's CPU: prints one JSON object.

All ways generate greedily from the same prompts in one process, in turn: ours with four taps and without,
and the document's loop, a forward pass over prompt and completion for every new token, on our model and on
Hugging Face torch. Of that loop every 32nd step is timed and counts 32 times; its programs, one per length, are
compiled before, which the document leaves to the loop. Each of its steps must choose the token that ours chose.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pod_job.checkpoints.checkpoint import read_checkpoint
from pod_job.checkpoints.load import load_params
from pod_job.config.generate import GenerateConfig
from pod_job.config.schema import ExtractConfig, MeshConfig, Positions, Sharding, Stored
from pod_job.config.tasks import TasksConfig
from pod_job.extraction.feeding import StepRows, feeding
from pod_job.extraction.packing import Queued
from pod_job.extraction.transfer import put_rows
from pod_job.generation.completions import Ending
from pod_job.generation.decoding import PrefillInput, compile_generation
from pod_job.generation.generator import Generator
from pod_job.generation.waves import Wave, make_wave
from pod_job.models.arch import Arch, read_arch_file
from pod_job.models.decoder import Decoder
from pod_job.models.mesh import make_mesh, placement, row_sharding, weight_shardings
from pod_job.models.taps import Tap, resolve
from pod_job.models.weight_table import weight_table
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tasks import read_tasks
from pod_job.prompts.tokens import Prompt, load_tokenizer

NEW, LONG = 128, 256  # new tokens of the comparisons, and of the look at single calls
EVERY = 32

Seconds = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/models/SmolLM2-135M-Instruct"))
    parser.add_argument("--tasks", default="tests/data/arc/arc_sample.json")
    parser.add_argument("--rows", type=int, default=4, help="prompts at a time")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(measure(options.model, options.tasks, options.rows, options.prompt, options.rounds), indent=2))


def measure(folder: Path, tasks: str, rows: int, prompt: int, rounds: int) -> dict[str, Any]:
    bench = Bench(folder, first_tokens(folder, tasks, rows, prompt))
    layers = bench.arch.layers
    four = resolve([layers * n // 4 - 1 for n in range(1, 5)], [], layers)
    ways = {
        "four taps": bench.ours(four),
        "no taps": bench.ours(()),
    }
    chosen = bench.tokens
    ways["document's loop, our model"] = repeated(bench.steps_of_ours(four), bench.prompts, chosen)
    ways["document's loop, torch"] = repeated(steps_of_torch(folder, four), bench.prompts, chosen)
    wall, cpu = time_in_turn(ways, rounds)
    calls = bench.calls(four, rounds)
    return {
        "token 256 / token 16": calls[LONG] / calls[16],
        "document's loop, our model / ours": times(wall, "document's loop, our model", "four taps"),
        "document's loop, torch / ours": times(wall, "document's loop, torch", "four taps"),
        "four taps / no taps": times(wall, "four taps", "no taps"),
        "four taps / no taps, cpu": times(cpu, "four taps", "no taps"),
        "seconds": wall,
        "cpu_seconds": cpu,
        "seconds_per_token_of_a_row": calls,
        "rows": rows,
        "prompt_tokens": prompt,
        "new_tokens": NEW,
        "model": folder.name,
        "python": sys.version.split()[0],
        "jax": jax.__version__,
        "cpus": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }


def times(seconds: Seconds, name: str, other: str) -> float:
    """The median over rounds: a round's runs follow each other, so what else the machine does weighs on both."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True))


def first_tokens(folder: Path, tasks: str, rows: int, prompt: int) -> np.ndarray:
    """[rows, prompt]: the document's loop knows no padding, so all prompts are cut to one length."""
    tokenizer = load_tokenizer(folder)
    texts = (sample.prompt for sample in read_tasks(TasksConfig(path=tasks)).samples)
    encoded = (tokenizer(text)["input_ids"] for text in texts)
    chosen = [ids[:prompt] for ids in encoded if len(ids) >= prompt][:rows]
    return np.array(chosen, np.int32)


class Bench:
    """A model in float32 on one device, and its prompts."""

    def __init__(self, folder: Path, prompts: np.ndarray) -> None:
        self.arch: Arch = read_arch_file(folder / "config.json")
        self.prompts = prompts
        self.mesh = make_mesh(MeshConfig())
        self.feeding = feeding(StepRows(len(prompts), row_sharding(self.mesh, Sharding.replicated)), 0)
        table = weight_table(self.arch)
        shardings = weight_shardings(self.mesh, Sharding.replicated, table)
        self.placement = placement(self.mesh, Sharding.replicated, shardings)
        self.params = load_params(read_checkpoint(folder), table, jnp.float32, shardings)
        self.tokens = np.zeros((len(prompts), 0), np.int32)

    def model(self, taps: tuple[Tap, ...]) -> Decoder:
        return Decoder(self.arch, taps, jnp.float32, self.placement)

    def compiled(self, taps: tuple[Tap, ...], new: int) -> tuple[Generator, Wave]:
        S, dtype = self.prompts.shape[1], Stored.float32
        ending = Ending(GenerateConfig(max_new_tokens=new), (), None)
        extract = ExtractConfig(seq_len=S, dtype=dtype, positions=Positions.generated)
        programs = compile_generation(self.model(taps), self.params, self.feeding.rows, extract, ending)
        queued = [Queued(1, i, Prompt(Sample(str(i), 0, ids), ids, False)) for i, ids in enumerate(self.prompts)]
        generator = Generator(programs, self.params, self.feeding, ending, extract.positions)
        return generator, make_wave(queued, len(queued), S, len(queued), {})

    def ours(self, taps: tuple[Tap, ...]) -> Callable[[], float]:
        """A function that generates as the job does, vectors on the host; it gives its seconds."""
        generator, wave = self.compiled(taps, NEW)

        def run() -> float:
            started = time.perf_counter()
            result = generator.run(wave, more=False)
            self.tokens = result.tokens[:, :NEW]
            return time.perf_counter() - started

        run()
        return run

    def steps_of_ours(self, taps: tuple[Tap, ...]) -> Callable[[np.ndarray], np.ndarray]:
        model = self.model(taps)
        apply = jax.jit(lambda params, ids: model.apply(params, ids, return_activations=True))

        def step(generated_ids: np.ndarray) -> np.ndarray:
            logits, activations = apply(self.params, generated_ids)
            for layer_activations in activations.values():
                np.asarray(layer_activations[:, -1, :])
            return np.asarray(jnp.argmax(logits[:, -1, :], axis=-1))

        return step

    def calls(self, taps: tuple[Tap, ...], rounds: int) -> dict[int, float]:
        """Seconds per token and row of the calls that end with token 16 and with token 256: medians over rounds."""
        generator, wave = self.compiled(taps, LONG)
        programs = generator.programs
        found: dict[int, list[float]] = {16: [], LONG: []}
        for _ in range(rounds):
            arrays = (wave.token_ids, wave.segment_ids, wave.positions, wave.numbers, wave.force(0, 1)[:, 0])
            flags = np.zeros(len(wave.token_ids), np.int32)
            prompts = PrefillInput(*put_rows((*arrays, flags), self.feeding))
            progress, *_ = programs.prefill(self.params, prompts)
            steering = put_rows((flags > 0, wave.force(0, programs.call_tokens)), self.feeding)
            for read in range(programs.call_tokens, LONG + 1, programs.call_tokens):
                jax.block_until_ready(progress)
                started = time.perf_counter()
                progress, *outputs = programs.decode(self.params, progress, *steering)
                jax.block_until_ready(outputs)
                if read in found:
                    found[read].append((time.perf_counter() - started) / programs.call_tokens / len(wave.token_ids))
        return {token: statistics.median(times) for token, times in found.items()}


def steps_of_torch(folder: Path, taps: Sequence[Tap]) -> Callable[[np.ndarray], np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def step(generated_ids: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(generated_ids.astype(np.int64))
        output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
        for tap in taps:
            output.hidden_states[tap.layer + 1][:, -1, :].numpy()
        return output.logits[:, -1, :].argmax(dim=-1).numpy()

    return step


def repeated(step: Callable[[np.ndarray], np.ndarray], prompts: np.ndarray, chosen: np.ndarray) -> Callable[[], float]:
    """The document's loop over `step`, which knows no cache; a function that gives the seconds of all its steps."""

    def run() -> float:
        seconds = 0.0
        for made in range(EVERY // 2, chosen.shape[1], EVERY):
            generated_ids = np.concatenate([prompts, chosen[:, :made]], axis=1)
            started = time.perf_counter()
            next_token_id = step(generated_ids)
            seconds += EVERY * (time.perf_counter() - started)
            assert next_token_id.tolist() == chosen[:, made].tolist(), made
        return seconds

    run()  # compiles
    return run


def time_in_turn(ways: dict[str, Callable[[], float]], rounds: int) -> tuple[Seconds, Seconds]:
    """Per way its seconds in each round, and the CPU seconds really spent (the document's loop is timed in part)."""
    wall: Seconds = {name: [] for name in ways}
    cpu: Seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            started = time.process_time()
            wall[name].append(run())
            cpu[name].append(time.process_time() - started)
    return wall, cpu


if __name__ == "__main__":
    main()
