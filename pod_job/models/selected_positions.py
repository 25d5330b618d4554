"""The last layer of a pass of which only some positions are wanted: keys and values of all, the rest of those only.

B rows, S positions, M selected positions of a row, N query heads, H head size.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from pod_job.models.arch import Arch
from pod_job.models.attention import attend_masked, with_before
from pod_job.models.attention_settings import AttentionSettings, Before, Heads
from pod_job.models.cache import Prefix
from pod_job.models.layer_attention import LayerStackAttention, Tokens

POSITIONS_FOR_ONE = 8
"""Positions of a row for each selected one, from which on the rest is left out; scores of all keys lie in memory."""


def at_positions(x: Shaped[Array, "B S *size"], select: Int[Array, "B M"] | None) -> Shaped[Array, "B _ *size"]:
    """Returns x at the selected positions of each row; None: all."""
    if select is None:
        return x
    return jnp.take_along_axis(x, select.reshape(*select.shape, *[1] * (x.ndim - 2)), axis=1)


def are_few(select: Int[Array, "B M"], positions: int) -> bool:
    """Returns whether the last layer leaves out the rest of so many positions of a row."""
    return select.shape[1] * POSITIONS_FOR_ONE <= positions


class FromSelected(LayerStackAttention):
    """Attention from the selected positions of each row to those that each sees in it; of layers known by number."""

    def __init__(self, arch: Arch, tokens: Tokens, select: Int[Array, "B M"], prefix: Prefix | None) -> None:
        super().__init__(arch, tokens, prefix)
        self.tokens, self.select = tokens, select

    def before(self, place: Int[Array, ""] | int, dtype: np.dtype | type) -> Before | None:
        before = super().before(place, dtype)
        return before and before._replace(behind=at_positions(before.behind, self.select))

    def of_queries(self, tables: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(at_positions(table, self.select) for table in tables)

    def attend(self, place: Int[Array, ""] | int, kind: Int[Array, ""] | int, heads: Heads) -> Float[Array, "B M N H"]:
        assert isinstance(kind, int)
        window = self.kinds[kind].window
        mask = selected_mask(self.tokens.segment_ids, self.select, window)
        settings = AttentionSettings(self.scales[kind], self.softcap, window)
        return attend_masked(*with_before(heads, mask), settings)


def selected_mask(
    segment_ids: Int[Array, "B S"], select: Int[Array, "B M"], window: int | None
) -> Bool[Array, "B M S"]:
    """Returns True where a selected position may look at a position of its row, as `segment_mask` does."""
    back = select[..., None] - jnp.arange(segment_ids.shape[1])
    near = back >= 0 if window is None else (back >= 0) & (back < window)
    own = at_positions(segment_ids, select)
    return near & (own[..., None] == segment_ids[:, None, :])
