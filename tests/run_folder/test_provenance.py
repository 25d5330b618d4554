"""Each stored row says rightly which token of which sample it is, and which tokens are no text, in a run of the job.

The model's padding token is its end-of-text token, as it often is: only the place of one tells what it is.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_processes import finish, start

from pod_job.formats.rows_table import COLUMNS
from pod_job.prompts.tokenizer import load_tokenizer
from pod_job.reading.dataset import ActivationDataset
from tools.tiny_model import SPECIAL_TOKENS, byte_tokenizer, write_tiny_model

pytestmark = pytest.mark.slow

LETTERS = byte_tokenizer()
END = 256
ONE, TWO = LETTERS.encode("one").ids, LETTERS.encode("two").ids
PROMPTS: list[tuple[Any, list[int], list[int]]] = [
    # what the file has, its tokens, and which of them are special: between two documents an end mark is text
    ("one<|endoftext|>two", [*ONE, END, *TWO], []),
    ("one<|endoftext|>", [*ONE, END], [3]),
    ("<|endoftext|><|endoftext|>two", [END, END, *TWO], [0, 1]),
    ("<|endoftext|>", [END], [0]),
    ([END, *ONE, END, *TWO, END], [END, *ONE, END, *TWO, END], [0, 8]),
    (
        [{"role": "one", "content": "two"}, {"role": "assistant", "content": "one"}],
        LETTERS.encode("<|im_start|>one\ntwo<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n").ids,
        [0, 8, 10, 24],
    ),
]
EXPECTED = [
    (f"task_{number // 2}", number % 2, position, token, position in special)
    for number, (_, tokens, special) in enumerate(PROMPTS)
    for position, token in enumerate(tokens)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """With all rows, and without special tokens: two runs at the same time."""
    folder = tmp_path_factory.mktemp("provenance")
    model = write_tiny_model(folder / "model", layers=2)
    tokenizer = load_tokenizer(model)
    assert tokenizer.pad_token == tokenizer.eos_token == SPECIAL_TOKENS[0]
    lines = [
        {"task_id": f"task_{number // 2}", "sample_idx": number % 2, "text": prompt}
        for number, (prompt, _, _) in enumerate(PROMPTS)
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = [
        *(f"model.path={model}", "model.dtype=float32", "tasks.format=jsonl", f"tasks.path={folder}/tasks.jsonl"),
        *("extract=all_tokens", "extract.dtype=float32", "extract.layers=[1]", "extract.seq_len=64"),
        *("extract.save_every_n_samples=4", "parity.samples=0"),
    ]
    jobs = []
    for name, exclude in (("whole", "[]"), ("text", "[special]")):
        arguments = [*settings, f"extract.exclude={exclude}", f"storage.run_dir={folder}/{name}"]
        jobs += start(arguments, hosts=1, devices=1)
    finish(jobs)
    return {name: folder / name for name in ("whole", "text")}


def rows(data: ActivationDataset) -> list[tuple]:
    table = data.rows(slice(None))
    return list(zip(*(table[name].tolist() for name in (*COLUMNS, "special")), strict=True))


def test_every_token_of_every_prompt_is_a_row_and_nothing_else(runs: dict[str, Path]) -> None:
    assert rows(ActivationDataset(runs["whole"], 1)) == EXPECTED


def test_what_is_left_out_at_extraction_is_what_is_left_out_at_reading(runs: dict[str, Path]) -> None:
    made, read = ActivationDataset(runs["text"], 1), ActivationDataset(runs["whole"], 1, exclude=["special"])
    assert rows(made) == rows(read) == [row for row in EXPECTED if not row[-1]]
    np.testing.assert_array_equal(made[:], read[:])
    assert made.metadata.total_samples == read.metadata.total_samples == len(PROMPTS)
