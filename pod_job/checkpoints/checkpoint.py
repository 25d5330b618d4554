"""A model's weights in either form: safetensors files, or a checkpoint that `pod-job convert` has made of them.

No jax. Nothing but headers is read, except where `weights_content` needs a checksum.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pod_job.checkpoints.content import checksums
from pod_job.checkpoints.huggingface import (
    TensorFiles,
    check_tensors,
    read_tensor_files,
    tensors_fingerprint,
    unread_tensors,
)
from pod_job.checkpoints.orbax import Converted, check_content, check_converted, read_converted
from pod_job.models.arch import Arch
from pod_job.models.weight_table import Weight, weight_table
from pod_job.storage.folder import Readable
from pod_job.storage.open import open_folder

Checkpoint = TensorFiles | Converted


def read_checkpoint(folder: Path | Readable) -> Checkpoint:
    """Returns the checkpoint in the folder. JobError where it is neither, or damaged."""
    source = open_folder(folder, "model.path", follow_links=True) if isinstance(folder, Path) else folder
    return read_converted(source) or read_tensor_files(source)


def fitted(arch: Arch, checkpoint: Checkpoint, head: bool | None = True) -> tuple[Arch, dict[str, Weight]]:
    """Returns architecture and weights as Hugging Face's loader makes them of this checkpoint.

    `head`: with the output matrix of logits; None: where the checkpoint has one.

    `tie_word_embeddings` is about what the checkpoint lacks: where it has an output matrix beside the embedding, both
    are used, and an output matrix alone is the embedding too.
    """
    own_head = replace(arch, tied=False)
    with_head = weight_table(own_head)
    if isinstance(checkpoint, Converted):
        has_head, has_embedding = "unembed" in checkpoint.manifest.weights, True
    else:
        has_head = with_head["unembed"].checkpoint_name in checkpoint.tensors
        has_embedding = with_head["embed"].checkpoint_name in checkpoint.tensors
    head = has_head if head is None else head
    if arch.tied and has_head and has_embedding:
        arch = own_head
    table = weight_table(arch, head)
    if arch.tied and has_head:
        table |= {"embed": replace(table["embed"], checkpoint_name=with_head["unembed"].checkpoint_name)}
    return arch, {name: as_stored(weight, checkpoint) for name, weight in table.items()}


def as_stored(weight: Weight, checkpoint: Checkpoint) -> Weight:
    """Returns the weight with the layout that the checkpoint has it in: MXFP4 lies [out, in] always."""
    tensor = None if isinstance(checkpoint, Converted) else checkpoint.tensors.get(weight.places[0][0])
    if tensor is None or tensor.scales is None or not weight.in_by_out:
        return weight
    return replace(weight, linear=True, in_by_out=False, part=weight.part and replace(weight.part, rows=True))


def check_checkpoint(checkpoint: Checkpoint, table: Mapping[str, Weight]) -> None:
    """Raises JobError naming the first tensor that is missing, misshapen or unknown."""
    if isinstance(checkpoint, Converted):
        check_converted(checkpoint, table)
    else:
        check_tensors(checkpoint, table)


def in_bfloat16(checkpoint: Checkpoint, table: Mapping[str, Weight]) -> set[str]:
    """Returns the names of the weights that the checkpoint holds as bfloat16 numbers, and nothing else."""
    if isinstance(checkpoint, Converted):
        return set()
    tensors = {name: [checkpoint.tensors[place] for place, _ in weight.places] for name, weight in table.items()}
    return {
        name
        for name, parts in tensors.items()
        if all(part.dtype.name == "bfloat16" and part.scales is None for part in parts)
    }


def unread(checkpoint: Checkpoint, table: Mapping[str, Weight]) -> list[str]:
    """Returns the names of what the checkpoint holds and the table does not need, such as heads of other tasks."""
    if isinstance(checkpoint, Converted):
        return sorted(checkpoint.manifest.weights.keys() - table.keys())
    return unread_tensors(checkpoint, table)


def weights_content(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns the checksum of each file that the weights are read from, or were converted from.

    The first time on a machine this reads them whole, unless they lie in a bucket or on the hub.

    Raises:
        JobError: converted weights are no longer those that were written.
    """
    if isinstance(checkpoint, Converted):
        check_content(checkpoint)
        return checkpoint.manifest.source
    tensors = list(checkpoint.tensors.values())
    tensors += [tensor.scales for tensor in tensors if tensor.scales is not None]
    return checksums(checkpoint.folder, sorted({tensor.file for tensor in tensors}))


def fingerprint(checkpoint: Checkpoint) -> str:
    """Returns what runs before 0.2 told checkpoints apart by; a conversion does not change it."""
    return checkpoint.manifest.fingerprint if isinstance(checkpoint, Converted) else tensors_fingerprint(checkpoint)


def model_name(found_as: str, checkpoint: Checkpoint) -> str:
    """Returns the name that provenance records; of a converted checkpoint that of its source."""
    return checkpoint.manifest.name if isinstance(checkpoint, Converted) else found_as
