"""Gemma Scope's layouts: params.npz of the first, params.safetensors of the second; JumpReLU, input not centered.

Source: Lieberum et al., "Gemma Scope" (arXiv:2408.05147), and the loaders `gemma_2_sae_huggingface_loader` and
`gemma_3_sae_huggingface_loader` of SAELens 6.54. The files do not say of which layer and site they are.
"""

from pod_job.config.train import Architecture
from pod_job.storage.folder import Readable
from pod_job.training.architectures.shape import SaeShape
from pod_job.training.layouts.sae_lens import log_threshold
from pod_job.training.layouts.tensors import float32, read_npz, read_tensors
from pod_job.training.saes import TrainedSae, check_sae

FIRST, SECOND = "params.npz", "params.safetensors"
NAMES = {
    "encoder": "w_enc",
    "encoder_bias": "b_enc",
    "decoder": "w_dec",
    "decoder_bias": "b_dec",
    "log_threshold": "threshold",
}


def read_gemma_scope(folder: Readable, prefix: str, name: str) -> TrainedSae:
    """Returns the SAE or transcoder of a folder; `name` is that of the file. JobError where it is not sound."""
    where = f"{folder.url}/{prefix}{name}"
    read = read_npz if name == FIRST else read_tensors
    tensors = {tensor.replace("W_", "w_"): values for tensor, values in read(folder, prefix + name).items()}
    skip = "affine_skip_connection" in tensors
    parameters = float32(tensors, NAMES | ({"skip": "affine_skip_connection"} if skip else {}), where)
    parameters["log_threshold"] = log_threshold(parameters["log_threshold"])
    shape = SaeShape(
        architecture=Architecture.jump_relu,
        input_width=len(parameters["encoder"]) if parameters["encoder"].ndim else 0,
        output_width=parameters["decoder"].shape[-1] if parameters["decoder"].ndim else 0,
        latents=parameters["encoder_bias"].size,
        transcoder=True,
        skip=skip,
    )
    return check_sae(TrainedSae(shape, parameters), where)
