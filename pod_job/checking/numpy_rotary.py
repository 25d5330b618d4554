"""Settings of attention by layer, and rotary embeddings, for `numpy_decoder`: written after transformers' own code.

S positions, H head size, R = H/2 rotary pairs.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float


def head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def layer_type(config: Any, i: int) -> str | None:
    types = getattr(config, "layer_types", None)
    return types[i] if types else None


def window_of(config: Any, i: int) -> int | None:
    """Returns how many positions a query of layer i sees; None: all before it."""
    window = getattr(config, "sliding_window", None)
    return None if layer_type(config, i) == "full_attention" or config.model_type == "llama" else window


def rotates(config: Any, i: int) -> bool:
    """Returns whether layer i has a rotary embedding; in `no_rope_layers` of SmolLM3 a 1 says that it has."""
    if config.model_type == "gpt2":
        return False
    rotated = getattr(config, "no_rope_layers", None)
    return rotated is None or bool(rotated[i])


def rotary_tables(config: Any, i: int, S: int) -> tuple[Float[np.ndarray, "S H"], Float[np.ndarray, "S H"]]:
    """Returns cosine and sine of layer i for positions 0 .. S - 1, of the dimensions that are rotated."""
    parameters = config.rope_parameters
    settings = parameters.get(layer_type(config, i), parameters)
    rotated = int(head_size(config) * settings.get("partial_rotary_factor", 1.0))
    if settings.get("rope_type") == "longrope":
        frequencies, factor = longrope_frequencies(settings, rotated, config.max_position_embeddings, S)
    else:
        frequencies, factor = rotary_frequencies(settings, rotated, config.max_position_embeddings)
    angles = np.arange(S, dtype=np.float32)[:, None] * frequencies
    angles = np.concatenate([angles, angles], -1)
    return factor * np.cos(angles), factor * np.sin(angles)


def rotary_frequencies(settings: dict[str, Any], H: int, positions: int) -> tuple[Float[np.ndarray, "R"], np.float32]:
    """Returns radians per position and the factor of cosine and sine, as in transformers' modeling_rope_utils."""
    theta, kind, factor = settings["rope_theta"], settings.get("rope_type", "default"), settings.get("factor") or 1.0
    plain = (1 / theta ** (np.arange(0, H, 2) / H)).astype(np.float32)
    original = settings.get("original_max_position_embeddings") or positions
    if kind == "linear":
        return plain / np.float32(factor), np.float32(1)
    if kind == "llama3":
        turns = original * plain / (2 * math.pi)
        low, high = settings["low_freq_factor"], settings["high_freq_factor"]
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return ((1 - smooth) * plain / factor + smooth * plain).astype(np.float32), np.float32(1)
    if kind == "yarn":
        return yarn_frequencies(settings, plain, original), np.float32(yarn_factor(settings, factor))
    assert kind in ("default", "dynamic"), kind  # up to max_position_embeddings, past which no run goes, they are one
    return plain, np.float32(1)


def longrope_frequencies(
    settings: Mapping[str, Any], H: int, positions: int, S: int
) -> tuple[Float[np.ndarray, "R"], np.float32]:
    """Returns radians per position, by the sequence's length S, and the factor of cosine and sine."""
    original = settings["original_max_position_embeddings"]
    factor = settings.get("factor") or positions / original
    growth = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    given = settings.get("attention_factor")
    divisors = np.array(settings["long_factor" if original < S else "short_factor"], np.float32)
    turns = divisors * np.float32(settings["rope_theta"]) ** (np.arange(0, H, 2, dtype=np.float32) / np.float32(H))
    return (1 / turns).astype(np.float32), np.float32(growth if given is None else given)


def yarn_frequencies(settings: dict[str, Any], plain: np.ndarray, original: int) -> Float[np.ndarray, "R"]:
    R, theta = len(plain), settings["rope_theta"]
    bounds = [
        2 * R * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (settings.get("beta_fast") or 32, settings.get("beta_slow") or 1)
    ]
    if settings.get("truncate", True):
        bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
    low, high = max(bounds[0], 0), min(bounds[1], 2 * R - 1)
    divided = np.clip((np.arange(R) - low) / ((high - low) or 0.001), 0, 1)
    return (plain / settings["factor"] * divided + plain * (1 - divided)).astype(np.float32)


def yarn_factor(settings: dict[str, Any], factor: float) -> float:
    given, mscale, of_all = (settings.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return given

    def growth(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0

    return growth(mscale) / growth(of_all) if mscale and of_all else growth(1)
