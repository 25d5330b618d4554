"""The input side of a host without devices: documents to step inputs, the start of a run, and bytes read.

Documents are of English words with the lengths of web text (log-normal). Variants: `ours, N cores` and
`datasets, N cores` read and tokenize the same documents; `start N documents` and `again N documents` open a run;
`N hosts` read what falls to each host, one host after the other.
"""

import functools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tools.bench.work import Metrics, Work, kernel_lines, measured
from tools.tiny_model import write_tiny_model

ROOT = Path(__file__).parents[3]
MODEL = "runs/models/SmolLM2-135M-Instruct"
SEQ_LEN, ROWS, PROMPTS_PER_ROW = 1024, 16, 64
FILES = 8


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`documents` of `words` words in the median are in each of FILES files; `model` has the tokenizer."""

    documents: int = 1000
    words: int = 350
    model: str = MODEL


def make_inputs(options: Options, inputs: Path) -> None:
    draw = random.Random(0)
    words = [word for page in sorted((ROOT / "docs").glob("*.md")) for word in page.read_text().split()]
    (inputs / "documents").mkdir()
    for number in range(FILES):
        with (inputs / f"documents/{number}.jsonl").open("w") as file:
            for _ in range(options.documents):
                count = max(1, int(options.words * draw.lognormvariate(0, 1.1)))
                start = draw.randrange(max(1, len(words) - count))
                file.write(json.dumps({"text": " ".join(words[start : start + count])}) + "\n")
    write_tiny_model(inputs / "model", layers=1)


def prepare(variant: str, options: Options, inputs: Path, scratch: Path) -> Work:
    kind, number = next((word for word in variant.split() if not word[0].isdigit()), ""), number_in(variant)
    if "core" in variant:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < number:
            raise NotImplementedError(f"this machine has {len(cores)} cores")
        os.sched_setaffinity(0, cores[:number])  # before any library counts them
        model = ROOT / options.model
        if not model.is_dir():
            raise NotImplementedError(f"{options.model} is missing")
        tokenize = ours if kind == "ours," else hugging_face
        return Work(tokenize(model, inputs / "documents", scratch))
    if "document" in variant:
        return start_of_a_run(number, kind == "again", inputs / "model", scratch)
    return bytes_read(number, inputs, scratch)


def number_in(variant: str) -> int:
    return int(next(word for word in variant.split() if word[0].isdigit()).replace(",", ""))


def job_config(model: Path, tasks: Path, run: Path, *overrides: str):
    from pod_job.config.load import load

    return load(
        [
            *(f"model.path='{model}'", f"tasks.path='{tasks}'", "tasks.format=jsonl", f"storage.run_dir='{run}'"),
            *("extract.layers=[0]", f"extract.seq_len={SEQ_LEN}", "extract.too_long=split", "tasks.on_broken=skip"),
            *("extract.save_every_n_samples=256", *overrides),
        ]
    )


def ours(model: Path, documents: Path, scratch: Path):
    """Returns what reads, tokenizes, cuts and packs the documents as a host of the job does, up to step inputs."""
    from pod_job.extraction.packing import Queued, pack_steps
    from pod_job.extraction.read_ahead import read_ahead
    from pod_job.host.stop_request import StopRequest
    from pod_job.planning.inputs import read_inputs

    inputs = read_inputs(job_config(model, documents, scratch / "run"))
    list(read_ahead(inputs, [1], StopRequest()))

    def queued() -> Iterator[Queued]:
        for batch, tokenized in read_ahead(inputs, range(1, inputs.total_batches + 1), StopRequest()):
            yield from (Queued(batch, i, prompt) for i, prompt in enumerate(tokenized.prompts))

    def run() -> Metrics:
        tokens = positions = 0
        for step in pack_steps(queued(), ROWS, SEQ_LEN, PROMPTS_PER_ROW):
            tokens, positions = tokens + step.tokens, positions + step.token_ids.size
        return Metrics(amount=tokens / 1e6, padding=1 - tokens / positions)

    return run


def hugging_face(model: Path, documents: Path, scratch: Path):
    """Returns what reads and tokenizes the documents with `datasets` as a stream; they are not cut and packed."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    tokenizer("warm up")
    files = sorted(map(str, documents.glob("*.jsonl")))

    def run() -> Metrics:
        stream = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
        ids = stream.map(lambda texts: tokenizer(texts["text"], verbose=False), batched=True, remove_columns=["text"])
        tokens = sum(len(row) for batch in ids.iter(1000) for row in batch["input_ids"])
        return Metrics(amount=tokens / 1e6)

    return run


def start_of_a_run(documents: int, again: bool, model: Path, scratch: Path) -> Work:
    """Opens a run of so many short documents: everything that a host does before it waits for the others."""
    from pod_job.planning.inputs import claim_run, read_inputs
    from pod_job.planning.prompt_survey import survey_share

    config = job_config(model, scratch / "documents", scratch / "run")

    def prepared() -> None:
        write_short(scratch / "documents", documents)
        if again:
            claim_run(read_inputs(config))

    def run() -> None:
        inputs = read_inputs(config)
        survey_share(inputs, 0, 16)

    return Work(run, before=prepared)


def write_short(folder: Path, documents: int) -> None:
    """Writes documents of one line, 100,000 in a file."""
    folder.mkdir()
    for first in range(0, documents, 100_000):
        lines = (f'{{"text": "document {i} of a few words"}}\n' for i in range(first, min(first + 100_000, documents)))
        (folder / f"{first:09}.jsonl").write_text("".join(lines))


def bytes_read(hosts: int, inputs: Path, scratch: Path) -> Work:
    """Counts the bytes that each host reads for its share of the batches, in a run that was opened before.

    Documents differ in length, so that shares of as many documents differ in bytes: a host's is the bytes of its own.
    """
    import numpy as np

    from pod_job.planning.batches import assign_batches, batch_samples
    from pod_job.planning.inputs import read_inputs

    per_batch, documents = 16, inputs / "documents"
    config = job_config(inputs / "model", documents, scratch / "run", f"extract.save_every_n_samples={per_batch}")
    lengths = np.array([len(line) for file in sorted(documents.iterdir()) for line in file.open("rb")])
    size = int(lengths.sum())

    def share_of(host: int) -> float:
        """Returns what a host reads over the bytes of its own documents."""
        opened = read_inputs(config)
        batches = assign_batches(range(1, opened.total_batches + 1), hosts)[host]
        own = sum(int(lengths[batch_samples(batch, len(lengths), per_batch)].sum()) for batch in batches)
        before = characters_read()
        for batch in batches:
            opened.samples(batch)
        return (characters_read() - before) / own

    def run() -> Metrics:
        shares = [measured(functools.partial(share_of, host))[0] for host in range(hosts)]
        return Metrics(of_share=max(shares), amount=size * hosts / 1e9)

    return Work(run)


def characters_read() -> int:
    """Returns the bytes that this process has read so far by system calls (Linux)."""
    return next(int(value) for name, value in kernel_lines("/proc/self/io") if name == "rchar")
