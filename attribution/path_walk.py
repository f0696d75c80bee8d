"""From one target down the residual stream: the paths that open at each layer, and what they meet.

Only the direct path and those through one head; the engine carries all of them at once.
Input-dependent.
"""

from collections.abc import Callable, Iterator

import einops
import torch
from jaxtyping import Float
from torch import Tensor

from attribution.columns import index_columns
from attribution.frozen import freeze_attention, working_dtype
from attribution.invariant.routes import Head
from attribution.targets import Readout
from attribution.written import (
    Written,
    written_across_layers,
    written_beside_features,
    written_by_dictionary,
    written_by_held_mlp,
    written_by_inputs,
)
from circuits.dictionaries import CrossLayerTranscoder
from circuits.sites import Site
from circuits.spliced import FrozenState, SplicedModel
from circuits.subject import SubjectModel

__all__ = ["Walk", "held_scales"]


def held_scales(model: SubjectModel, state: FrozenState) -> dict[str, Float[Tensor, " pos"]]:
    """Every held norm denominator, by norm and layer: `ln1.3`, `ln2_post.0`, `final`."""
    scales = {}
    for site in model.scale_sites():
        name = site.kind.removesuffix("_scale")
        scales[name if name == "final" else f"{name}.{site.layer}"] = state.values[site][0, :, 0]
    return scales


class Walk:
    """The direct path of one target and its paths through single heads.

    Args:
        spliced: the spliced model.
        state: what is held; one prompt.
        readout: the target.
    """

    def __init__(self, spliced: SplicedModel, state: FrozenState, readout: Readout) -> None:
        self.spliced, self.model, self.state, self.readout = spliced, spliced.model, state, readout
        self.columns = index_columns(spliced, state)
        self.dtype = working_dtype(self.model.dtype)
        nodes, device = self.columns.nodes, self.model.device
        self.positions = torch.tensor([node.pos for node in nodes], device=device)
        self.activations = torch.tensor(
            [node.activation if node.kind == "feature" else 1.0 for node in nodes],
            dtype=self.dtype,
            device=device,
        )
        self.scales = {k: v.to(self.dtype) for k, v in held_scales(self.model, state).items()}
        self.reads_through, self.direction = self._reading()
        self.heads: list[Head | None] = []
        self.read: list[Float[Tensor, " d_model"]] = []
        self.attention: list[Float[Tensor, " source"]] = []
        self.virtual_weights: list[Float[Tensor, " source"]] = []
        self.denominators: list[Float[Tensor, " source"]] = []
        self.in_front = torch.ones((), dtype=self.dtype, device=device)
        if self.reads_through is not None:
            self.in_front = self.scales[self.reads_through][readout.pos]
        if readout.site.kind != "attn_out":
            here = (self.positions == readout.pos).to(self.dtype)
            self._open(None, self.direction, here, self.in_front.expand(len(nodes)))

    def _reading(self) -> tuple[str | None, Float[Tensor, " d_model"]]:
        """The norm that the target reads through, and its vector before that norm's division."""
        site, vector = self.readout.site, self.readout.vector.to(self.dtype)
        if site.kind not in ("mlp_in", "unembed_in"):
            return None, vector
        name = "ln2" if site.kind == "mlp_in" else "final"
        norm = self.model.norm(name, site.layer)
        assert norm is not None
        label = name if name == "final" else f"{name}.{site.layer}"
        return label, norm.to(self.dtype).adjoint(vector, vector.new_ones(1))

    def down(self) -> None:
        """Walk from the target to the inputs, or to an SAE that cuts the residual stream."""
        for kind, site in _places_below(self.spliced, self.readout.site):
            match kind:
                case "heads":
                    self._heads(site.layer)
                case "across layers":
                    self._meet(written_beside_features, site)
                    self._meet(written_across_layers, site)
                case "dictionary":
                    self._meet(written_by_dictionary, site)
                case "held":
                    self._meet(written_by_held_mlp, site)
                case _:
                    self._meet(written_by_inputs)

    def _open(
        self,
        head: Head | None,
        read: Float[Tensor, " d_model"],
        attention: Float[Tensor, " source"],
        denominators: Float[Tensor, " source"],
    ) -> None:
        self.heads.append(head)
        self.read.append(read)
        self.attention.append(attention)
        self.denominators.append(denominators.clone())
        self.virtual_weights.append(torch.zeros_like(attention))

    def _heads(self, layer: int) -> None:
        """A path opens through every head of a layer."""
        frozen, pos = freeze_attention(self.model, self.state, layer), self.readout.pos
        at_z = einops.einsum(self.direction, frozen.W_O, "d, h e d -> h e")
        by_group = einops.rearrange(at_z, "(kv g) e -> kv g e", g=frozen.group)
        read = einops.einsum(by_group, frozen.W_V, "kv g e, kv e d -> kv g d").flatten(0, 1)
        pattern = self.state.values[Site("pattern", layer)][0, :, pos].to(self.dtype)
        scales = self.in_front * self.scales[f"ln1.{layer}"][self.positions]
        if (behind := self.scales.get(f"ln1_post.{layer}")) is not None:
            scales = scales * behind[pos]
        for head, vector in enumerate(read):
            self._open((layer, head), vector, pattern[head][self.positions], scales)

    def _meet(self, by: Callable[..., Written], *site: Site) -> None:
        """What one place writes, along every path that is open."""
        written: Written = by(self.spliced, self.state, self.columns, *site, self.readout.pos + 1)
        columns = written.columns
        if not len(columns):
            return
        met = torch.stack(self.read) @ torch.cat(written.vectors).T / self.activations[columns]
        if site and site[0].kind == "mlp_raw_out":
            behind = self.scales.get(f"ln2_post.{site[0].layer}")
            if behind is not None:
                at_source = behind[self.positions[columns]]
                met = met * at_source
                for denominators in self.denominators:
                    denominators[columns] *= at_source
        for weights, values in zip(self.virtual_weights, met, strict=True):
            weights[columns] += values


def _places_below(spliced: SplicedModel, site: Site) -> Iterator[tuple[str, Site]]:
    """What the residual stream leads to from where a target reads, in the order of meeting it."""
    model, placed = spliced.model, spliced.placements

    def mlp(layer: int) -> tuple[str, Site]:
        replaced = spliced.mlp_site(layer)
        if replaced not in placed:
            return "held", replaced
        crossing = isinstance(placed[replaced].dictionary, CrossLayerTranscoder)
        return ("across layers" if crossing else "dictionary"), replaced

    def attention(layer: int) -> tuple[str, Site]:
        out = Site("attn_out", layer)
        return ("dictionary" if out in placed and out != site else "heads"), out

    top = site.layer - 1
    match site.kind:
        case "mlp_out":
            yield mlp(site.layer)
            return
        case "attn_out":
            yield attention(site.layer)
        case "mlp_in" | "resid_mid":
            if not model.parallel:
                yield attention(site.layer)
        case "resid_post":
            top = site.layer
        case "unembed_in":
            top = model.n_layers - 1
    in_stream = site.kind != "attn_out"
    for layer in range(top, -1, -1):
        cut = Site("resid_post", layer)
        if cut in placed and cut != site:
            yield "dictionary", cut
            return
        sae = Site("mlp_out", layer)
        by_sae = sae in placed and sae != spliced.mlp_site(layer)
        yield ("dictionary", sae) if by_sae else mlp(layer)
        if in_stream or attention(layer)[0] == "dictionary":
            yield attention(layer)
    first = Site("resid_pre", 0)
    if first in placed and first != site:
        yield "dictionary", first
    else:
        yield "inputs", first
