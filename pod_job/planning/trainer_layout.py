"""TrainerLayout: how the trainer of SAEs splits its work over the devices of the job's mesh. No jax.

Groups of SAEs of one shape are split over `saes`, latents over `model`, rows over `data`.
"""

import math
from collections.abc import Sequence

import msgspec

from pod_job.run_folder.train_identity import TrainIdentity

BYTES_OF_GRADIENT, BYTES_OF_ROW, BYTES_OF_OUTPUT = 2, 2, 4
"""Bytes of a value of gradients, rows and outputs of split latents by which layouts are compared.

They are not those that travel: with bfloat16 an output takes 2, and a value of a matrix 4, as it is gathered too. By
these, more layouts would split latents, and by the compiler's count their steps take longer (docs/training.md).
"""


class GroupSize(msgspec.Struct, frozen=True):
    """SAEs of one shape: how many, and the sizes that their traffic depends on."""

    count: int
    latents: int
    input_width: int
    output_width: int
    transcoder: bool = False


class TrainerLayout(msgspec.Struct, frozen=True):
    """Axes of the trainer's mesh, over the devices in the order of the job's mesh."""

    data: int
    saes: int
    model: int


def layout_of(train: TrainIdentity, devices: int) -> TrainerLayout:
    """Returns how the trainer splits the SAEs over the devices."""
    shapes: dict[tuple, int] = {}
    for sae in train.saes:
        shape = (sae.architecture, sae.latents, sae.input_width, sae.output_width, sae.target is not None)
        key = (*shape, len(sae.taps), sae.skip, tuple(sae.groups), sae.k is None)
        shapes[key] = shapes.get(key, 0) + 1
    return trainer_layout(devices, train.batch_rows, [GroupSize(count, *key[1:5]) for key, count in shapes.items()])


def trainer_layout(devices: int, rows: int, groups: Sequence[GroupSize]) -> TrainerLayout:
    """Returns the layout whose step moves the fewest bytes to a device; of equal ones that with the fewest parts.

    `rows` are those of a step. Latents are split only where that saves traffic: choosing among split ones takes longer.
    """
    saes = math.gcd(devices, *(group.count for group in groups))
    latents = math.gcd(*(group.latents for group in groups))
    layouts = [
        TrainerLayout(devices // of_saes // model, of_saes, model)
        for of_saes in divisors(saes)
        for model in divisors(math.gcd(devices // of_saes, latents))
        if rows % (devices // of_saes // model) == 0
    ]
    return min(layouts, key=lambda layout: (bytes_received(layout, rows, groups), layout.model, layout.saes))


def bytes_received(layout: TrainerLayout, rows: int, groups: Sequence[GroupSize]) -> float:
    """Returns the bytes of the collectives' results on one device: gradients, rows, and outputs of split latents."""
    total = 0.0
    for group in groups:
        count, parts = group.count // layout.saes, rows // layout.data
        widths = group.input_width + group.output_width
        if layout.data > 1:
            total += BYTES_OF_GRADIENT * count * group.latents * widths / layout.model
        if layout.saes * layout.model > 1:
            total += BYTES_OF_ROW * count * parts * (widths if group.transcoder else group.input_width)
        if layout.model > 1:
            total += BYTES_OF_OUTPUT * count * parts * group.output_width
    return total


def divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
