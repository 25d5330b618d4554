"""Models with vision, of which the text model is read: its `text_config`, and its family."""

from collections.abc import Mapping
from dataclasses import dataclass

from pod_job.models.families.family import keys


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A `model_type` with a text model.

    Attributes:
        family: of the text model.
        inert: keys beside `text_config` that no vector of a text depends on.
        flat: older files have the text model's keys beside those of vision, and no `text_config`.
        tied: what a missing `tie_word_embeddings` means.
    """

    family: str
    inert: frozenset[str]
    flat: bool = False
    tied: bool = True


_QWEN = keys("vision_config image_token_id video_token_id vision_start_token_id vision_end_token_id vision_token_id")

TOWERS: Mapping[str, Tower] = {
    "gemma3": Tower(
        family="gemma3_text",
        inert=keys(
            "vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index boi_token_id "
            "eoi_token_id image_token_id"
        ),
    ),
    "mistral3": Tower(
        family="mistral",
        inert=keys(
            "vision_config image_token_index image_token_id projector_hidden_act vision_feature_layer "
            "multimodal_projector_bias spatial_merge_size"
        ),
    ),
    "qwen2_vl": Tower(family="qwen2_vl_text", inert=_QWEN, flat=True, tied=False),
    "qwen2_5_vl": Tower(family="qwen2_5_vl_text", inert=_QWEN, flat=True, tied=False),
    "qwen3_5": Tower(family="qwen3_5_text", inert=_QWEN, tied=False),
    "qwen3_5_moe": Tower(family="qwen3_5_moe_text", inert=_QWEN, tied=False),
}
