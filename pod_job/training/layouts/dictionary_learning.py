"""dictionary_learning's layout: ae.pt, a state dict of torch, and config.json with the class of the dictionary.

Source: `load_dictionary` in dictionary_learning 0.1.0, utils.py, dictionary.py and trainers/. Its files are pickles of
torch, which `torch.load(weights_only=True)` reads without running anything.
"""

# pyright: reportMissingImports=false
# torch comes with an extra.
import re
import warnings
import zipfile
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import msgspec
import numpy as np

from pod_job.config.train import Architecture
from pod_job.errors import JobError, first_line
from pod_job.formats.json_text import parse_json
from pod_job.formats.records import convert, encode, read_bounded
from pod_job.models.taps import named_tap
from pod_job.storage.folder import Folder, Readable
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.layouts.sae_lens import log_threshold
from pod_job.training.layouts.tensors import MOST_EXPANDED, float32, read_whole
from pod_job.training.saes import Parameters, SaeOrigin, TrainedSae, check_sae

CONFIG, WEIGHTS = "config.json", "ae.pt"
CLASSES = {
    Architecture.relu: "AutoEncoder",
    Architecture.gated: "GatedAutoEncoder",
    Architecture.topk: "AutoEncoderTopK",
    Architecture.batch_topk: "BatchTopKSAE",
    Architecture.matryoshka: "MatryoshkaBatchTopKSAE",
    Architecture.jump_relu: "JumpReluAutoEncoder",
}
PLAIN = {"encoder": "W_enc", "encoder_bias": "b_enc", "decoder": "W_dec", "decoder_bias": "b_dec"}
LINEAR = {"encoder": "encoder.weight", "encoder_bias": "encoder.bias", "decoder": "decoder.weight"}
NAMES = {
    "AutoEncoder": LINEAR | {"decoder_bias": "bias"},
    "AutoEncoderNew": LINEAR | {"decoder_bias": "decoder.bias"},
    "GatedAutoEncoder": {
        "encoder": "encoder.weight",
        "encoder_bias": "mag_bias",
        "decoder": "decoder.weight",
        "decoder_bias": "decoder_bias",
        "gate_bias": "gate_bias",
        "gate_scale": "r_mag",
    },
    "AutoEncoderTopK": LINEAR | {"decoder_bias": "b_dec"},
    "BatchTopKSAE": LINEAR | {"decoder_bias": "b_dec", "threshold": "threshold"},
    "MatryoshkaBatchTopKSAE": PLAIN | {"threshold": "threshold"},
    "JumpReluAutoEncoder": PLAIN | {"log_threshold": "threshold"},
}
"""Names of our parameters in the state dict of each class; those of a torch Linear lie output first."""
UNCENTERED = ("AutoEncoderNew", "JumpReluAutoEncoder")
SUBMODULES = {"resid_post": "resid_post", "mlp_out": "mlp", "attn_out": "attn"}


class Trainer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of config.json that says what the dictionary is."""

    dict_class: str
    trainer_class: str | None = None
    activation_dim: int | None = None
    dict_size: int | None = None
    k: int | None = None
    layer: int | None = None
    lm_name: str | None = None
    submodule_name: str | None = None
    steps: int | None = None
    group_sizes: list[int] | None = None


class Buffer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The part of config.json that describes the activations; `pod_job` is our record of them."""

    d_submodule: int | None = None
    ctx_len: int | None = None
    pod_job: SaeOrigin | None = None


class Config(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """config.json."""

    trainer: Trainer
    buffer: Buffer | None = None


def write_dictionary(folder: Folder, prefix: str, sae: TrainedSae) -> None:
    """Writes ae.pt, and config.json after it. JobError for a transcoder or a crosscoder, or without torch."""
    shape, origin = sae.shape, sae.origin
    if not shape.centered:
        kind = "a transcoder" if shape.transcoder else "a crosscoder"
        raise JobError(f"layout=dictionary-learning: {origin.name or 'the SAE'} is {kind}; use the layout sae-lens")
    torch, file = import_torch(), BytesIO()
    torch.save({name: torch.from_numpy(values) for name, values in state_of(sae).items()}, file)
    tap = named_tap(origin.taps[0]) if origin.taps else None
    trainer = Trainer(
        dict_class=class_of(sae),
        activation_dim=shape.input_width,
        dict_size=shape.latents,
        k=shape.k if shape.architecture is not Architecture.jump_relu else None,
        layer=tap.layer if tap else None,
        lm_name=origin.model,
        submodule_name=f"{SUBMODULES.get(tap.site, tap.site)}_layer_{tap.layer}" if tap else None,
        steps=origin.steps,
        group_sizes=list(shape.group_sizes) or None,
    )
    buffer = Buffer(
        d_submodule=shape.input_width,
        ctx_len=origin.context_size,
        pod_job=msgspec.structs.replace(origin, shape=shape, data=None),
    )
    folder.replace(prefix + WEIGHTS, file.getvalue())
    folder.replace(prefix + CONFIG, encode(Config(trainer=trainer, buffer=buffer), indent=2))


def class_of(sae: TrainedSae) -> str:
    return CLASSES[sae.shape.architecture]


def state_of(sae: TrainedSae) -> dict[str, np.ndarray]:
    """Returns the state dict.

    A JumpReLU dictionary there does not center its input: what centering subtracts goes into the encoder's bias.
    """
    name, shape = class_of(sae), sae.shape
    parameters = dict(sae.parameters)
    if shape.architecture is Architecture.jump_relu:
        parameters["log_threshold"] = sae.thresholds
        shift = parameters["decoder_bias"].astype(np.float64) @ parameters["encoder"].astype(np.float64)
        parameters["encoder_bias"] = (parameters["encoder_bias"] - shift).astype(np.float32)
    state = {theirs: np.array(parameters[ours]) for ours, theirs in NAMES[name].items()}
    state = {key: np.array(v.T, order="C") if key.endswith("coder.weight") else v for key, v in state.items()}
    if shape.architecture.has_k:
        state |= {"k": np.array(shape.k, np.int32), "threshold": state.get("threshold", np.array(-1, np.float32))}
    if shape.group_sizes:
        state["group_sizes"] = np.array(shape.group_sizes)
    return state


def read_dictionary(folder: Readable, prefix: str) -> TrainedSae:
    """Returns the dictionary of a folder. JobError where a file is damaged, of a class not known, or without torch."""
    where = f"{folder.url}/{prefix}{CONFIG}"
    try:
        content = parse_json(read_bounded(folder, prefix + CONFIG))
    except FileNotFoundError:
        raise JobError(f"{where}: is not there; copy the whole folder of the SAE") from None
    except ValueError as error:
        raise JobError(f"{where}: {error}; copy it again") from error
    config = convert(content, Config, where, "it must be as dictionary_learning writes it")
    name = config.trainer.dict_class
    if name not in NAMES:
        raise JobError(f"{where}: dict_class={name:.60} is not known; {', '.join(NAMES)} are")
    state = read_state(folder, prefix + WEIGHTS)
    parameters = float32(state, NAMES[name], f"{folder.url}/{prefix}{WEIGHTS}")
    if "encoder.weight" in state:
        parameters |= {key: parameters[key].T for key in ("encoder", "decoder")}
    if "log_threshold" in parameters:
        parameters["log_threshold"] = log_threshold(parameters["log_threshold"])
    if "threshold" in parameters:
        parameters["threshold"] = np.maximum(parameters["threshold"], np.float32(0))
    origin = config.buffer.pod_job if config.buffer and config.buffer.pod_job else described(config)
    return check_sae(TrainedSae(shape_of(config.trainer, parameters, state, where), parameters, origin), where)


def whole_numbers(state: Mapping[str, np.ndarray], name: str, where: str) -> list[int]:
    """Returns the whole numbers of a tensor, none where it is not there. JobError for other values."""
    values = np.atleast_1d(state.get(name, np.zeros(0)))
    real = values.ndim == 1 and np.can_cast(values.dtype, np.float64, "same_kind")
    if not real or not np.all(np.isfinite(values)) or np.any(values != np.round(values)):
        raise JobError(f"{where}: {name} is {values.dtype} {list(values.shape)}; whole numbers are needed")
    return [int(value) for value in values]


def shape_of(trainer: Trainer, parameters: Parameters, state: Mapping[str, np.ndarray], where: str) -> SaeShape:
    architecture = {name: kind for kind, name in CLASSES.items()} | {"AutoEncoderNew": Architecture.relu}
    groups = whole_numbers(state, "group_sizes", where)
    decoder, ks = parameters["decoder"], whole_numbers(state, "k", where)
    return SaeShape(
        architecture=architecture[trainer.dict_class],
        input_width=decoder.shape[-1] if decoder.ndim else 0,
        output_width=decoder.shape[-1] if decoder.ndim else 0,
        latents=parameters["encoder_bias"].size,
        k=ks[0] if ks else trainer.k,
        group_sizes=tuple(groups),
        transcoder=trainer.dict_class in UNCENTERED,
    )


def described(config: Config) -> SaeOrigin:
    """Returns what config.json of dictionary_learning says of the training."""
    trainer, taps = config.trainer, ()
    names = {name: site for site, name in SUBMODULES.items()}
    match = re.match(r"(resid_post|mlp|attn)(?:_out)?_layer_(\d{1,5})$", trainer.submodule_name or "")
    if match:
        taps = (f"layer_{match[2]}" + ("" if match[1] == "resid_post" else f".{names[match[1]]}"),)
    context = config.buffer.ctx_len if config.buffer else None
    return SaeOrigin(model=trainer.lm_name, taps=taps, steps=trainer.steps, context_size=context)


def read_state(folder: Readable, name: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a file of torch; nothing in it is run, and nothing larger than the file is allocated."""
    where, torch, data = f"{folder.url}/{name}", import_torch(), read_whole(folder, name)
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_EXPANDED * len(data):
                raise ValueError("it expands to many times its size")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols of pickle that torch does not write
            state = torch.load(BytesIO(data), weights_only=True, map_location="cpu")
        if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError("it is no state dict")
        if sum(value.numel() * value.element_size() for value in state.values()) > MOST_EXPANDED * len(data):
            raise ValueError("its tensors are many times its size")
        return {
            str(key): (value.float() if value.is_floating_point() else value).numpy() for key, value in state.items()
        }
    except Exception as error:  # torch raises whatever a damaged pickle makes it raise
        raise JobError(f"{where}: not a usable file of torch: {first_line(error)}; copy it again") from error


def import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise JobError("dictionary_learning's layout needs torch; pip install 'tpu-pod-activations[torch]'") from None
    return torch
