"""Tokenizers and the records of a training as targets of fuzzing: sound files, and what is read of them."""

from pathlib import Path
from typing import Any

from pod_job.checkpoints.random_model import byte_tokenizer
from pod_job.formats.records import read_file
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.prompts.tokens import encode_texts
from pod_job.run_folder import layout
from pod_job.run_folder.tokenizer import read_decoder
from pod_job.run_folder.training import read_metrics, read_training
from pod_job.storage.open import open_folder
from pod_job.training.evaluation import EvaluationRecord
from tools.corruption.trained_run import TAP, write_trained
from tools.random_run import RunShape, make_run
from tools.tiny_model import write_tiny_model

TEXTS = ["a text", "and \u00e9 <|im_start|> others  ", "aaaa"]


def write_run_tokenizer(root: Path) -> None:
    open_folder(root).create(layout.TOKENIZER, [byte_tokenizer().to_str().encode()])


def decoded(root: Path, path: Path) -> list[str]:
    decode = read_decoder(open_folder(root))
    return [decode([token]) for token in range(0, 300, 7)] + [decode(list(range(60, 90)))]


def tokens_of(root: Path, path: Path) -> list[Any]:
    """Returns the tokens of texts; a text that the library fails on has none."""
    return [ids if isinstance(ids, list) else None for ids in encode_texts(load_tokenizer(root), TEXTS, True)]


def write_model(root: Path) -> None:
    """Writes the tokenizer of a model, which transformers takes as it is: without config.json."""
    write_tiny_model(root)
    (root / "config.json").unlink()


def write_training(root: Path) -> None:
    make_run(open_folder(root / "vectors"), RunShape(batches=1, rows=8, samples=2, width=8, taps=(TAP,)))
    write_trained(open_folder(root / "vectors"), open_folder(root / "trained"))


def training_of(root: Path, path: Path) -> list[Any]:
    run = open_folder(root / "trained")
    return [read_training(run), read_metrics(run), read_file(run, layout.EVALUATION, EvaluationRecord)]
