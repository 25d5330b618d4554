"""Greedy generation with a cache, as the job does it, beside the extraction document's own loop.

That loop runs a forward pass over prompt and completion for every new token. Every 32nd step of it is timed; its
programs, one for each length, are compiled before, which the document leaves to the loop. Each of its steps must choose
the token that ours chose.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from pod_job.config.generate import GenerateConfig
from pod_job.config.load import load
from pod_job.config.schema import ExtractConfig, Positions, StoredDtype
from pod_job.config.tasks import TasksConfig
from pod_job.extraction.feeding import StepRows, feeding
from pod_job.extraction.packing import Queued
from pod_job.generation.admission import Waiting
from pod_job.generation.completions import Ending
from pod_job.generation.decoding import compile_generation
from pod_job.generation.generator import Generator, Progress, Result
from pod_job.generation.shape import shape_for
from pod_job.models.arch import Arch, read_arch_file
from pod_job.models.mesh import make_mesh, row_sharding
from pod_job.models.taps import Tap, resolve
from pod_job.planning.inputs import read_inputs
from pod_job.programs import load_model
from pod_job.prompts.prompt import Prompt
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tasks import read_tasks
from pod_job.prompts.tokenizer import load_tokenizer
from tools.bench.work import Metrics, Work

LONG, EARLY = 256, 16  # tokens whose single calls are timed
EVERY = 32

Step = Callable[[np.ndarray], np.ndarray]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prompts of one length (the document's loop has no padding), generated together, and new tokens of each."""

    model: str = "runs/models/SmolLM2-135M-Instruct"
    tasks: str = "tests/data/arc/arc_sample.json"
    rows: int = 4
    prompt: int = 64
    new: int = 128


def make_inputs(options: Options, inputs: Path) -> None:
    """Writes the prompts [rows, prompt] and the tokens [rows, new] that ours chooses after them."""
    tokenizer = load_tokenizer(Path(options.model))
    texts = (sample.prompt for sample in read_tasks(TasksConfig(path=options.tasks)).samples)
    encoded = (tokenizer(text)["input_ids"] for text in texts)
    prompts = [ids[: options.prompt] for ids in encoded if len(ids) >= options.prompt][: options.rows]
    np.save(inputs / "prompts.npy", np.array(prompts, np.int32))
    bench = Bench(options, inputs)
    results = sorted(bench.generation(bench.four_taps)(), key=lambda result: result.queued.index)
    np.save(inputs / "chosen.npy", np.array([result.completion.token_ids for result in results], np.int32))


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    prompts, chosen = np.load(inputs / "prompts.npy"), np.load(inputs / "chosen.npy")
    if variant == "loop of torch":
        taps = resolve_four(read_arch_file(Path(options.model) / "config.json"))
        return document_loop(steps_of_torch(options.model, taps), prompts, chosen)
    bench = Bench(options, inputs)
    if variant == "loop of ours":
        return document_loop(bench.steps(bench.four_taps), prompts, chosen)
    if variant == "calls":
        return Work(bench.calls(), LONG)
    run = bench.generation(bench.four_taps if variant == "four taps" else ())
    return Work(run, options.new, warm_up=True)


def resolve_four(arch: Arch) -> tuple[Tap, ...]:
    return resolve([arch.layers * n // 4 - 1 for n in range(1, 5)], [], arch)


class Bench:
    """A model in float32 on one device, its prompts, and the rows in which they are generated."""

    def __init__(self, options: Options, inputs: Path, prompts: Sequence[np.ndarray] | None = None) -> None:
        self.options = options
        self.prompts = list(np.load(inputs / "prompts.npy")) if prompts is None else prompts
        rows = min(options.rows, len(self.prompts))
        overrides = [f"model.path='{options.model}'", "model.dtype=float32", f"tasks.path='{options.tasks}'"]
        job = read_inputs(load([*overrides, "mode=generate", f"storage.run_dir='{inputs}/run'"]))
        mesh, self.tokenizer = make_mesh(job.config.mesh), job.tokenizer
        self.model, self.params = load_model(job, mesh)
        self.four_taps = resolve_four(job.arch)
        self.feeding = feeding(StepRows(rows, row_sharding(mesh, job.config.sharding)), 0)

    def generator(
        self, taps: tuple[Tap, ...], new: int, stop: Sequence[str] = (), ends: tuple[int, ...] = ()
    ) -> Generator:
        rows, length = self.feeding.rows.count, max(map(len, self.prompts))
        extract = ExtractConfig(
            seq_len=length, rows_per_device=rows, dtype=StoredDtype.float32, positions=Positions.generated
        )
        shape = shape_for(self.feeding.rows, extract)
        ending = Ending(GenerateConfig(max_new_tokens=new, stop=list(stop)), ends, self.tokenizer)
        programs = compile_generation(self.model.clone(taps=taps), self.params, shape, extract, ending.generate)
        prefill = feeding(shape.prefill_rows, 0)
        return Generator(programs, self.params, self.feeding, prefill, ending, extract.positions)

    def waiting(self) -> list[Waiting]:
        return [
            Waiting(Queued(1, i, Prompt(Sample(str(i), 0, ids), ids, False)), i) for i, ids in enumerate(self.prompts)
        ]

    def generation(self, taps: tuple[Tap, ...]) -> Callable[[], list[Result]]:
        """Returns a function that generates as the job does, until the vectors are on the host."""
        generator = self.generator(taps, self.options.new)
        return lambda: list(generator.run(iter(self.waiting()), Progress()))

    def steps(self, taps: tuple[Tap, ...]) -> Step:
        """Returns the document's step on our model."""
        model = self.model.clone(taps=taps)
        apply = jax.jit(lambda params, ids: model.apply(params, ids, return_activations=True))

        def step(generated_ids: np.ndarray) -> np.ndarray:
            logits, activations = apply(self.params, generated_ids)
            for layer_activations in activations.values():
                np.asarray(layer_activations[:, -1, :])
            return np.asarray(jnp.argmax(logits[:, -1, :], axis=-1))

        return step

    def calls(self) -> Callable[[], Metrics]:
        """Returns a function that times the calls that end with tokens EARLY and LONG: seconds for a token of a row."""
        generator = self.generator(self.four_taps, LONG)

        def run() -> Metrics:
            progress = Progress()
            list(generator.run(iter(self.waiting()), progress))
            calls = {read: progress.token_s[read // generator.programs.call_tokens - 1] for read in (EARLY, LONG)}
            return Metrics({f"token_{read}_s": seconds / len(self.prompts) for read, seconds in calls.items()})

        return run


def steps_of_torch(model_dir: str, taps: tuple[Tap, ...]) -> Step:
    """Returns the document's step on Hugging Face torch."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()

    @torch.no_grad()
    def step(generated_ids: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(generated_ids.astype(np.int64))
        output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
        for tap in taps:
            output.hidden_states[tap.layer + 1][:, -1, :].numpy()
        return output.logits[:, -1, :].argmax(dim=-1).numpy()

    return step


def document_loop(step: Step, prompts: np.ndarray, chosen: np.ndarray) -> Work:
    """Returns the document's loop over `step`, which has no cache, at every 32nd of its steps."""
    steps = range(EVERY // 2, chosen.shape[1], EVERY)

    def run() -> None:
        for made in steps:
            next_token_id = step(np.concatenate([prompts, chosen[:, :made]], axis=1))
            assert next_token_id.tolist() == chosen[:, made].tolist(), made

    return Work(run, len(steps), warm_up=True)
