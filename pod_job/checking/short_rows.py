"""Parity on CPUs, where a step costs what its rows are long: a program for short rows, to which the run's own is held.

The reference is compared with the program for short rows. Before anything is stored, the first step of the run itself
is held against that program: the same code on the same devices, of which only the length of a row differs. So the
kernel's blocks, the places of prompts in long rows and their borders are compared, too, at the cost of a short row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from pod_job.checking.limits import ROWS_FOR_A_MEDIAN, as_read, excess, summary
from pod_job.checking.trial import local_taps, queued_for_gate
from pod_job.config.schema import ExtractConfig, Positions
from pod_job.errors import JobError
from pod_job.extraction.packing import Placed, Queued, StepInput, make_step
from pod_job.extraction.step import Step, StepOutput, compile_step
from pod_job.formats.relative_errors import tap_errors
from pod_job.formats.safetensors import DTYPE_OF
from pod_job.models.arch import Arch
from pod_job.models.decoder import Decoder
from pod_job.planning.inputs import Inputs
from pod_job.prompts.prompt import Prompt
from pod_job.run_folder.parity import ParityRecord, TapErrors

LONG_ROWS = 2048
"""Length from which on a program for shorter rows costs less, compiled and run twice, than a step of the run's own."""
LEAST, STEP, MOST = 256, 128, 2048
"""Lengths of short rows: the shortest, what they are multiples of, and the longest."""
HELD = 160
"""Tokens of a prompt that are held against the program for short rows: more than the queries of half a block."""
TWO_PROGRAMS = 2.0
"""Factor on a tap's limits, since both programs round."""
LENGTH_MATTERS = ("dynamic", "longrope")
"""Kinds of rotary embeddings by which a token's vector depends on how long its prompt becomes."""


@dataclass(frozen=True)
class ShortRows:
    """The step for rows of `extract.seq_len` positions, fewer than the run's.

    Attributes:
        prompt: stands for the prompts whose beginnings are held against it.
        whole: whether prompts cannot be cut for that.
        widths: of the taps.
    """

    step: Step
    extract: ExtractConfig
    prompt: Prompt
    whole: bool
    widths: dict[str, int]

    def hold(self, item: StepInput, output: StepOutput, parity: ParityRecord) -> None:
        """Compares the run's first step with this program; every host calls it at once.

        Raises:
            JobError: a tap of this host's rows differs by more than rounding explains.
        """
        chosen = self.chosen(item)
        rows = [[Queued(0, number, prompt) for number, (_, prompt) in enumerate(row)] for row in chosen]
        short = make_step(rows, len(item.token_ids), self.extract.seq_len, self.extract.prompts_per_row)
        ours, theirs = local_taps(self.step(short, more=False)), local_taps(output)
        places = [(place, *chosen[place.row][place.slot]) for place in short.placed]
        for tap, vectors in ours.items() if places else ():
            truth = np.concatenate([self.vectors(vectors, place, prompt) for place, _, prompt in places])
            held = np.concatenate([self.vectors(theirs[tap], place, prompt) for _, place, prompt in places])
            self.compare(tap, truth, held, parity)

    def chosen(self, item: StepInput) -> list[list[tuple[Placed, Prompt]]]:
        """Returns what each row takes: prompts of the step and their beginnings, those that lie deepest first."""
        rows: list[list[tuple[Placed, Prompt]]] = [[] for _ in item.token_ids]
        rooms = [self.extract.seq_len] * len(rows)
        for place in sorted(item.placed, key=lambda place: -place.start):
            at = int(np.argmax(rooms))
            prompt = self.beginning(item, place, min(rooms[at], self.extract.seq_len if self.whole else HELD))
            if prompt is not None and len(rows[at]) < self.extract.prompts_per_row:
                rows[at].append((place, prompt))
                rooms[at] -= len(prompt.token_ids)
        return rows

    def beginning(self, item: StepInput, place: Placed, room: int) -> Prompt | None:
        """Returns as much of a placed prompt as has the vectors that the step gave for it; None where that is more."""
        span = slice(place.start, place.start + place.length)
        tokens, rows, length = item.token_ids[place.row, span], None, min(place.length, room)
        match self.extract.positions:
            case Positions.mean:
                rows, length = np.flatnonzero(item.counted[place.row, span]).astype(np.int32), place.length
            case Positions.last | Positions.first:
                rows = item.chosen[place.row, place.slot : place.slot + 1] - place.start
                length = int(rows[0]) + 1
        if length > room or length < 1 or (self.whole and place.length > room):
            return None
        return replace(self.prompt, token_ids=tokens[:length], rows=rows)

    def vectors(self, rows: Sequence[np.ndarray], place: Placed, prompt: Prompt) -> np.ndarray:
        """Returns the vectors of the prompt in the output of the step that has it at `place`, as they are stored."""
        if self.extract.positions.one_per_prompt:
            return rows[place.row][place.slot : place.slot + 1]
        return rows[place.row][place.start : place.start + len(prompt.token_ids)]

    def compare(self, tap: str, short: np.ndarray, held: np.ndarray, parity: ParityRecord) -> None:
        """Raises JobError where vectors of the two programs differ by more than rounding explains."""
        dtype = DTYPE_OF[self.extract.dtype.value]
        truth, vectors = (as_read(tap, rows, self.widths, dtype).astype(np.float32) for rows in (short, held))
        errors, limit = summary(tap_errors(tap, vectors, truth)), (parity.limits or {})[tap]
        median = limit.median if len(truth) >= ROWS_FOR_A_MEDIAN else limit.largest
        if excess(errors, TapErrors(TWO_PROGRAMS * median, TWO_PROGRAMS * limit.largest)) > 1:
            raise JobError(
                f"parity: {tap} in the first step's rows is {errors.largest:.2g} off the program for rows of "
                f"{self.extract.seq_len} positions, which agrees with the reference, and rounding explains "
                f"{TWO_PROGRAMS * limit.largest:.2g}; the vectors would be wrong: use a shorter extract.seq_len, or "
                "another jax version"
            )


def short_rows(program: Step, model: Decoder, inputs: Inputs, prompts: Sequence[Prompt]) -> ShortRows | None:
    """Compiles the program for rows that the gate's `prompts` need; None where the run's own is used.

    On accelerators its step takes seconds at most, whatever its length.
    """
    extract = inputs.config.extract
    if jax.devices()[0].platform != "cpu" or extract.seq_len < LONG_ROWS or not prompts:
        return None
    tokens = sum(len(item.prompt.token_ids) for item in queued_for_gate(extract.positions, prompts))
    length = min(max(LEAST, -(-tokens // STEP) * STEP), MOST)
    if length >= extract.seq_len:
        return None
    short = replace(extract, seq_len=length)
    compiled = compile_step(model, program.params, program.feeding.rows, short)
    step = replace(program, compiled=compiled)
    return ShortRows(step, short, prompts[0], length_matters(model.arch), inputs.widths)


def length_matters(arch: Arch) -> bool:
    return any(layer.rope is not None and layer.rope.kind in LENGTH_MATTERS for layer in arch.attention)
