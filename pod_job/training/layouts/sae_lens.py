"""SAELens' layout, the native one: cfg.json and sae_weights.safetensors, as `SAE.load_from_disk` reads them.

Source: sae_lens 6.54, `saes/sae.py` (`load_from_disk`) and the module of each architecture beside it. SAEs for which
SAELens has no architecture (TopK and gated transcoders, crosscoders) have names of the same pattern, which it refuses.
"""

import math

import msgspec
import numpy as np

from pod_job.config.train import Architecture
from pod_job.errors import JobError
from pod_job.formats.json_text import parse_json
from pod_job.formats.records import DamagedRecord, convert, encode, read_bounded
from pod_job.formats.safetensors import write_parts
from pod_job.models.hook_names import hook_of, tap_of
from pod_job.models.taps import named_tap
from pod_job.run_folder.layout import SAE_CONFIG, SAE_WEIGHTS
from pod_job.run_folder.start import shared_name
from pod_job.storage.checksums import checksum
from pod_job.storage.folder import Folder, Readable
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.layouts.tensors import float32, read_tensors
from pod_job.training.saes import NOT_RECORDED, WITH_THRESHOLD, Parameters, SaeOrigin, TrainedSae, check_sae

CONFIG, WEIGHTS = SAE_CONFIG, SAE_WEIGHTS
VERSION = "6.0.0"
"""Version of SAELens that first read this layout."""
NAMES = {"encoder": "W_enc", "encoder_bias": "b_enc", "decoder": "W_dec", "decoder_bias": "b_dec"}
GATED_NAMES = NAMES | {"encoder_bias": "b_mag", "gate_bias": "b_gate", "gate_scale": "r_mag"}
BASES = {
    Architecture.relu: "standard",
    Architecture.gated: "gated",
    Architecture.topk: "topk",
    Architecture.jump_relu: "jumprelu",
    Architecture.batch_topk: "jumprelu",
    Architecture.matryoshka: "jumprelu",
}
"""SAELens' architectures; BatchTopK is JumpReLU at inference, with one threshold."""
ONE_THRESHOLD = (Architecture.batch_topk, Architecture.matryoshka)
BASE_OF = {
    "standard": Architecture.relu,
    "gated": Architecture.gated,
    "topk": Architecture.topk,
    "jumprelu": Architecture.jump_relu,
}


class Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Use of the SAE, as SAELens records it; `pod_job` is what it has no names for."""

    sae_lens_version: str | None = None
    model_name: str | None = None
    hook_name: str | None = None
    hook_name_out: str | None = None
    dataset_path: str | None = None
    context_size: int | None = None
    pod_job: SaeOrigin | None = None


class Config(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """cfg.json; None: not stated. The fields from `hook_name` on are those of versions before 6 without metadata."""

    architecture: str | None = None
    d_in: int
    d_sae: int
    d_out: int | None = None
    k: float | None = None
    dtype: str | None = None
    device: str | None = None
    apply_b_dec_to_input: bool | None = None
    normalize_activations: str | bool | None = None
    reshape_activations: str | None = None
    rescale_acts_by_decoder_norm: bool = False
    metadata: Metadata | None = None
    hook_name: str | None = None
    hook_point: str | None = None
    model_name: str | None = None
    activation_fn: str | None = None
    activation_fn_str: str | None = None
    activation_fn_kwargs: dict[str, object] | None = None

    @property
    def described(self) -> Metadata:
        if self.metadata is not None:
            return self.metadata
        return Metadata(hook_name=self.hook_name or self.hook_point, model_name=self.model_name)


def write_sae(folder: Folder, prefix: str, sae: TrainedSae) -> dict[str, str]:
    """Writes `prefix`cfg.json and `prefix`sae_weights.safetensors, the configuration last; returns their CRC-32C."""
    contents = {WEIGHTS: b"".join(write_parts(tensors_of(sae))), CONFIG: encode(config_of(sae), indent=2)}
    for name, content in contents.items():
        folder.replace(prefix + name, content)
    return {name: checksum([content]).crc32c for name, content in contents.items()}


def config_of(sae: TrainedSae) -> Config:
    """Returns the content of cfg.json."""
    shape, origin = sae.shape, sae.origin
    hooks = [hook_of(named_tap(tap)) if tap else None for tap in (*origin.taps[:1], origin.target)]
    metadata = Metadata(
        sae_lens_version=VERSION,
        model_name=origin.model,
        hook_name=hooks[0] if origin.taps else None,
        hook_name_out=hooks[-1] if origin.target else None,
        dataset_path=None if origin.data is None else shared_name(origin.data),
        context_size=origin.context_size,
        pod_job=msgspec.structs.replace(origin, shape=shape, data=None),
    )
    return Config(
        architecture=architecture_name(sae),
        d_in=shape.input_width,
        d_sae=shape.latents,
        d_out=shape.output_width if between_taps(sae) else None,
        k=shape.k if shape.architecture is Architecture.topk else None,
        dtype="float32",
        device="cpu",
        normalize_activations="none",
        reshape_activations="none",
        apply_b_dec_to_input=shape.centered,
        metadata=metadata,
    )


def between_taps(sae: TrainedSae) -> bool:
    """Returns whether it is a transcoder, and not an SAE whose input is not centered."""
    same = sae.origin.target is None and bool(sae.origin.taps) and sae.shape.input_width == sae.shape.output_width
    return sae.shape.transcoder and not (same and not sae.shape.skip)


def architecture_name(sae: TrainedSae) -> str:
    """Returns SAELens' name: `jumprelu`, `transcoder`, `jumprelu_skip_transcoder`; ours where it has none."""
    base = BASES[sae.shape.architecture]
    if sae.shape.taps > 1:
        return f"{base}_crosscoder"
    if not between_taps(sae):
        return base
    words = [] if base == "standard" else [base]
    return "_".join([*words, *(["skip"] if sae.shape.skip else []), "transcoder"])


def tensors_of(sae: TrainedSae) -> dict[str, np.ndarray]:
    """Returns the content of sae_weights.safetensors."""
    names = GATED_NAMES if sae.shape.architecture is Architecture.gated else NAMES
    tensors = {theirs: sae.parameters[ours] for ours, theirs in names.items()}
    if sae.shape.architecture in WITH_THRESHOLD:
        tensors["threshold"] = sae.thresholds
    if sae.shape.skip:
        tensors["W_skip"] = sae.parameters["skip"].T
    return tensors


def read_sae(folder: Readable, prefix: str = "") -> TrainedSae:
    """Returns the SAE of a folder that SAELens, or `write_sae`, has written.

    Raises:
        FileNotFoundError: there is no cfg.json.
        JobError: a file is damaged, or of an architecture or a normalization that is not known here; names it.
    """
    where = f"{folder.url}/{prefix}{CONFIG}"
    config = read_config(folder, prefix + CONFIG)
    tensors = read_tensors(folder, prefix + WEIGHTS)
    shape = shape_of(config, tensors, where)
    origin = origin_of(config)
    parameters = parameters_of(shape, tensors, f"{folder.url}/{prefix}{WEIGHTS}")
    if config.rescale_acts_by_decoder_norm:
        parameters = with_unit_decoder(parameters)
    own = origin.shape
    if own is not None and own.architecture in ONE_THRESHOLD and "log_threshold" in parameters:
        parameters["threshold"] = np.exp(parameters.pop("log_threshold").max(initial=-np.inf))
    if (factor := tensors.get("scaling_factor")) is not None and not np.all(factor == 1):
        raise JobError(f"{where}: it has a scaling_factor of finetuning, which is not supported; fold it into W_dec")
    return check_sae(TrainedSae(own or shape, parameters, origin), where)


def read_config(folder: Readable, name: str) -> Config:
    where = f"{folder.url}/{name}"
    try:
        return convert(parse_json(read_bounded(folder, name)), Config, where, "it must be as SAELens writes it")
    except ValueError as error:
        raise DamagedRecord(f"{where}: {error}; copy it again") from error


def shape_of(config: Config, tensors: dict[str, np.ndarray], where: str) -> SaeShape:
    """Returns the sizes and switches. JobError for what SAELens has and is not known here."""
    if config.normalize_activations not in (None, False, "none", "expected_average_only_in"):
        raise JobError(
            f"{where}: normalize_activations={config.normalize_activations}: rows that are normed one by one are not "
            "supported; fold it into the weights with SAELens first"
        )
    name, k = config.architecture or "standard", config.k
    if (config.activation_fn or config.activation_fn_str) == "topk":
        name, k = "topk", (config.activation_fn_kwargs or {}).get("k")
    words = [word for word in name.split("_") if word not in ("transcoder", "skip", "crosscoder")]
    transcoder = name.endswith("transcoder")
    base = words[0] if words else "standard"
    if base not in BASE_OF or len(words) > 1:
        known = ", ".join(BASE_OF)
        raise JobError(f"{where}: architecture={name:.60} is not known; {known}, and transcoders of these are")
    crosscoder = name.endswith("crosscoder") and config.metadata and config.metadata.pod_job
    return SaeShape(
        architecture=BASE_OF[base],
        input_width=config.d_in,
        output_width=config.d_out or config.d_in,
        latents=config.d_sae,
        k=int(k) if isinstance(k, int | float) and math.isfinite(k) and base == "topk" else None,
        transcoder=transcoder or (config.apply_b_dec_to_input is False and not crosscoder),
        skip="W_skip" in tensors,
        taps=len(crosscoder.taps) if crosscoder else 1,
    )


def parameters_of(shape: SaeShape, tensors: dict[str, np.ndarray], where: str) -> Parameters:
    """Returns our parameters of SAELens' tensors."""
    gated = shape.architecture is Architecture.gated
    parameters = float32(tensors, GATED_NAMES if gated else NAMES, where)
    if shape.skip:
        parameters["skip"] = float32(tensors, {"skip": "W_skip"}, where)["skip"].T
    if shape.architecture is Architecture.jump_relu:
        parameters["log_threshold"] = log_threshold(float32(tensors, {"threshold": "threshold"}, where)["threshold"])
    return parameters


def log_threshold(threshold: np.ndarray) -> np.ndarray:
    """Returns the logarithms; minus infinity for thresholds that are not positive, which ReLU makes to be 0."""
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(threshold, 0.0)).astype(np.float32)


def with_unit_decoder(parameters: Parameters) -> Parameters:
    """Returns an equal SAE whose latents are as large as what they add to the output, and whose decoder has norm 1."""
    norms = np.linalg.norm(parameters["decoder"], axis=1)
    factors = {"encoder": norms, "encoder_bias": norms, "decoder": 1 / np.maximum(norms, 1e-12)[:, None]}
    return {name: (values * factors.get(name, np.float32(1))).astype(np.float32) for name, values in parameters.items()}


def origin_of(config: Config) -> SaeOrigin:
    """Returns what the configuration says of the SAE's training."""
    described = config.described
    if described.pod_job is not None:
        return msgspec.structs.replace(described.pod_job, data=described.dataset_path)
    taps, target = (), None
    try:
        taps = (tap_of(described.hook_name).name,) if described.hook_name else ()
        target = tap_of(described.hook_name_out).name if described.hook_name_out else None
    except JobError:  # a hook that has no tap: it is named when the SAE is used
        pass
    return msgspec.structs.replace(
        NOT_RECORDED,
        model=described.model_name,
        taps=taps,
        target=target if target not in taps else None,
        data=described.dataset_path,
        context_size=described.context_size,
    )
