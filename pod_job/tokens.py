"""Prompts to token ids, with the model's own tokenizer. No jax."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from pod_job.config import TooLong
from pod_job.errors import JobError
from pod_job.tasks import Sample


@dataclass(frozen=True)
class Prompt:
    """One tokenised sample. `cut` tells that leading tokens were dropped to fit."""

    sample: Sample
    token_ids: Int32[np.ndarray, " length"]
    cut: bool


def load_tokenizer(folder: Path) -> Any:
    """The folder's Hugging Face tokenizer; JobError where there is none."""
    if not any(folder.glob("tokenizer*")):
        raise JobError(f"model.path={folder} has no tokenizer file; tokenizer.json is needed beside the weights")
    # Otherwise it advises, on every host, to install a framework that is not needed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer  # imports for seconds

    return AutoTokenizer.from_pretrained(str(folder))


def tokenizer_fingerprint(folder: Path) -> str:
    """SHA-256 over the tokenizer's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("tokenizer*")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def tokenize(tokenizer: Any, samples: Sequence[Sample], seq_len: int, too_long: TooLong) -> list[Prompt]:
    """Token ids as the model expects them (with its begin token, where it has one), at most `seq_len` each.

    A longer prompt keeps its last `seq_len` tokens, or is refused.

    Raises:
        JobError: a prompt that is too long under `too_long=refuse`, or that has no token at all.
    """
    encoded = tokenizer([sample.text for sample in samples], verbose=False)["input_ids"] if samples else []
    tokenized = []
    for sample, ids in zip(samples, encoded, strict=True):
        if not ids:
            raise JobError(f"task {sample.task_id}, sample {sample.sample_idx} has no token; remove it from the tasks")
        if len(ids) > seq_len and too_long is TooLong.refuse:
            raise JobError(
                f"task {sample.task_id}, sample {sample.sample_idx} has {len(ids)} tokens, more than "
                f"extract.seq_len={seq_len}; raise it, or keep the last tokens with extract.too_long=cut"
            )
        tokenized.append(Prompt(sample, np.array(ids[-seq_len:], np.int32), len(ids) > seq_len))
    return tokenized
