"""Extraction of prompts by one of the ways in tools/bench/ways, through to files or the forward pass alone."""

import importlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np

from pod_job.config.load import load
from pod_job.config.schema import TooLong
from pod_job.models.arch import read_arch_file
from pod_job.planning.model_cost import layer_flops
from pod_job.prompts.tasks import read_tasks
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.prompts.tokens import tokenize
from tools.bench.cases import FORWARD, LARGE_MODEL
from tools.bench.work import Work, size_of
from tools.tiny_model import write_tiny_model

SEQ_LEN = 1280  # of these prompts, 241 to 359 tokens long, a row of 512 would hold one
SAMPLE = 44  # prompts in the sample; more are augmented forms of them
COMPARED = 64  # prompts whose vectors are compared
WARM_UP = 8  # prompts
PEAK_BFLOAT16 = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
"""FLOP/s of dense matrix products, from the maker's data sheets."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The work of every way, and the size of its batches.

    Attributes:
        prompts: 22 of the sample fill two steps of ours to 94%.
        rows: of SEQ_LEN positions, in one step of ours.
        torch_prompts: in one batch of torch's.
        save_prompts: in one file of ours.
        writers: batches of ours that are written at a time.
        dtype: of the computation.
        stored: dtype of the vectors in files.
        device: cpu or gpu.
    """

    layers: list[int]
    model: str = "runs/models/SmolLM2-135M-Instruct"
    positions: str = "all"
    prompts: int = 22
    rows: int = 2
    torch_prompts: int = 4
    save_prompts: int = 8
    writers: int = 4
    dtype: str = "float32"
    stored: str = "bfloat16"
    device: str = "cpu"

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device == "gpu" else self.device

    @property
    def token_flop(self) -> float:
        """FLOP of one token up to the last tap: the weights' products, nothing of attention."""
        return (self.layers[-1] + 1) * layer_flops(read_arch_file(Path(self.model) / "config.json"))


def make_inputs(options: Options, inputs: Path) -> None:
    """Writes token ids, as a list and as a task file, and the vectors that Hugging Face's hooks store of the first."""
    model = Path(options.model)
    if options.model == LARGE_MODEL and not model.is_dir():
        write_tiny_model(model, layers=24, hidden=896, heads=14, kv_heads=2, mlp=4864, vocab=151936, tied=True)
    config = load(
        [
            *(f"model.path={model}", "storage.run_dir=unused", "tasks=arc_sample", f"tasks.limit={options.prompts}"),
            f"tasks.arc.predictions={-(-options.prompts // SAMPLE)}",
        ]
    )
    tokenized = tokenize(load_tokenizer(model), list(read_tasks(config.tasks).samples), SEQ_LEN, TooLong.refuse)
    prompts = [prompt.token_ids.tolist() for prompt in tokenized]
    (inputs / "prompts.json").write_text(json.dumps(prompts))
    (inputs / "tasks.jsonl").write_text("".join(json.dumps({"input_ids": prompt}) + "\n" for prompt in prompts))
    way, out = importlib.import_module("tools.bench.ways.hugging_face"), inputs / "reference"
    out.mkdir()
    way.extract(way.load(options), prompts[:COMPARED], options, out)
    chosen = sum(map(len, prompts[:COMPARED])) if options.positions == "all" else len(prompts[:COMPARED])
    np.save(inputs / "reference.npy", vectors(way, out, options, chosen))


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    """Loads the model, compiles and warms up."""
    way = importlib.import_module(f"tools.bench.ways.{variant.removesuffix(FORWARD)}")
    prompts: list[list[int]] = json.loads((inputs / "prompts.json").read_text())
    writes = not variant.endswith(FORWARD) and not hasattr(way, "amount")
    total = sum(map(len, prompts))
    amount = way.amount(options) if hasattr(way, "amount") else stored_tokens(way, prompts, options)
    out = scratch / "out"
    run = runner(way, prompts, options, inputs, out if writes else None)

    def after(measured: Mapping[str, float]) -> Mapping[str, float]:
        flop_s = amount * options.token_flop / measured["wall_s"]
        metrics = {"gflop_per_s": flop_s / 1e9}
        if peak := accelerator_peak(options):
            metrics["mfu"] = flop_s / peak
        if hasattr(way, "filled"):
            metrics["filled"] = way.filled(prompts, options)
        if writes:
            metrics |= {"bytes": size_of(out) * total / amount} | distances(way, out, prompts, options, inputs)
            metrics["lines"] = lines_of(Path(str(way.__file__)))
        return metrics

    return Work(run, amount, before=lambda: out.mkdir(exist_ok=True), after=after, warm_up=hasattr(way, "prepare"))


def runner(
    way: ModuleType, prompts: list[list[int]], options: Options, inputs: Path, out: Path | None
) -> Callable[[], None]:
    """Returns the part that is measured; the ways of others have run on some prompts before."""
    if hasattr(way, "prepare"):
        return way.prepare(options, inputs / "tasks.jsonl", out)
    model = way.load(options)
    with tempfile.TemporaryDirectory(dir=inputs) as warm:
        way.extract(model, prompts[: max(WARM_UP, options.torch_prompts)], options, Path(warm) if out else None)
    return lambda: way.extract(model, prompts, options, out)


def stored_tokens(way: ModuleType, prompts: list[list[int]], options: Options) -> float:
    """Returns the tokens whose vectors the way stores, or that it has to read for those of last positions."""
    if options.positions == "all" and hasattr(way, "vectors"):
        return way.vectors(prompts)
    if options.positions == "all" and hasattr(way, "places"):
        return len(way.places(prompts))
    return sum(map(len, prompts))


def vectors(way: ModuleType, out: Path, options: Options, rows: int) -> np.ndarray:
    """Returns the first stored vectors [L, rows, D] in float32."""
    return np.stack([first_rows(way.stored(out, layer), rows) for layer in options.layers])


def first_rows(parts: Iterable[np.ndarray], rows: int) -> np.ndarray:
    """Joins no more parts than are needed."""
    chosen: list[np.ndarray] = []
    for part in parts:
        chosen.append(part)
        if sum(map(len, chosen)) >= rows:
            break
    return np.concatenate(chosen)[:rows].astype(np.float32)


def distances(way: ModuleType, out: Path, prompts: list[list[int]], options: Options, inputs: Path) -> dict[str, float]:
    """Returns the largest and the median relative distance (L2) of a stored vector from the reference's."""
    wanted = np.load(inputs / "reference.npy")
    if options.positions == "all" and hasattr(way, "places"):
        wanted = wanted[:, [place for place in way.places(prompts) if place < wanted.shape[1]]]
    stored = vectors(way, out, options, wanted.shape[1])
    if stored.shape != wanted.shape:
        raise SystemExit(f"error: vectors of shape {stored.shape} were stored in place of {wanted.shape}")
    apart = np.linalg.norm(stored - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    return {"apart": float(apart.max()), "apart_median": float(np.median(apart))}


def accelerator_peak(options: Options) -> float:
    """Returns FLOP/s; 0 where it is not known."""
    if options.device != "gpu" or options.dtype != "bfloat16":
        return 0.0
    import jax

    return PEAK_BFLOAT16.get(jax.devices()[0].device_kind, 0.0)


def lines_of(file: Path) -> int:
    """Counts the lines between the marks of a way's file that are neither empty nor comments, or takes its LINES."""
    text = file.read_text()
    if "\nLINES = " in text:
        return int(text.partition("\nLINES = ")[2].split()[0])
    marked = text.partition("# begin")[2].partition("\n")[2].partition("# end")[0]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in marked.splitlines())
