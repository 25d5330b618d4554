"""The trainer's layout covers all devices, divides what it splits, and moves little."""

import pytest

from pod_job.planning.trainer_layout import GroupSize, TrainerLayout, bytes_received, trainer_layout


def sae(count: int, latents: int, width: int) -> GroupSize:
    return GroupSize(count, latents, width, width)


@pytest.mark.parametrize(
    ("devices", "rows", "groups", "layout"),
    [
        (64, 65536, [sae(4, 16384, 896)], TrainerLayout(16, 4, 1)),  # rows go to the SAEs, latents stay whole
        (64, 65536, [sae(1, 65536, 3584)], TrainerLayout(8, 1, 8)),  # large gradients: latents are split
        (4, 512, [sae(3, 2048, 576), sae(2, 2048, 576)], TrainerLayout(1, 1, 4)),  # few rows: no gradients
        (1, 512, [sae(3, 2048, 576)], TrainerLayout(1, 1, 1)),
    ],
)
def test_known_trainings(devices: int, rows: int, groups: list[GroupSize], layout: TrainerLayout) -> None:
    assert trainer_layout(devices, rows, groups) == layout


@pytest.mark.parametrize("devices", [1, 6, 8, 12, 64])
@pytest.mark.parametrize("groups", [[sae(6, 96, 16)], [sae(2, 4096, 64), sae(4, 512, 64)], [sae(1, 7, 8)]])
def test_layouts_cover_the_devices_and_divide_what_they_split(devices: int, groups: list[GroupSize]) -> None:
    rows = 64 * devices
    layout = trainer_layout(devices, rows, groups)
    assert layout.data * layout.saes * layout.model == devices
    assert rows % layout.data == 0
    for group in groups:
        assert group.count % layout.saes == 0
        assert group.latents % layout.model == 0
    alone = TrainerLayout(devices, 1, 1)
    assert bytes_received(layout, rows, groups) <= bytes_received(alone, rows, groups)
