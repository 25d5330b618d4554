"""The decoder with taps: token ids in; logits and the chosen activations out, as return values.

Layers are stacked and looped on the device, so compile time does not grow with depth; only chosen taps are held, and
nothing past the last of them is computed when logits are not wanted.

B rows, S positions, M selected positions of a row, D hidden, N query heads, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jaxtyping import Array, Float, Int

from pod_job.models.arch import Arch
from pod_job.models.attention_settings import soft_cap
from pod_job.models.bits import HALF
from pod_job.models.cache import Cache, Kept, KeyValues, Prefix, no_key_values, no_states
from pod_job.models.decoder_layer import LayerInput, attention_mixer, decoder_layer, norm
from pod_job.models.delta_net import Sequences, delta_net
from pod_job.models.joined import JOINED_WEIGHTS, joined_projections, swapped_projections, swaps_by_projection
from pod_job.models.layer_attention import (
    LayerStackAttention,
    Projections,
    ProjectionSource,
    ToCache,
    Tokens,
    WithinRows,
)
from pod_job.models.layer_kinds import is_delta, layer_by_kind, place_of_layer
from pod_job.models.layer_loop import Carry, Layer, layers_needed, run_layers
from pod_job.models.placement import Placement
from pod_job.models.position_blocks import FilledPlacement, computes_filled, filled_blocks, padding_apart
from pod_job.models.selected_positions import FromSelected, are_few, at_positions
from pod_job.models.splice import NOTHING, Replaced, Splice, splice_at
from pod_job.models.taps import Tap, widest
from pod_job.models.token_facts import TokenFacts, token_facts
from pod_job.models.upper_halves import logits_by_rows, whole
from pod_job.models.weight_table import neutral_norm, weight_table

Activations = dict[str, Float[Array, "B M width"]]
Params = Mapping[str, Mapping[str, Array | jax.ShapeDtypeStruct]]
"""`{"params": {weight name: array}}`; of a program that is only compiled, the arrays' shapes."""


class Output(NamedTuple):
    """Result of one forward pass; `logits, activations = output`.

    Attributes:
        logits: float32 [B, S, V]; None where they were not asked for.
        activations: {tap name: [B, M or S, width]} in the decoder's dtype; empty where they were not asked for.
    """

    logits: Float[Array, "B _ V"] | None
    activations: Activations


class Means(NamedTuple):
    """Groups 1 to `slots` of positions whose vectors are averaged; positions of group 0 are in no mean."""

    groups: Int[Array, "B S"]
    slots: int

    def of(self, x: Float[Array, "B S width"]) -> Float[Array, "B M width"]:
        """Returns the mean of each group in float32; zeros of one without positions."""
        members = (self.groups[..., None] == jnp.arange(1, self.slots + 1)).astype(jnp.float32)
        sums = jnp.einsum("bsm,bsd->bmd", members, x.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
        return sums / jnp.maximum(members.sum(axis=1), 1.0)[..., None]


class Request(NamedTuple):
    """Results wanted of a forward pass: taps at the positions `select` of each row (None: all), logits likewise."""

    taps: tuple[Tap, ...]
    select: Int[Array, "B M"] | Means | None
    logits: bool
    facts: bool = False
    logits_at: Int[Array, "B M"] | None = None
    replaced: Replaced = NOTHING
    blocks: Int[Array, ""] | None = None  # of positions that are computed; None: all
    prefix: Prefix | None = None

    def positions_of(self, x: Float[Array, "B S width"]) -> Float[Array, "B _ width"]:
        """Returns x at the selected positions, or its means."""
        return self.select.of(x) if isinstance(self.select, Means) else at_positions(x, self.select)

    @property
    def to_the_end(self) -> bool:
        """Whether all layers run."""
        return self.logits or self.facts or any(tap.site == "final_norm" for tap in self.taps)

    def last_of_few(self, arch: Arch, positions: int) -> int | None:
        """Returns the last layer that runs where only a few of so many positions of a row are wanted of it; or None."""
        layers = arch.layers if self.to_the_end else max((layers_needed(tap) for tap in self.taps), default=0)
        select = self.logits_at if self.logits else self.select
        tapped = any(tap.layer >= layers - 1 and tap.site != "embed" for tap in self.taps)
        if self.facts or self.replaced or select is None or isinstance(select, Means) or not layers:
            return None
        if (tapped and self.select is not select) or is_delta(arch, layers - 1) or not are_few(select, positions):
            return None
        return layers - 1

    def site(self, site: str, x: Float[Array, "B S width"]) -> Activations:
        """Returns the taps at a site that is not in a layer, whose value is x."""
        return {tap.name: self.positions_of(x) for tap in self.taps if tap.site == site}


class Decoder(nn.Module):
    """A decoder (norms, rotary embedding, grouped-query attention, mlp: as `arch` says) that returns its taps.

    Attributes:
        arch: sizes and switches.
        taps: what `return_activations=True` returns, in any order.
        dtype: of weights and compute; norms, softmax and rotary angles are float32 in any case. With float32,
            matrix products run at the highest precision of the device.
        placement: the mesh it is compiled for; by default one device of any kind.
    """

    arch: Arch
    taps: tuple[Tap, ...]
    dtype: Any = jnp.float32
    placement: Placement = Placement()

    def setup(self) -> None:
        self.weights = {
            name: jnp.asarray(self.param(name, initializer(self.arch, name), weight.shape, self.dtype))
            for name, weight in weight_table(self.arch).items()
            if self.is_initializing() or self.has_variable("params", name)  # the head may be left out
        }
        joined = [name for name in JOINED_WEIGHTS if self.has_variable("params", name)]
        self.joined = {name: self.get_variable("params", name) for name in joined}

    def joined_weights(self, params: Params) -> dict[str, Array]:
        """Returns what may be put beside the parameters so that `extend` runs faster; may be nothing."""
        return joined_projections(self.arch, self.placement, cast(Mapping[str, Array], params["params"]))

    def __call__(
        self,
        input_ids: Int[Array, "B S"],
        *,
        positions: Int[Array, "B S"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
        select: Int[Array, "B M"] | Means | None = None,
        return_activations: bool = False,
        return_logits: bool = True,
    ) -> Output:
        """Runs one forward pass.

        Args:
            positions: for the rotary embedding; by default 0, 1, 2, ... in each row.
            segment_ids: tokens attend within their segment only; by default a row is one segment.
            select: positions whose activations are returned, per row, or groups of them that are averaged; by default
                all positions.
            return_activations: with False, the activations are empty.
            return_logits: with False, the logits are None and no layer past the last tap runs.
        """
        request = Request(self.taps if return_activations else (), select, return_logits)
        output, _, _ = self._forward(with_defaults(input_ids, positions, segment_ids), request, None)
        return output

    def score(
        self,
        input_ids: Int[Array, "B S"],
        *,
        positions: Int[Array, "B S"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
        select: Int[Array, "B M"] | None = None,
    ) -> tuple[Output, TokenFacts]:
        """Runs one forward pass, and returns activations with the facts of the same positions, without logits."""
        request = Request(self.taps, select, logits=False, facts=True)
        output, _, facts = self._forward(with_defaults(input_ids, positions, segment_ids), request, None)
        assert facts is not None
        return output, TokenFacts(*(at_positions(fact, select) for fact in facts))

    def score_spliced(self, tokens: Tokens, replaced: Replaced) -> TokenFacts:
        """Returns the facts of all tokens where the values at some taps are replaced, as by an SAE's reconstructions.

        Keys and values are of the replaced pass too: a token sees the replaced values of those before it.
        """
        _, _, facts = self._forward(tokens, Request((), None, logits=False, facts=True, replaced=replaced), None)
        assert facts is not None
        return facts

    def read(
        self,
        tokens: Tokens,
        last: Int[Array, "B M"],
        slots: int,
        *,
        prefix: Prefix | None = None,
        select: Int[Array, "B M"] | None = None,
        return_activations: bool = False,
    ) -> tuple[Output, Kept]:
        """Runs one forward pass, and returns its keys and values too, [L, B, K, H, slots] of which S are written.

        Args:
            last: positions whose logits are returned, [B, M, V], and after which states are: [J, B x M, ...].
            slots: S or more.
            prefix: tokens before those of the call, which are none of what is returned. The other arguments are as in
                `__call__`.
        """
        taps = self.taps if return_activations else ()
        request = Request(taps, select, logits=True, logits_at=last, prefix=prefix)
        if computes_filled(self.placement, tokens.ids.shape[1]):
            request = request._replace(blocks=filled_blocks(tokens.segment_ids))
            tokens = tokens._replace(segment_ids=padding_apart(tokens.segment_ids))
        nothing = Kept(self._no_keys(tokens, slots), no_states(self.arch, last.size, self.dtype))
        output, kept, _ = self._forward(tokens, request, nothing)
        assert kept is not None
        return output, kept

    def extend(
        self,
        input_ids: Int[Array, "B 1"],
        cache: Cache,
        *,
        positions: Int[Array, "B 1"],
        return_activations: bool = False,
    ) -> tuple[Output, Cache]:
        """Runs one forward pass over the next position of every row, and returns the cache with it.

        Args:
            positions: from 0, so that each is also the number of tokens that its row has in the cache.
        """
        request = Request(self.taps if return_activations else (), None, logits=True)
        tokens = with_defaults(input_ids, positions, None)
        output, kept, _ = self._forward(tokens, request, Kept(self._no_keys(tokens, 1), cache.kept.states), cache)
        assert kept is not None
        return output, cache.append(kept)

    def _no_keys(self, tokens: Tokens, slots: int) -> KeyValues:
        return no_key_values(self.arch, len(tokens.ids), slots, self.placement.kept_dtype(self.dtype))

    def _forward(
        self, tokens: Tokens, request: Request, kept: Kept | None, cache: Cache | None = None
    ) -> tuple[Output, Kept | None, TokenFacts | None]:
        with jax.default_matmul_precision("highest" if self.dtype == jnp.float32 else "default"):
            layer = self._layer(tokens, cache, request)
            x = splice_at(request.replaced, 0)("embed", self._embed(tokens))
            head = request.logits or request.facts
            activations = request.site("embed", x)
            taps = tuple(tap for tap in request.taps if tap.site not in ("embed", "final_norm"))
            last = None if cache is not None else request.last_of_few(self.arch, tokens.ids.shape[1])
            layers, to_the_end = (self.arch.layers, request.to_the_end) if last is None else (last, True)
            before = tuple(tap for tap in taps if last is None or tap.layer < last)
            (x, kept), tapped = run_layers(layer, (x, kept), layers, before, request.positions_of, to_the_end)
            if last is not None:
                select = request.logits_at if request.logits else request.select
                assert not isinstance(select, Means)
                (x, kept), sites = self._layer(tokens, None, request, select)(last, (x, kept))
                tapped |= {tap.name: sites[tap.site] for tap in taps if tap.layer == last}
                request = request._replace(select=None, logits_at=None)
            # Of layers of several kinds, what all their heads give has the size of the largest.
            activations |= {tap.name: tapped[tap.name][..., : tap.width(self.arch)] for tap in taps}
            if not request.to_the_end:
                return Output(None, activations), kept, None
            names = ("final_norm", "final_norm_bias")
            normed = norm(self.arch, self._gathered(name for name in names if name in self.weights), "final_norm", x)
            normed = splice_at(request.replaced, self.arch.layers)("final_norm", normed)
            activations |= request.site("final_norm", normed)
            if not head:
                return Output(None, activations), kept, None
            logits_of = self._head()
            if request.facts:
                facts = token_facts(normed, tokens, self.arch.vocab, self.placement, logits_of)
                return Output(None, activations), kept, facts
            return Output(logits_of(at_positions(normed, request.logits_at)), activations), kept, None

    def _embed(self, tokens: Tokens) -> Float[Array, "B S D"]:
        x = whole(self.placement.look_up(self.weights["embed"], tokens.ids))
        x = x * jnp.float32(self.arch.embed_scale).astype(self.dtype)
        if not self.arch.learned_positions:
            return x
        return x + whole(self.placement.look_up(self.weights["positions"], tokens.positions))

    def _gathered(self, names: Iterable[str]) -> dict[str, Array]:
        return {name: whole(self.placement.gather(self.weights[name])) for name in names}

    def _layer(
        self, tokens: Tokens, cache: Cache | None, request: Request, select: Int[Array, "B M"] | None = None
    ) -> Layer:
        """Returns the function that runs layer i of the stack over `tokens`; past its keys, at `select` only."""
        arch, placement, replaced = self.arch, self.placement, request.replaced
        if request.blocks is not None:
            placement = FilledPlacement(**vars(placement), blocks=request.blocks)
        within = cache is None
        attention: LayerStackAttention
        if cache is not None:
            attention = ToCache(arch, placement, tokens, cache)
        elif select is not None:
            attention = FromSelected(arch, tokens, select, request.prefix)
        else:
            attention = WithinRows(arch, placement, tokens, request.prefix, spliced=bool(replaced))
        # A kernel that adds the experts' output to the residual stream does not give it.
        output_tapped = any(tap.site in ("mlp_out", "mlp_out_pre_norm") for tap in request.taps)
        swaps = within and not replaced and swaps_by_projection(arch, placement)

        def run(
            delta: bool, i: Int[Array, ""] | int, at: Int[Array, ""] | int, carry: Carry
        ) -> tuple[Carry, dict[str, Array]]:
            x, kept = carry
            weights = self._of_layer(i, delta)
            weights |= swapped_projections(arch, weights) if swaps else {}
            x = placement.row_major(x) if within else x
            source = ProjectionSource(x, weights)

            def attend(projections: Projections) -> tuple[Array, Kept | None]:
                return attention(i, projections._replace(source=source), kept, at)

            mixer = functools.partial(attention_mixer, arch, placement, weights, attend)
            mixer = functools.partial(delta_mixer, weights, kept, at) if delta else mixer
            own = {tap: value for tap, value in replaced.items() if is_delta(arch, tap.layer) is delta}
            splice = splice_at(own, i, apart=output_tapped)
            here = placement if select is None else placement.of_some()
            carry, sites = decoder_layer(arch, here, weights, LayerInput(x, select), mixer, splice)
            return carry, {name: widened(value, widest(arch, name)) for name, value in sites.items()}

        def delta_mixer(
            weights: dict[str, Array], kept: Kept | None, at: Int[Array, ""] | int, inputs: LayerInput, splice: Splice
        ) -> tuple[Array, Kept | None, dict[str, Array]]:
            states, sequences = None if kept is None else kept.states, Sequences(tokens.segment_ids)
            if states is not None:
                before = None if within else states.of_layer(at).begun(tokens.positions[:, 0] > 0)
                sequences = Sequences(tokens.segment_ids, request.logits_at, before)
            out, new, sites = delta_net(arch, placement, weights, inputs.x, sequences, splice)
            if kept is not None and states is not None and new is not None:
                kept = kept._replace(states=states.write(at, new))
            return out, kept, sites

        return layer_by_kind(arch, run, in_place=placement.platform == "tpu")

    def _of_layer(self, i: Int[Array, ""] | int, delta: bool) -> dict[str, Array]:
        """Returns the weights of layer i, whose kind is known where its number is not."""
        weights = {}
        for name, weight in weight_table(self.arch).items():
            if not weight.stacked or (weight.layers and is_delta(self.arch, weight.layers[0]) is not delta):
                continue
            at = i if weight.layers is None else place_of_layer(self.arch, i, delta=delta)
            weights[name] = whole(self.placement.gather(self.placement.entry(self.weights[name], at)))
        if delta:
            return weights
        at = place_of_layer(self.arch, i, delta=False)
        return weights | {name: self.placement.gather(stack[at]) for name, stack in self.joined.items()}

    def _head(self) -> Callable[[Float[Array, "B S D"]], Float[Array, "B S V"]]:
        """Returns the function from the final norm's output to logits."""
        unembed = self.placement.gather(self.weights["embed"].T if self.arch.tied else self.weights["unembed"])

        def logits_of(normed: Float[Array, "B S D"]) -> Float[Array, "B S V"]:
            if unembed.dtype == HALF:
                B, S, D = normed.shape
                logits = logits_by_rows(normed.reshape(B * S, D), unembed.T).reshape(B, S, -1)
            else:
                logits = jnp.einsum("bsd,dv->bsv", normed, unembed, preferred_element_type=jnp.float32)
            return soft_cap(logits * self.arch.logit_scale, self.arch.logit_softcap)

        return logits_of


def widened(x: Float[Array, "B S width"], width: int | None) -> Float[Array, "B S _"]:
    """Returns x with zeros behind it up to this width; None: as it is."""
    return x if width in (None, x.shape[-1]) else jnp.pad(x, [(0, 0), (0, 0), (0, width - x.shape[-1])])


def with_defaults(
    input_ids: Int[Array, "B S"], positions: Int[Array, "B S"] | None, segment_ids: Int[Array, "B S"] | None
) -> Tokens:
    """Returns the tokens at positions 0, 1, 2, ... of one segment, where neither is given."""
    B, S = input_ids.shape
    positions = jnp.broadcast_to(jnp.arange(S), (B, S)) if positions is None else positions
    return Tokens(input_ids, positions, jnp.ones((B, S), jnp.int32) if segment_ids is None else segment_ids)


def initializer(arch: Arch, name: str) -> Initializer:
    """Returns random weights as Hugging Face draws them: normal(0.02), norms one (in effect), biases zero."""
    if name.endswith("norm"):
        return nn.initializers.constant(neutral_norm(arch, name))
    return nn.initializers.zeros_init() if name.endswith("bias") else nn.initializers.normal(0.02)
