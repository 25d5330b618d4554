"""Compares `pod-job evaluate` with SAELens' evaluator on the same SAE: `python -m tools.sae_peers.evaluation MODEL`.

MODEL is a folder of Hugging Face's. The SAE copies the largest coordinates of a row; the tokens are random, or those of
--documents, the same for both. SAELens runs in the environment `trainers` of `tools.peers`.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pod_job.commands.command_line import exit_status
from pod_job.commands.evaluate import main as evaluate
from pod_job.config.train import Architecture
from pod_job.errors import JobError
from pod_job.models.arch import read_arch_file
from pod_job.prompts.tokenizer import TokenizerFolder
from pod_job.storage.open import open_folder
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.layouts.sae_lens import write_sae
from pod_job.training.saes import SaeOrigin, TrainedSae
from tools.peers import make, quiet_environment

CONTEXT, CONTEXTS, SHARE = 64, 8, 4
LIMIT = 0.01
"""Largest difference allowed, relative to SAELens' number."""


def copying_sae(width: int, layer: int) -> TrainedSae:
    """Returns a TopK SAE whose latents are the coordinates and their negatives, a quarter of which it keeps."""
    both = np.concatenate([np.eye(width), -np.eye(width)], axis=1).astype(np.float32)
    shape = SaeShape(
        architecture=Architecture.topk, input_width=width, output_width=width, latents=2 * width, k=width // SHARE
    )
    parameters = {
        "encoder": both,
        "encoder_bias": np.zeros(2 * width, np.float32),
        "decoder": both.T.copy(),
        "decoder_bias": np.zeros(width, np.float32),
    }
    return TrainedSae(shape, parameters, SaeOrigin(taps=(f"layer_{layer}",), context_size=CONTEXT))


def ours(folder: Path, model: Path) -> dict[str, float]:
    """Returns what `pod-job evaluate` measures."""
    inputs = [f"model.path={model}", f"tasks.path={folder / 'tokens.npy'}", "model.dtype=float32"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if evaluate([str(folder / "sae"), *inputs, "extract.exclude=[]", "--json"]):
            raise JobError("pod-job evaluate failed")
    [sae] = json.loads(printed.getvalue())["saes"]
    loss = sae["cross_entropy"]
    measured = {name: sae[name] for name in ("l0", "mse", "explained_variance", "cosine", "recovered", "dead")}
    return measured | {f"loss of {name}": loss[name] for name in ("model", "spliced", "zeros")}


def theirs(folder: Path, model: Path, layer: int) -> dict[str, float]:
    """Returns what SAELens' `run_evals` measures."""
    child = Path(__file__).with_name("run_evals.py")
    done = subprocess.run(
        [make("trainers"), child, folder, model, str(layer)], env=quiet_environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise JobError(f"{child.name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def contexts_of(documents: Path | None, model: Path, vocab: int) -> np.ndarray:
    """Returns the contexts: of the first documents' tokens, or random."""
    if documents is None:
        return np.random.default_rng(0).integers(3, vocab, (CONTEXTS, CONTEXT)).astype(np.int32)
    tokenizer, tokens = TokenizerFolder(model).tokenizer, []
    with documents.open() as file:
        for line in file:
            tokens += tokenizer(json.loads(line)["text"])["input_ids"]
            if len(tokens) >= CONTEXTS * CONTEXT:
                break
    return np.array(tokens[: CONTEXTS * CONTEXT], np.int32).reshape(CONTEXTS, CONTEXT)


def run() -> int:
    """Prints both numbers of each measure; returns 1 if they differ by more than the limit."""
    parser = argparse.ArgumentParser(prog="python -m tools.sae_peers.evaluation", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--documents", type=Path, help="JSON lines with a text each; by default tokens are random")
    options = parser.parse_args()
    model = options.model.absolute()
    arch = read_arch_file(model / "config.json")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "tokens.npy", contexts_of(options.documents, model, arch.vocab))
        write_sae(open_folder(folder / "sae"), "", copying_sae(arch.hidden, options.layer))
        here, there = ours(folder, model), theirs(folder, model, options.layer)
    differences = {key: abs(here[key] - value) / max(abs(value), 1e-9) for key, value in there.items()}
    for key, value in there.items():
        print(f"{key:20} {here[key]:12.6f} {value:12.6f} {differences[key]:9.1e}")
    return int(max(differences.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(exit_status(run))
