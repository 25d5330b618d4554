"""Static sizes of the programs of generation."""

from dataclasses import dataclass

from pod_job.config.generate import prefill_length, prefill_prompts, prefix_slots
from pod_job.config.schema import ExtractConfig
from pod_job.extraction.feeding import StepRows


@dataclass(frozen=True)
class GenerationShape:
    """Sizes of both programs.

    Attributes:
        rows: of the cache, one prompt and its completion in each.
        prefill_rows: rows that prompts are packed into, one of each device.
        prefill_length: positions of such a row.
        prompts_per_row: most prompts in one of those.
        prefix: slots of a prefix that prompts share; 0: none is shared.
    """

    rows: StepRows
    prefill_rows: StepRows
    prefill_length: int
    prompts_per_row: int
    prefix: int = 0


def shape_for(rows: StepRows, extract: ExtractConfig, prefix: int = 0) -> GenerationShape:
    """Returns the shape for these rows of the cache, `extract.rows_per_device` of each device.

    `prefix`: tokens that prompts share.
    """
    own, S = extract.rows_per_device, extract.seq_len
    packed = StepRows(rows.count // own, rows.sharding)
    prompts = prefill_prompts(own, S, extract.prompts_per_row)
    return GenerationShape(rows, packed, prefill_length(own, S), prompts, prefix_slots(prefix))
