"""One wave through prefill and decode, and its results on the host."""

import time
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array

from pod_job.config.schema import Positions
from pod_job.extraction.feeding import Feeding
from pod_job.extraction.transfer import local_rows, put_rows, start_copy
from pod_job.generation.completions import Ending, completed_text, find_end
from pod_job.generation.decoding import Generated, PrefillInput, Programs
from pod_job.generation.waves import Wave
from pod_job.models.decoder import Params
from pod_job.prompts.tokens import Prompt
from pod_job.run_folder.completions import Completion


def stored_range(positions: Positions, prompt_tokens: int, new_tokens: int) -> range:
    """Returns the positions of a sample that are stored."""
    match positions:
        case Positions.last:
            return range(prompt_tokens - 1, prompt_tokens + new_tokens - 1)
        case Positions.all:
            return range(prompt_tokens + new_tokens)
        case _:
            return range(prompt_tokens, prompt_tokens + new_tokens)


@dataclass(frozen=True)
class WaveResult:
    """A wave on the host.

    Attributes:
        positions: the positions of a sample that are stored.
        tokens: new tokens of each row [R, read + 1].
        ends: for each row with a prompt, how many of the tokens make the completion, and why it ends there.
        of_prompts: {tap name: [R, S or 1, width]}.
        of_tokens: {tap name: [R, read, width]}.
        read: how many new tokens the model has read.
        more: whether any feeder has another wave.
        prefill_s: seconds that prefill took.
        decode_s: seconds that all calls of decode took together.
    """

    positions: Positions
    tokens: np.ndarray
    ends: list[tuple[int, str]]
    of_prompts: dict[str, np.ndarray]
    of_tokens: dict[str, np.ndarray]
    read: int
    more: bool
    prefill_s: float
    decode_s: float

    def completion(self, row: int, prompt: Prompt, ending: Ending) -> Completion:
        count, reason = self.ends[row]
        tokens = self.tokens[row, :count].tolist()
        text = completed_text(tokens, ending)
        return Completion(prompt.sample.task_id, prompt.sample.sample_idx, len(prompt.token_ids), tokens, text, reason)

    def vectors(self, row: int, prompt_tokens: int, new_tokens: int) -> dict[str, np.ndarray]:
        """Returns the stored positions' vectors, {tap name: [positions, width]}.

        Those of the prompt are at the end of its row, those of new tokens follow.
        """
        stored = stored_range(self.positions, prompt_tokens, new_tokens)
        of_prompt = max(0, prompt_tokens - stored.start)
        vectors = {name: new[row, : len(stored) - of_prompt] for name, new in self.of_tokens.items()}
        if not of_prompt:
            return vectors
        return {name: np.concatenate([self.of_prompts[name][row, -of_prompt:], new]) for name, new in vectors.items()}


@dataclass(frozen=True)
class Generator:
    """Both programs, the weights they run on, this host's part in feeding them, and where completions end."""

    programs: Programs
    params: Params
    feeding: Feeding
    ending: Ending
    positions: Positions

    def run(self, wave: Wave, more: bool) -> WaveResult:
        """Runs prefill, then calls of decode until every row of every host has ended.

        Args:
            more: this host's feeder has another wave.
        """
        began = time.monotonic()
        started = self._prefill(wave, more)
        start_copy((started.taps, started.tokens))
        first = gather_rows(started.tokens)[:, None]
        prefilled = time.monotonic()
        tokens, ends, of_tokens = self._decode(wave, started, first)
        return WaveResult(
            positions=self.positions,
            tokens=tokens,
            ends=ends,
            of_prompts=jax.tree.map(gather_rows, started.taps),
            of_tokens=of_tokens,
            read=tokens.shape[1] - 1,
            more=bool(started.going),
            prefill_s=prefilled - began,
            decode_s=time.monotonic() - prefilled,
        )

    def _prefill(self, wave: Wave, more: bool) -> Generated:
        flags, forced = np.full(len(wave.token_ids), more, np.int32), wave.force(0, 1)[:, 0]
        arrays = (wave.token_ids, wave.segment_ids, wave.positions, wave.numbers, forced, flags)
        return self.programs.prefill(self.params, PrefillInput(*put_rows(arrays, self.feeding)))

    def _decode(
        self, wave: Wave, started: Generated, tokens: np.ndarray
    ) -> tuple[np.ndarray, list[tuple[int, str]], dict[str, np.ndarray]]:
        """Returns the fields `tokens`, `ends` and `of_tokens` of the result; copies overlap the next call."""
        ends: list[tuple[int, str] | None] = [None] * len(wave.queued)
        progress, call_taps, read, going = started.progress, [], 0, True
        while going:
            stopped = np.array([end is not None for end in ends] + [True] * (len(tokens) - len(ends)))
            forced = wave.force(read + 1, self.programs.call_tokens)
            called = self.programs.decode(self.params, progress, *put_rows((stopped, forced), self.feeding))
            start_copy((called.taps, called.tokens))
            if call_taps:
                call_taps[-1] = jax.tree.map(gather_rows, call_taps[-1])
            call_taps.append(called.taps)
            progress, read = called.progress, read + self.programs.call_tokens
            tokens = np.concatenate([tokens, gather_rows(called.tokens)], axis=1)
            for row, end in enumerate(ends):
                # The last token chosen was not read yet, so no vector belongs to it.
                ends[row] = end or find_end(tokens[row, :read].tolist(), self.ending)
            going = bool(called.going)
        call_taps[-1] = jax.tree.map(gather_rows, call_taps[-1])
        of_tokens = {name: np.concatenate([taps[name] for taps in call_taps], axis=1) for name in call_taps[0]}
        return tokens, [end for end in ends if end is not None], of_tokens


def gather_rows(array: Array) -> np.ndarray:
    """Returns this host's rows of an output."""
    return np.concatenate(local_rows(array))
