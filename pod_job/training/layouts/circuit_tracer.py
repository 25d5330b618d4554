"""circuit-tracer's layout of transcoders: config.yaml, and layer_N.safetensors for each layer from 0.

Source: `load_transcoder_set` in github.com/safety-research/circuit-tracer, circuit_tracer/transcoder/
single_layer_transcoder.py, and `load_transcoders` in circuit_tracer/utils/hf_utils.py. Encoders lie latents first.
"""

import re
from collections.abc import Sequence

import msgspec
import numpy as np
import yaml

from pod_job.config.train import Architecture
from pod_job.errors import JobError
from pod_job.formats.records import convert, read_bounded
from pod_job.formats.safetensors import write_parts
from pod_job.models.hook_names import HOOKS, tap_of
from pod_job.models.taps import Tap, named_tap
from pod_job.storage.folder import Folder, Readable
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.layouts.sae_lens import log_threshold
from pod_job.training.layouts.tensors import float32, read_tensors
from pod_job.training.saes import WITH_THRESHOLD, SaeOrigin, TrainedSae, check_sae

CONFIG = "config.yaml"
NAMES = {"encoder": "W_enc", "encoder_bias": "b_enc", "decoder": "W_dec", "decoder_bias": "b_dec"}
THRESHOLD = "activation_function.threshold"


class Config(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """config.yaml of a set of transcoders."""

    model_name: str | None = None
    model_kind: str
    feature_input_hook: str
    feature_output_hook: str
    activation: str | None = None
    k: int | None = None


def write_transcoders(folder: Folder, saes: Sequence[TrainedSae]) -> list[int]:
    """Writes transcoders, one of a layer each; returns the layers that circuit-tracer will miss.

    Raises:
        JobError: an SAE that is no transcoder from a layer to itself, or that circuit-tracer has no activation for.
    """
    by_layer: dict[int, TrainedSae] = {}
    for sae in saes:
        layer = transcoded(sae)[0].layer
        if layer in by_layer:
            raise JobError(f"layout=circuit-tracer: two SAEs are of layer {layer}, which takes one; name one of them")
        by_layer[layer] = sae
    config = config_of(list(by_layer.values()))
    for layer, sae in by_layer.items():
        folder.replace(layer_file(layer), b"".join(write_parts(tensors_of(sae))))
    folder.replace(CONFIG, yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False).encode())
    return sorted(set(range(max(by_layer))) - by_layer.keys())


def layer_file(layer: int) -> str:
    return f"layer_{layer}.safetensors"


def transcoded(sae: TrainedSae) -> tuple[Tap, Tap]:
    """Returns input and output of a transcoder. JobError for anything else."""
    origin = sae.origin
    if not sae.shape.transcoder or len(origin.taps) != 1 or origin.target is None:
        raise JobError(f"layout=circuit-tracer: {origin.name or 'the SAE'} is no transcoder; use another layout")
    if sae.shape.architecture is Architecture.gated:
        raise JobError(f"layout=circuit-tracer: {origin.name} is gated, which it has no name for; use sae-lens")
    source, target = named_tap(origin.taps[0]), named_tap(origin.target)
    if source.layer != target.layer or source.site not in HOOKS or target.site not in HOOKS:
        taps = f"{origin.taps[0]} to {origin.target}"
        raise JobError(f"layout=circuit-tracer: {origin.name} goes from {taps}; it has transcoders within a layer")
    return source, target


def config_of(saes: Sequence[TrainedSae]) -> Config:
    """Returns the configuration that the transcoders share. JobError where they differ in it."""

    def hook(tap: Tap) -> str:
        return HOOKS[tap.site].removeprefix("blocks.{layer}.")

    configs = set()
    for sae in saes:
        source, target = transcoded(sae)
        kind = sae.shape.architecture
        activation = {Architecture.relu: "relu", Architecture.topk: "topk"}.get(kind)
        k = sae.shape.k if kind is Architecture.topk else None
        configs.add((sae.origin.model, hook(source), hook(target), activation, k))
    if len(configs) > 1:
        raise JobError("layout=circuit-tracer: the transcoders differ in model, taps, activation or k; name alike ones")
    [(model, source_hook, target_hook, activation, k)] = configs
    return Config(
        model_name=model,
        model_kind="transcoder_set",
        feature_input_hook=source_hook,
        feature_output_hook=target_hook,
        activation=activation,
        k=k,
    )


def tensors_of(sae: TrainedSae) -> dict[str, np.ndarray]:
    tensors = {theirs: sae.parameters[ours] for ours, theirs in NAMES.items()}
    tensors["W_enc"] = tensors["W_enc"].T
    if sae.shape.architecture in WITH_THRESHOLD:
        tensors[THRESHOLD] = sae.thresholds
    if sae.shape.skip:
        tensors["W_skip"] = sae.parameters["skip"].T
    return tensors


def read_transcoders(folder: Readable, names: Sequence[str]) -> dict[str, TrainedSae]:
    """Returns the transcoders by layer, `layer_12`; `names` are the files of the folder.

    Raises:
        JobError: a file is missing or damaged.
    """
    where = f"{folder.url}/{CONFIG}"
    try:
        content = yaml.safe_load(read_bounded(folder, CONFIG, 1 << 20))
    except Exception as error:  # its constructors raise what a value makes them raise
        raise JobError(f"{where}: is not YAML; copy it again") from error
    config = convert(content, Config, where, "it must be that of a transcoder_set")
    layers = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"layer_(\d{1,5})\.safetensors", name)))
    if config.model_kind != "transcoder_set" or not layers:
        raise JobError(f"{where}: model_kind={config.model_kind:.40} without layer_N.safetensors is not read here")
    return {f"layer_{layer}": read_transcoder(folder, layer, config) for layer in layers}


def read_transcoder(folder: Readable, layer: int, config: Config) -> TrainedSae:
    """Returns the transcoder of a layer."""
    where = f"{folder.url}/{layer_file(layer)}"
    tensors = read_tensors(folder, layer_file(layer))
    parameters = float32(tensors, NAMES, where)
    encoder, decoder = parameters["encoder"], parameters["decoder"]
    if encoder.ndim != 2 or decoder.ndim != 2:
        shapes = f"W_enc is {list(encoder.shape)}, W_dec {list(decoder.shape)}"
        raise JobError(f"{where}: {shapes:.200}; both must have two axes; copy it again")
    parameters["encoder"] = encoder.T
    architecture = {"relu": Architecture.relu, "topk": Architecture.topk}.get(config.activation or "")
    if architecture is None:
        architecture = Architecture.jump_relu if THRESHOLD in tensors else Architecture.relu
    if architecture is Architecture.jump_relu:
        parameters["log_threshold"] = log_threshold(float32(tensors, {"threshold": THRESHOLD}, where)["threshold"])
    if "W_skip" in tensors:
        parameters["skip"] = float32(tensors, {"skip": "W_skip"}, where)["skip"].T
    shape = SaeShape(
        architecture=architecture,
        input_width=len(parameters["encoder"]),
        output_width=decoder.shape[-1],
        latents=len(decoder),
        k=config.k if architecture is Architecture.topk else None,
        transcoder=True,
        skip="skip" in parameters,
    )
    taps = [tap_of(f"blocks.{layer}.{hook}").name for hook in (config.feature_input_hook, config.feature_output_hook)]
    origin = SaeOrigin(name=f"layer_{layer}", model=config.model_name, taps=(taps[0],), target=taps[1])
    return check_sae(TrainedSae(shape, parameters, origin), where)
