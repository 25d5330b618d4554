"""Reference activations: every tap of Hugging Face's torch models. Needs torch.

The parity gate's passes leave the weights in the file, in its dtype: a layer's weights are cast while the layer runs.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.utils.hooks import RemovableHandle
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from pod_job.checking.hf_cast import cast_while_running, stored_dtype
from pod_job.checking.hf_modules import Point, TapPoint, keep_layers, tap_points, text_decoder
from pod_job.checking.reference_facts import facts_of_logits
from pod_job.errors import JobError, first_line
from pod_job.formats.relative_errors import tap_errors
from pod_job.formats.rows_table import COMPUTED
from pod_job.run_folder.layout import layer_number

MOST_PADDING = 1.5
"""Positions of a forward pass over those of its sequences, at most."""
LENGTH_MATTERS = ("dynamic", "longrope")
"""Kinds of rotary embeddings that change with the length of a row."""


class NotLoaded(JobError):
    """Hugging Face's library does not load a model that is read here."""


def load_reference(folder: Path) -> PreTrainedModel:
    """Returns the folder's model in float32 with plain ("eager") attention, ready for `run_reference`."""
    torch.set_float32_matmul_precision("highest")
    disable_progress_bar()
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if getattr(config, "quantization_config", None):  # its loader would need more packages, and kernels of a GPU
        delattr(config, "quantization_config")
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        model.load_state_dict(_dequantized(folder), assign=False)
        return model.eval()
    return _from_pretrained(folder, config, torch.float32)


def load_as_stored(folder: Path) -> PreTrainedModel:
    """Returns the same model with weights in the dtype of their files, where that changes nothing else of it.

    They stay in the files' mapped pages. In float32 where the files have several dtypes, or where the model keeps
    values of its own in that dtype (Gemma: the factor on embeddings).
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    dtype = stored_dtype(folder)
    if getattr(config, "quantization_config", None) or dtype in (None, torch.float32):
        return load_reference(folder)
    torch.set_float32_matmul_precision("highest")
    disable_progress_bar()
    model = _from_pretrained(folder, config, dtype)
    own = (buffer for buffer in model.buffers() if buffer.is_floating_point())
    return model if all(buffer.dtype == torch.float32 for buffer in own) else load_reference(folder)


def _from_pretrained(folder: Path, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    config.return_dict = True  # which passes above the decoder need
    if hasattr(config, "quantization_config"):  # {} or null, which its loader refuses
        delattr(config, "quantization_config")
    loader = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText
    return loader.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation="eager",
        trust_remote_code=False,  # said, for otherwise transformers asks on stdin
        use_safetensors=True,
        local_files_only=True,
    ).eval()


def _dequantized(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a model in MXFP4 as transformers dequantizes them."""
    from safetensors.torch import load_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    for blocks in [name for name in tensors if name.endswith("_blocks")]:
        name = blocks.removesuffix("_blocks")
        tensors[name] = convert_moe_packed_tensors(tensors.pop(blocks), tensors.pop(f"{name}_scales"))
    return tensors


def hf_taps(
    folder: Path, sequences: Sequence[np.ndarray], names: Collection[str], dtype: str
) -> tuple[dict[str, Float[np.ndarray, "T _"]], dict[str, Float[np.ndarray, "T"]]]:
    """Returns the taps of sequences that lie one behind the other, in float32, and by how far `dtype` misses them.

    Args:
        folder: of the model.
        names: of the taps to return, without `logits`, and of columns: `logprob`, `entropy`. No layer past the last
            tap runs where there is no column.
        dtype: of the second pass, whose errors of rows are returned, see `tap_errors`.
    Raises:
        NotLoaded: transformers refuses the folder, for a key of its config.json that changes no vector, say.
    """
    facts = set(names) & set(COMPUTED)
    try:
        model = load_as_stored(folder)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError, RuntimeError) as error:
        raise NotLoaded(f"Hugging Face's library does not load {folder.name}: {first_line(error)}") from error
    if not facts:
        keep_layers(model, 1 + max(map(layer_number, names)))
    with cast_while_running(model, torch.float32):
        truths = _concatenated(model, sequences, names)
    if dtype == "float32":
        return truths, {name: np.zeros(len(vectors)) for name, vectors in truths.items()}
    # "sdpa" keeps scores in float32, and has no softcap and no sinks.
    if getattr(model.config, "attn_logit_softcapping", None) is None and model.config.model_type != "gpt_oss":
        model.set_attn_implementation("sdpa")
    with cast_while_running(model, getattr(torch, dtype)):
        if facts:
            _keep_logits_unrounded(model, getattr(torch, dtype))
        rounded = _concatenated(model, sequences, names)
    return truths, {name: tap_errors(name, rounded[name], truth) for name, truth in truths.items()}


def _concatenated(
    model: PreTrainedModel, sequences: Sequence[np.ndarray], names: Collection[str]
) -> dict[str, np.ndarray]:
    facts = [name for name in COMPUTED if name in names]
    wanted = {*names, "logits"} - set(facts) if facts else names
    taps: list[dict[str, np.ndarray]] = [{} for _ in sequences]
    for numbers in forward_passes(model, [len(sequence) for sequence in sequences]):
        rows = np.zeros((len(numbers), max(len(sequences[number]) for number in numbers)), np.int32)
        for row, number in zip(rows, numbers, strict=True):
            row[: len(sequences[number])] = sequences[number]
        values = run_reference(model, rows, wanted)  # what stands behind a sequence is not seen by it
        for at, number in enumerate(numbers):
            own = {name: value[at, : len(sequences[number])] for name, value in values.items()}
            taps[number] = own | (facts_of_logits(own.pop("logits"), sequences[number], facts) if facts else {})
    return {name: np.concatenate([one[name] for one in taps]) for name in names}


def _keep_logits_unrounded(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Gives the model a head of weights rounded to `dtype` whose products are summed in float32, as on devices."""
    rounded: Any = model.get_output_embeddings()
    head = torch.nn.Linear(*reversed(rounded.weight.shape), bias=rounded.bias is not None, device="meta")
    values = {name: value.to(dtype).float() for name, value in rounded.state_dict().items()}
    head.load_state_dict(values, assign=True)
    head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
    model.set_output_embeddings(head)


def forward_passes(model: PreTrainedModel, lengths: Sequence[int]) -> list[list[int]]:
    """Returns which sequences share a forward pass, since each pass casts all weights: longest first.

    Padding makes a pass longer by half at most. Where rotary embeddings depend on the length, none share one.
    """
    passes: list[list[int]] = []
    apart = length_matters(model)
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        last = passes[-1] if passes and not apart else []
        tokens = sum(lengths[other] for other in (*last, number))
        if last and lengths[last[0]] * (len(last) + 1) <= MOST_PADDING * tokens:
            last.append(number)
        else:
            passes.append([number])
    return passes


def length_matters(model: PreTrainedModel) -> bool:
    """Returns whether a token's vector depends on how long its row is."""
    settings = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [settings, *(value for value in settings.values() if isinstance(value, dict))]  # or one for each layer type
    return any(kind.get("rope_type") in LENGTH_MATTERS for kind in kinds)


def run_reference(
    model: PreTrainedModel, input_ids: Int[np.ndarray, "B S"], names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Returns the taps of one forward pass over unpadded rows, recorded with forward hooks on the torch modules.

    Hooks, because the last entry of `output_hidden_states` is the final norm's output and not the last layer's.

    Args:
        model: a causal text model of a family that `pod_job.models.arch` has, see `load_reference`.
        names: of the taps to return; all where None.
    Returns:
        float32 arrays [B, S, width]: `embed`, `logits`, the final norm's output `layer_{L}_norm`, the output
        `layer_{i}` of each decoder layer and its sites `layer_{i}.SITE`: resid_pre, resid_mid, attn_in and mlp_in
        (inputs of attention and mlp), attn_out and mlp_out (what is added to the residual stream: with post norms,
        their outputs, and attn_out_pre_norm and mlp_out_pre_norm their inputs), mlp_act (input of down_proj), q, k, v
        (projections with bias, before norm and rotation), z (input of o_proj); of mixtures of experts no mlp_act, but
        router_logits and expert_ids.
    """
    token_ids = torch.from_numpy(np.asarray(input_ids, np.int64))
    with _recorded_taps(model, names) as taps, torch.inference_mode():
        if names is None or "logits" in names:
            taps["logits"] = model(input_ids=token_ids, use_cache=False).logits
        else:
            text_decoder(model)(input_ids=token_ids, use_cache=False)
    # Copies, as arrays must own their memory.
    return {name: tap.float().numpy().reshape(*input_ids.shape, -1).copy() for name, tap in taps.items()}


@contextmanager
def _recorded_taps(model: PreTrainedModel, names: Collection[str] | None) -> Iterator[dict[str, torch.Tensor]]:
    """Yields a dict that forward passes fill with the taps of these names, or with all."""
    taps: dict[str, torch.Tensor] = {}
    hooks = [
        (_record_input if place.point is Point.input else _record_output)(taps, place)
        for place in tap_points(model)
        if names is None or place.name in names
    ]
    try:
        yield taps
    finally:
        for hook in hooks:
            hook.remove()


def _record_input(taps: dict[str, torch.Tensor], place: TapPoint) -> RemovableHandle:
    def record(_module: Any, args: Any, kwargs: Any) -> None:
        taps[place.name] = place.take(args[0] if args else kwargs["hidden_states"]).detach().clone()

    return place.module.register_forward_pre_hook(record, with_kwargs=True)


def _record_output(taps: dict[str, torch.Tensor], place: TapPoint) -> RemovableHandle:
    def record(_module: Any, _args: Any, output: Any) -> None:
        taps[place.name] = place.take(output[place.which] if isinstance(output, tuple) else output).detach().clone()

    return place.module.register_forward_hook(record)
