"""Greedy generation of a real model and of a tiny one is Hugging Face's, in float32: tokens, ends and activations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.checkpoints.checkpoint import read_checkpoint
from pod_job.checkpoints.load import load_params
from pod_job.config.generate import GenerateConfig
from pod_job.config.schema import ExtractConfig, MeshConfig, Positions, Sharding, StoredDtype
from pod_job.extraction.feeding import StepRows, feeding
from pod_job.extraction.packing import Queued
from pod_job.formats.relative_errors import relative_errors
from pod_job.generation.admission import Waiting
from pod_job.generation.completions import Ending
from pod_job.generation.decoding import compile_generation
from pod_job.generation.generator import Generator, Progress
from pod_job.generation.shape import shape_for
from pod_job.models.arch import read_arch_file
from pod_job.models.decoder import Decoder
from pod_job.models.mesh import make_mesh, placement, row_sharding, weight_shardings
from pod_job.models.taps import resolve
from pod_job.models.weight_table import weight_table
from pod_job.prompts.prompt import Prompt
from pod_job.prompts.sources.sample import Sample
from pod_job.prompts.tokenizer import end_tokens, load_tokenizer
from tools.tiny_model import write_tiny_model

SMOLLM2 = Path("runs/models/SmolLM2-135M-Instruct")
NEW = 20
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
# Of different lengths; the first is answered with one word and the end token, the second runs into the stop text.
PROMPTS = {
    "smollm2": [
        CHAT.format("Answer with one word: what is the capital of France?"),
        "Input:\n1 2\nOutput:\n2 1\n\nInput:\n3 4\nOutput:\n4 3\n\nInput:\n5 6\nOutput:\n",
        "Once",
        "The three primary colours are red, ",
    ],
    "qwen2": ["a", "Input:\n1 2\nOutput:\n", "0123456789", "xyz"],
}

Generated = list[tuple[list[int], str, dict[str, np.ndarray]]]


def generated(folder: Path, prompts: Sequence[np.ndarray], ending: Ending) -> Generated:
    """Per prompt its new tokens, why they end, and the vectors of all its positions: what a job gives."""
    arch, seq_len, count = read_arch_file(folder / "config.json"), max(map(len, prompts)), 3  # fewer than the prompts
    mesh, table = make_mesh(MeshConfig(), jax.devices()[:1]), weight_table(arch)
    rows = StepRows(count, row_sharding(mesh, Sharding.replicated))
    shardings = weight_shardings(mesh, Sharding.replicated, table)
    params = load_params(read_checkpoint(folder), table, jnp.float32, shardings)
    taps = resolve([arch.layers // 2, arch.layers - 1], [], arch)
    model = Decoder(arch, taps, jnp.float32, placement(mesh, Sharding.replicated, shardings))
    extract = ExtractConfig(seq_len=seq_len, rows_per_device=count, dtype=StoredDtype.float32, positions=Positions.all)
    shape = shape_for(rows, extract)
    programs = compile_generation(model, params, shape, extract, ending.generate)
    generator = Generator(programs, params, feeding(rows, 0), feeding(shape.prefill_rows, 0), ending, extract.positions)
    waiting = [Waiting(Queued(1, i, Prompt(Sample(str(i), 0, ids), ids, False)), i) for i, ids in enumerate(prompts)]
    results = sorted(generator.run(iter(waiting), Progress()), key=lambda result: result.queued.index)
    return [(result.completion.token_ids, result.completion.ended, result.vectors) for result in results]


def hugging_face(model: Any, prompt: np.ndarray, ending: Ending) -> list[int]:
    """The tokens that `generate` adds to the prompt."""
    import torch

    made = model.generate(
        torch.from_numpy(prompt[None]).long(),
        do_sample=False,
        max_new_tokens=ending.generate.max_new_tokens,
        eos_token_id=list(ending.end_tokens) or None,
        pad_token_id=0,
        stop_strings=ending.generate.stop or None,
        tokenizer=ending.tokenizer,
    )
    return made[0, len(prompt) :].tolist()


@pytest.mark.usefixtures("torch_there")
@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("smollm2", marks=pytest.mark.pod), "qwen2"])
def test_tokens_ends_and_activations_are_those_of_hugging_face(
    tmp_path: Path, require: Callable[[bool, str], None], name: str
) -> None:
    from pod_job.checking.hf_reference import load_reference, run_reference

    if name == "smollm2":
        require((SMOLLM2 / "config.json").exists(), f"{SMOLLM2} (make demo, or make test)")
    folder = SMOLLM2 if name == "smollm2" else write_tiny_model(tmp_path, layers=4)
    tokenizer, model = load_tokenizer(folder), load_reference(folder)
    prompts = [np.array(tokenizer(text)["input_ids"], np.int32) for text in PROMPTS[name]]
    assert len({len(prompt) for prompt in prompts}) == len(prompts)
    if name == "smollm2":
        ending = Ending(GenerateConfig(max_new_tokens=NEW, stop=["\n\n"]), end_tokens(folder), tokenizer)
    else:  # random weights never choose the end token, so the seventh token chosen serves as one
        end = hugging_face(model, prompts[0], Ending(GenerateConfig(max_new_tokens=7), (), tokenizer))[-1]
        ending = Ending(GenerateConfig(max_new_tokens=NEW), (end,), tokenizer)
    ends = set()
    for prompt, (tokens, ended, vectors) in zip(prompts, generated(folder, prompts, ending), strict=True):
        assert tokens == hugging_face(model, prompt, ending)
        ends.add(ended)
        clean = run_reference(model, np.concatenate([prompt, tokens])[None].astype(np.int32), set(vectors))
        for tap, found in vectors.items():
            assert relative_errors(found, clean[tap][0]).max() < 1e-4
    assert ends == ({"end_token", "stop", "length"} if name == "smollm2" else {"end_token", "length"})
