"""Simulates a whole ARC run of generation on its pod, from compiled times and the true lengths of prompts and answers.

`python -m tools.simulate_generation --rows 8 16 --tokenizer runs/models/SmolLM2-135M-Instruct \\
    experiment=generate-v5e64 storage.run_dir=r`

`--prefix 1000` puts so many tokens before each prompt, which are read with it or shared; `--own 100` makes the prompts
behind them that long.

The programs are compiled for the pod (libtpu, no TPU); prompts are admitted by the code that does it in a run. Answers
are the solutions and an end token; a new token is useful where it belongs to an answer that fits max_new_tokens or to
the part of it that does. Hosts are in step, as in a run, and cost nothing themselves. A call of decode takes as long as
on the device whose rows have the most slots filled, with one block more for each row than its tokens need, as they may
begin and end within blocks.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pod_job import environment

PREDICTIONS = 8
BEFORE = {"token_ms": 12.35, "prefill_ms": 616.7}
"""Compiled times of 2026-11-26, for 8 rows of 8,448 slots: a wave of prompts of 8,192 padded tokens each."""


@dataclass(frozen=True)
class Sample:
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Pod:
    """Hosts with their devices, sizes of the programs, and their times.

    Attributes:
        prefill_s: of one run of prefill.
        token_s: of a token of every row, beside reading the cache.
        block_s: of reading one block of slots of one row, in all layers.
        block: slots of a block.
        blocks: of a row.
        read_together: prompts that a run of prefill reads padded, in waves.
        shared: tokens at the beginning of each prompt that are computed once.
    """

    hosts: int
    shape: Any
    call_tokens: int
    prefill_s: float
    token_s: float
    block_s: float = 0.0
    block: int = 1
    blocks: int = 0
    read_together: int = 1
    shared: int = 0

    def call_s(self, blocks: int) -> float:
        """Returns the seconds of a call of decode where a device reads so many blocks for each token."""
        return self.call_tokens * (self.token_s + blocks * self.block_s)

    def blocks_read(self, tokens: int) -> int:
        """Returns the blocks that a row with so many tokens has to read; 1 of a row without a prompt."""
        return min(self.blocks, -(-tokens // self.block) + 1)


@dataclass(frozen=True)
class Outcome:
    way: str
    seconds: float
    prefills: int
    calls: int
    useful: int

    @property
    def useful_per_s(self) -> float:
        return self.useful / self.seconds


def arc_samples(tokenizer: Path, config: Any, prefix: int = 0, own: int | None = None) -> list[Sample]:
    """Returns lengths of all prompts of the 400 training tasks, in their order, and of the right answers.

    Args:
        prefix: tokens before each prompt.
        own: tokens of each prompt behind them; None: its own number.
    """
    from pod_job.prompts.arc_prompts import digits, render
    from pod_job.prompts.tokenizer import load_tokenizer
    from tools.arc_tasks import read_arc_tasks

    encode = load_tokenizer(tokenizer)
    samples = []
    for task in read_arc_tasks().values():
        for test, pair in enumerate(task["test"]):
            prompt = len(encode(render(task, test, config.tasks.arc.prompt))["input_ids"])
            answer = len(encode(digits(pair["output"]))["input_ids"]) + 1
            prompt = prompt if own is None else own
            lengths = min(prefix + prompt, config.extract.seq_len), min(answer, config.generate.max_new_tokens)
            samples += [Sample(*lengths)] * PREDICTIONS
    return samples


def of_hosts(samples: Sequence[Sample], hosts: int, per_batch: int) -> list[list[Sample]]:
    """Returns each host's samples: its batches are those whose number leaves its index, as in a run."""
    batches = [samples[start : start + per_batch] for start in range(0, len(samples), per_batch)]
    return [[sample for batch in batches[host::hosts] for sample in batch] for host in range(hosts)]


def in_waves(samples: Sequence[Sample], pod: Pod, per_batch: int) -> Outcome:
    """Returns the outcome where each wave of prompts is read padded, and waits for its longest answer.

    Every token reads the whole cache.
    """
    rows = pod.shape.shards * pod.shape.rows
    queues = of_hosts(samples, pod.hosts, per_batch)
    reads = -(-pod.shape.rows // pod.read_together)
    waves = calls = 0
    for start in range(0, max(map(len, queues)), rows):
        wave = [sample for queue in queues for sample in queue[start : start + rows]]
        waves += 1
        calls += -(-(max(sample.answer_tokens for sample in wave) - 1) // pod.call_tokens)
    seconds = waves * reads * pod.prefill_s + calls * pod.call_s(pod.shape.rows * pod.blocks)
    return Outcome("waves", seconds, waves * reads, calls, sum(sample.answer_tokens for sample in samples))


def waiting(samples: Sequence[Sample], behind: int = 0) -> list[Any]:
    """Returns prompts of these lengths, numbered from 0, as a run has them before they are read.

    `behind`: tokens of each that are computed already.
    """
    import numpy as np

    from pod_job.extraction.packing import Queued
    from pod_job.generation.admission import Waiting
    from pod_job.prompts.prompt import Prompt
    from pod_job.prompts.sources import sample as sources

    prompts = []
    for number, sample in enumerate(samples):
        ids = np.zeros(sample.prompt_tokens, np.int32)
        prompt = Prompt(sources.Sample(str(number), 0, ids), ids, False)
        prompts.append(Waiting(Queued(1, number, prompt), number, behind=behind))
    return prompts


class Host:
    """Rows of one host, and the prompts that it has not read yet."""

    def __init__(self, samples: Sequence[Sample], pod: Pod, sort: bool) -> None:
        from pod_job.generation.admission import BLOCK_ROWS, longest_first

        self.answers = [sample.answer_tokens for sample in samples]
        self.pod, self.shape, self.rows = pod, pod.shape, [0] * (pod.shape.shards * pod.shape.rows)
        self.lengths = [0] * len(self.rows)
        block = BLOCK_ROWS * len(self.rows) if sort else 1
        items = waiting(samples, pod.shared)
        blocks = (items[start : start + block] for start in range(0, len(items), block))
        self.blocks: Iterator[list[Any]] = (longest_first(taken) for taken in blocks)
        self.waiting: list[Any] = []
        self.more, self.seats = True, []

    def outlook(self) -> Any:
        """Takes prompts, and returns what the host would do next."""
        from pod_job.generation.admission import admit, outlook

        while self.more and len(self.waiting) < len(self.rows) + self.shape.prompts_per_row:
            taken = next(self.blocks, [])
            self.more = bool(taken)
            self.waiting += taken
        free = [at for at, left in enumerate(self.rows) if not left]
        self.seats = admit(self.waiting, free, self.shape)
        return outlook(self.seats, len(self.waiting), self.more, len(self.rows) - len(free), self.shape)

    def prefill(self) -> None:
        """Reads the prompts that have seats, which gives each its first new token."""
        seated = {id(seat.waiting) for seat in self.seats}
        self.waiting = [item for item in self.waiting if id(item) not in seated]
        for seat in self.seats:
            self.rows[seat.row] = self.answers[seat.waiting.number] - 1
            self.lengths[seat.row] = seat.waiting.length

    def decode(self) -> int:
        """Adds the tokens of a call, and returns the blocks that the device with the most of them reads for each."""
        read = [self.pod.blocks_read(length) for length in self.lengths]
        for row, left in enumerate(self.rows):
            self.rows[row] = max(0, left - self.pod.call_tokens)
            self.lengths[row] = self.lengths[row] + self.pod.call_tokens if self.rows[row] else 0
        return max(sum(read[start : start + self.shape.rows]) for start in range(0, len(read), self.shape.rows))


def refilled(samples: Sequence[Sample], pod: Pod, per_batch: int, sort: bool) -> Outcome:
    """Returns the outcome where a row that ends takes the next prompt."""
    from pod_job.generation.admission import should_prefill

    hosts = [Host(queue, pod, sort) for queue in of_hosts(samples, pod.hosts, per_batch)]
    prefills, calls, since = int(bool(pod.shared)), 0, 0  # the prefix is read first
    seconds = prefills * pod.prefill_s
    while True:
        outlooks = [host.outlook() for host in hosts]
        if should_prefill(outlooks, since):
            prefills, since = prefills + 1, 0
            seconds += pod.prefill_s
            for host in hosts:
                host.prefill()
        elif any(outlook.active for outlook in outlooks):
            calls, since = calls + 1, since + 1
            seconds += pod.call_s(max([host.decode() for host in hosts]))
        else:
            break
    useful = sum(sample.answer_tokens for sample in samples)
    return Outcome("refilled, longest first" if sort else "refilled, in order", seconds, prefills, calls, useful)


def compiled_pod(config: Any, shared: int = 0) -> Pod:
    """Compiles both programs for the pod of the configuration, where so many tokens are shared."""
    from pod_job.config.generate import cache_slots, call_tokens, prefill_length, prefill_prompts
    from pod_job.formats.safetensors import DTYPE_OF
    from pod_job.generation.admission import FeederShape
    from pod_job.models.cache_kernel import block_slots
    from pod_job.preflight.planned_job import planned_job
    from pod_job.preflight.pod_compiler import forecasts
    from pod_job.preflight.report import pod_slice

    job = replace(planned_job(config, pod_slice(config))[0], prefix=shared)
    prefill, decode = forecasts(job)
    rows, S = config.extract.rows_per_device, config.extract.seq_len
    shape = FeederShape(
        config.pod.devices_per_host,
        rows,
        prefill_prompts(rows, S, config.extract.prompts_per_row),
        prefill_length(rows, S),
    )
    tokens, slots = call_tokens(config.generate.max_new_tokens), cache_slots(S, config.generate.max_new_tokens)
    block = (
        block_slots("tpu", slots, job.arch.kv_heads * job.arch.head_dim, DTYPE_OF[config.model.dtype.value]) or slots
    )
    blocks = slots // block
    return Pod(
        hosts=config.pod.hosts,
        shape=shape,
        call_tokens=tokens,
        prefill_s=prefill.seconds["compute"],
        token_s=(decode.seconds["compute"] - decode.kernel_s) / tokens,
        block_s=decode.kernel_s / (tokens * rows * blocks),
        block=block,
        blocks=blocks,
        shared=shared,
    )


def main() -> None:
    """Prints a table, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 32], help="rows per device to compare")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of a model whose tokenizer counts")
    parser.add_argument("--prefix", type=int, default=0, help="tokens that all prompts begin with")
    parser.add_argument("--own", type=int, help="tokens of each prompt behind them")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="+")
    arguments = parser.parse_args()
    os.environ.update(environment.COMPILE_ONLY)
    from pod_job.config.load import load

    before = True
    for rows in arguments.rows:
        config = load([*arguments.overrides, f"extract.rows_per_device={rows}"])
        samples = arc_samples(arguments.tokenizer, config, arguments.prefix, arguments.own)
        per_batch, pod = config.extract.save_every_n_samples, compiled_pod(config)
        outcomes = [in_waves(samples, pod, per_batch)]
        outcomes += [refilled(samples, pod, per_batch, sort) for sort in (False, True)]
        if arguments.prefix:
            sharing = compiled_pod(config, arguments.prefix)
            way = f"refilled, longest first, prefix shared ({sharing.prefill_s * 1e3:.1f} ms of prefill)"
            outcomes.append(replace(refilled(samples, sharing, per_batch, True), way=way))
        if before and rows == 8:
            times = BEFORE["prefill_ms"] / 1e3, BEFORE["token_ms"] / 1e3
            old = Pod(pod.hosts, pod.shape, pod.call_tokens, *times, read_together=8)
            outcomes.insert(0, in_waves(samples, old, per_batch))
        for outcome in outcomes:
            facts = {"rows": rows, "way": outcome.way, "seconds": round(outcome.seconds, 2), "calls": outcome.calls}
            facts |= {"prefills": outcome.prefills, "useful_per_s": round(outcome.useful_per_s)}
            facts |= {
                "prefill_ms": round(pod.prefill_s * 1e3, 1),
                "token_ms_beside_the_cache": round(pod.token_s * 1e3, 2),
                "block_us": round(pod.block_s * 1e6, 2),
            }
            print(
                json.dumps(facts) if arguments.json else "  ".join(f"{name} {value}" for name, value in facts.items())
            )


if __name__ == "__main__":
    main()
