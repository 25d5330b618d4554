"""The run's own program for long rows is held against the one for short rows, which the gate compares."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pod_job.checking import short_rows
from pod_job.checking.gate_prompts import gate_prompts
from pod_job.checking.short_rows import ShortRows
from pod_job.config.load import load
from pod_job.errors import JobError
from pod_job.extraction.feeding import feeding, step_rows
from pod_job.extraction.packing import Queued, StepInput, pack_steps
from pod_job.extraction.step import Step
from pod_job.job import compile_program, load_model
from pod_job.models import attention_blocks
from pod_job.models.mesh import make_mesh
from pod_job.planning.inputs import Inputs, claim_run, read_inputs
from pod_job.run_folder.parity import ParityRecord, TapErrors
from tools.tiny_model import write_tiny_model

SEQ_LEN = 640
"""Five blocks of the kernel; the program for short rows has two."""


class Case(NamedTuple):
    """A job of long rows, and its first step's input."""

    inputs: Inputs
    compile: Callable[[], Step]
    short: ShortRows
    item: StepInput
    parity: ParityRecord


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Case]]:
    folder = tmp_path_factory.mktemp("long")
    model = write_tiny_model(folder / "model", family="mistral", layers=2)
    numbers = count()
    tasks = [{"text": f"{number} " + "word " * (4 + 3 * number)} for number in range(8)]
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))

    def make(*more: str) -> Case:
        run = folder / f"run_{next(numbers)}"
        places = [f"model.path={model}", f"tasks.path={folder / 'tasks.jsonl'}", f"storage.run_dir={run}"]
        config = load([*places, "model.dtype=float32", f"extract.seq_len={SEQ_LEN}", "extract.layers=[1]", *more])
        inputs, mesh = read_inputs(config), make_mesh(config.mesh, jax.devices()[:1])
        claim_run(inputs)
        decoder, params = load_model(inputs, mesh)
        part = feeding(step_rows(config, mesh), 0)
        program = compile_program(inputs, decoder, params, part)
        assert isinstance(program, Step)
        short = short_rows.short_rows(program, decoder, inputs, gate_prompts(inputs))
        assert short is not None
        queued = [Queued(1, number, prompt) for number, prompt in enumerate(inputs.first_prompts(8))]
        item = next(pack_steps(queued, part.feeder_rows, SEQ_LEN, config.extract.prompts_per_row))
        limit = TapErrors(median=2e-4, largest=1e-3)
        parity = ParityRecord("x", "x", "1x1", "replicated", "cpu", 2, 96, 1e-3, True, {}, "", {"layer_1": limit})
        return Case(inputs, partial(compile_program, inputs, decoder, params, part), short, item, parity)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short_rows, "LONG_ROWS", 512)
        yield make


@pytest.mark.parametrize(
    "more",
    [
        ("extract.positions=all",),
        pytest.param(("extract.positions=last", "extract.dtype=int8"), marks=pytest.mark.pod),
        pytest.param(("extract.positions=mean",), marks=pytest.mark.pod),
    ],
    ids=str,
)
def test_a_right_program_is_held_by_its_own_vectors_and_a_wrong_one_is_refused(
    case: Callable[..., Case], more: tuple[str, ...]
) -> None:
    made = case(*more)
    assert made.short.extract.seq_len < SEQ_LEN
    assert sum(map(len, made.short.chosen(made.item))) >= 3
    right = made.compile()
    made.short.hold(made.item, right(made.item, False), made.parity)
    with pytest.MonkeyPatch.context() as patch:
        # Past the second block queries see one key too many or too few: no prompt of the gate lies there.
        first_visible = attention_blocks.first_visible
        beyond = jnp.arange(SEQ_LEN) >= attention_blocks.KEYS
        patch.setattr(attention_blocks, "first_visible", lambda *a: jnp.maximum(first_visible(*a) - beyond, 0))
        wrong = made.compile()
    with pytest.raises(JobError, match=r"parity: layer_1 in the first step's rows is .* off the program for rows of"):
        made.short.hold(made.item, wrong(made.item, False), made.parity)


def test_prompts_in_every_part_of_a_long_row_are_held(case: Callable[..., Case]) -> None:
    made = case("extract.positions=all")
    places = [place for row in made.short.chosen(made.item) for place, _ in row]
    assert max(place.start for place in places) == max(place.start for place in made.item.placed)
    for place in places:
        prompt = made.short.beginning(made.item, place, 40)
        assert prompt is not None
        at = slice(place.start, place.start + len(prompt.token_ids))
        np.testing.assert_array_equal(prompt.token_ids, made.item.token_ids[place.row, at])
    whole = made.short.__class__(**(vars(made.short) | {"whole": True}))
    assert all(place.length <= 100 for place in made.item.placed if whole.beginning(made.item, place, 100))
