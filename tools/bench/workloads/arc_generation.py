"""Greedy answers to ARC prompts of mixed length, as the job makes them, beside `generate` of Hugging Face torch.

Prompts are spread evenly over the training tasks of ARC, of any length that the model takes. The weights are rounded to
bfloat16, as the model is published (of the demo's model they are float32 numbers); both compute in float32. Both have
the same rows, the same end tokens and the same stop text. Hugging Face takes the prompts in batches, padded on the
left, and a batch lasts until its longest answer; the answers must be ours, token for token.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file

from pod_job.config.tasks import TasksConfig
from pod_job.generation.generator import Progress, Result
from pod_job.prompts.tasks import read_tasks
from pod_job.prompts.tokenizer import end_tokens, load_tokenizer
from tools.arc_tasks import read_arc_tasks, write_tasks
from tools.bench.work import Work
from tools.bench.workloads import generation
from tools.bench.workloads.generation import Bench

STOP = "\n\n"


class Options(generation.Options, frozen=True, forbid_unknown_fields=True):
    """`count` of the prompts of at most `prompt` tokens, and at most `new` tokens after each."""

    rows: int = 8
    prompt: int = 8192
    new: int = 128
    count: int = 16


def make_inputs(options: Options, inputs: Path) -> None:
    """Writes the model and the prompts, and the answers that ours chooses."""
    published(Path(options.model), inputs / "model")
    tokenizer = load_tokenizer(inputs / "model")
    write_tasks(read_arc_tasks(), inputs / "tasks.json")
    texts = (sample.prompt for sample in read_tasks(TasksConfig(path=str(inputs / "tasks.json"))).samples)
    prompts = [ids for ids in (tokenizer(text)["input_ids"] for text in texts) if len(ids) <= options.prompt]
    write_rows(inputs / "prompts.json", prompts[:: max(1, len(prompts) // options.count)][: options.count])
    run = work_of("no taps", options, inputs)
    write_rows(inputs / "answers.json", answers(run()))


def published(model: Path, folder: Path) -> None:
    """Writes the model's folder with weights in bfloat16."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(model / "model.safetensors")
    rounded = {name: value.astype(ml_dtypes.bfloat16) for name, value in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    chosen = read_rows(inputs / "answers.json")
    run = work_of(variant, options, inputs)

    def checked() -> None:
        assert answers(run()) == chosen

    return Work(checked, sum(map(len, chosen)))


def work_of(variant: str, options: Options, inputs: Path) -> Callable[[], Any]:
    """Returns the function that answers all prompts, with the model loaded and its programs compiled."""
    options = msgspec.structs.replace(options, model=str(inputs / "model"))
    prompts = [np.array(ids, np.int32) for ids in read_rows(inputs / "prompts.json")]
    if variant == "hugging face":
        torch_model(options.model)
        return lambda: of_torch(options, prompts)
    bench = Bench(options, inputs, prompts)
    taps = bench.four_taps if variant == "four taps" else ()
    generator = bench.generator(taps, options.new, [STOP], end_tokens(Path(options.model)))
    return lambda: list(generator.run(iter(bench.waiting()), Progress()))


def answers(results: Any) -> list[list[int]]:
    """Returns the new tokens of each prompt, in the order of the prompts."""
    if not results or isinstance(results[0], list):
        return results
    ordered = sorted(results, key=lambda result: result.queued.index)
    return [list(result.completion.token_ids) for result in ordered if isinstance(result, Result)]


def of_torch(options: Options, prompts: list[np.ndarray]) -> list[list[int]]:
    """Returns the answers by Hugging Face."""
    import torch

    model, tokenizer = torch_model(options.model)
    ends, made = end_tokens(Path(options.model)), []
    for start in range(0, len(prompts), options.rows):
        batch = prompts[start : start + options.rows]
        width = max(map(len, batch))
        ids = torch.tensor(np.array([np.pad(row, (width - len(row), 0)) for row in batch]).astype(np.int64))
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        with torch.no_grad():
            whole = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=options.new,
                eos_token_id=list(ends),
                pad_token_id=ends[0],
                stop_strings=[STOP],
                tokenizer=tokenizer,
            )
        made += [ended(row.tolist(), tokenizer, ends) for row in whole[:, width:]]
    return made


def ended(tokens: list[int], tokenizer: Any, ends: tuple[int, ...]) -> list[int]:
    """Returns the tokens up to the first end token or the one that completes the stop text."""
    for count in range(1, len(tokens) + 1):
        if tokens[count - 1] in ends or STOP in tokenizer.decode(tokens[:count], skip_special_tokens=True):
            return tokens[:count]
    return tokens


LOADED: dict[str, tuple[Any, Any]] = {}


def torch_model(folder: str) -> tuple[Any, Any]:
    """Returns the model in float32 and its tokenizer, loaded once."""
    import torch
    from transformers import AutoModelForCausalLM

    if folder not in LOADED:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        LOADED[folder] = model, load_tokenizer(Path(folder))
    return LOADED[folder]


def write_rows(file: Path, rows: list[list[int]]) -> None:
    file.write_bytes(msgspec.json.encode(rows))


def read_rows(file: Path) -> list[list[int]]:
    return msgspec.json.decode(file.read_bytes(), type=list[list[int]])
