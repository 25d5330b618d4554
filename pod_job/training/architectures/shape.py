"""SaeShape: everything about a sparse autoencoder that its compiled program depends on. No jax."""

import msgspec

from pod_job.config.train import Architecture
from pod_job.errors import JobError


class SaeShape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes and switches of a sparse autoencoder (SAE), a transcoder or a crosscoder.

    Attributes:
        input_width: of the rows that are encoded; with `taps` > 1 that of all taps together.
        output_width: of the rows that are reconstructed; equal to `input_width` unless `transcoder`.
        latents: number of dictionary elements.
        k: active latents per row, exact (topk) or on average over a batch (batch_topk, matryoshka); with jump_relu the
            L0 that the sparsity loss aims at, or None for a plain L0 penalty; None with relu and gated.
        group_sizes: matryoshka: latents of each group, which add up to `latents`; the first group reconstructs alone,
            the first two together, and so on. Empty otherwise.
        transcoder: input and target are different taps: the decoder's bias is not subtracted from the input.
        skip: the output has a linear term `rows @ skip` (transcoders only).
        taps: crosscoder: rows are those of this many taps, concatenated in order, each of width
            `input_width / taps`; the decoder's bias is not subtracted from the input.
    """

    architecture: Architecture
    input_width: int
    output_width: int
    latents: int
    k: int | None = None
    group_sizes: tuple[int, ...] = ()
    transcoder: bool = False
    skip: bool = False
    taps: int = 1

    @property
    def centered(self) -> bool:
        """Whether the decoder's bias is subtracted from the input."""
        return not self.transcoder and self.taps == 1

    @property
    def auxiliary_k(self) -> int:
        """Dead latents per row in AuxK: half the input's width (Gao et al. 2024, appendix A.2)."""
        return max(1, min(self.latents, self.input_width // 2))

    def few_latents(self, parts: int) -> int:
        """Returns the dead latents of each of so many equal parts that AuxK computes alone, where there are no more.

        An eighth of the part, or its share of as many as AuxK takes.
        """
        return -(-max(self.auxiliary_k, self.latents // 8) // parts)


def check_shape(shape: SaeShape, name: str) -> None:
    """Raises JobError where the sizes of `shape` contradict each other; `name` is the SAE's in messages."""
    kind = shape.architecture.value
    for field in ("input_width", "output_width", "latents", "taps"):
        if getattr(shape, field) < 1:
            raise JobError(f"{name}: {field}={getattr(shape, field)} is too small; use 1 or more")
    if shape.architecture.has_k and shape.k is None:
        raise JobError(f"{name}: architecture={kind} needs k, the active latents per row; k=32 is usual")
    if shape.k is not None and shape.architecture in (Architecture.relu, Architecture.gated):
        raise JobError(f"{name}: k={shape.k} has no meaning with architecture={kind}; set its sparsity coefficient")
    if shape.k is not None and not 1 <= shape.k <= shape.latents:
        raise JobError(f"{name}: k={shape.k} is not between 1 and latents={shape.latents}; use a smaller k")
    check_groups(shape, name)
    check_widths(shape, name)


def check_groups(shape: SaeShape, name: str) -> None:
    """Raises JobError unless the groups are those of a matryoshka SAE and add up to its latents."""
    groups = list(shape.group_sizes)
    if (shape.architecture is Architecture.matryoshka) != bool(groups):
        raise JobError(
            f"{name}: group_sizes={groups} with architecture={shape.architecture.value}; only matryoshka has"
        )
    if groups and (min(groups) < 1 or sum(groups) != shape.latents):
        total = f"they add up to {sum(groups)}, and latents={shape.latents}"
        raise JobError(f"{name}: group_sizes={groups}: {total}; use positive sizes that add up to it")


def check_widths(shape: SaeShape, name: str) -> None:
    """Raises JobError where widths, taps and transcoder do not go together."""
    widths = f"input_width={shape.input_width}, output_width={shape.output_width}"
    if not shape.transcoder and shape.input_width != shape.output_width:
        raise JobError(f"{name}: {widths}: an SAE reconstructs its input; use equal widths, or transcoder=true")
    if shape.skip and not shape.transcoder:
        raise JobError(f"{name}: skip=true would copy the input of an SAE to its output; only transcoders have it")
    if shape.taps > 1 and shape.transcoder:
        raise JobError(f"{name}: taps={shape.taps} with transcoder=true; a crosscoder reconstructs its own taps")
    if shape.input_width % shape.taps:
        raise JobError(f"{name}: {widths} do not divide by taps={shape.taps}; taps of a crosscoder have one width")
