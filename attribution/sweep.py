"""The frozen linear pass, backwards: gradients of many targets carried down the residual stream.

Closed form, no autograd: patterns and norm denominators are held, so every step is a matrix
product, and every constant on the way is booked to a bias column. Input-dependent.
"""

import einops
from jaxtyping import Float
from torch import Tensor

from attribution.columns import Columns, position_vectors
from circuits.sites import NormName, Site, SiteKind
from circuits.spliced import FrozenState, Placement, SplicedModel

__all__ = ["Sweep"]

Gradient = Float[Tensor, "target reached d_model"]
"""At positions 0 to the last that a target of the chunk reads."""


class Sweep:
    """Carries gradients from where targets are read down to the embedding, filling their rows.

    Args:
        spliced: the spliced model.
        state: what is held; one prompt.
        columns: the layout of the sources.
    """

    def __init__(self, spliced: SplicedModel, state: FrozenState, columns: Columns) -> None:
        self._model, self._placements = spliced.model, spliced.placements
        self._state, self._columns = state, columns
        self._positions = position_vectors(state)

    def fill(self, rows: Float[Tensor, "target source"], start: Site, g: Gradient) -> None:
        """Add every source's contribution to `rows` (modified in place).

        Args:
            rows: rows of the targets, zero where nothing was added yet.
            start: where the targets are read; a dictionary there does not hide what it reads.
            g: gradient of each target with respect to the value at `start`; positions after the
                last one present must not matter (attention is causal).
        """
        n_layers = self._model.n_layers
        match start.kind:
            case "unembed_in":
                g = self._through_norm(rows, "final", "final", 0, g)
                self._from_resid_post(rows, n_layers - 1, g)
            case "resid_post":
                self._from_resid_post(rows, start.layer, g, cut=False)
            case "resid_pre":
                self._from_resid_pre(rows, start.layer, g, cut=False)
            case "mlp_in":
                g = self._through_norm(rows, "target", "ln2", start.layer, g)
                self._from_mlp_read(rows, start.layer, g)
            case "mlp_out":
                through_skip = self._mlp(rows, start.layer, g, cut=False)
                if through_skip is not None:
                    self._from_mlp_read(rows, start.layer, through_skip)
            case "attn_out":
                through_heads = self._attention(rows, start.layer, g, cut=False)
                assert through_heads is not None
                self._from_resid_pre(rows, start.layer, through_heads)
            case _:
                raise ValueError(f"targets cannot be read at {start}")

    def _from_resid_post(self, rows: Tensor, layer: int, g: Gradient, cut: bool = True) -> None:
        if cut and self._cut(rows, Site("resid_post", layer), g):
            return
        through_mlp = self._mlp(rows, layer, g)
        if self._model.parallel:
            g_attention = self._attention(rows, layer, g)
            g = g if g_attention is None else g + g_attention
            self._from_resid_pre(rows, layer, g if through_mlp is None else g + through_mlp)
        else:
            self._from_resid_mid(rows, layer, g if through_mlp is None else g + through_mlp)

    def _from_mlp_read(self, rows: Tensor, layer: int, g: Gradient) -> None:
        if self._model.parallel:
            self._from_resid_pre(rows, layer, g)
        else:
            self._from_resid_mid(rows, layer, g)

    def _from_resid_mid(self, rows: Tensor, layer: int, g: Gradient) -> None:
        through_attention = self._attention(rows, layer, g)
        self._from_resid_pre(rows, layer, g if through_attention is None else g + through_attention)

    def _from_resid_pre(self, rows: Tensor, layer: int, g: Gradient, cut: bool = True) -> None:
        if layer > 0:
            self._from_resid_post(rows, layer - 1, g, cut)
            return
        if cut and self._cut(rows, Site("resid_pre", 0), g):
            return
        embed = Site("embed")
        self._book(rows, self._columns.blocks["token", embed], g, self._state.values[embed][0])
        if ("position", embed) in self._columns.blocks:
            start = self._columns.blocks["position", embed]
            self._book(rows, start, g, self._positions)

    def _mlp(self, rows: Tensor, layer: int, g: Gradient, cut: bool = True) -> Gradient | None:
        """Book the MLP's branch; return the gradient before the norm, through a skip, if any."""
        if cut and self._cut(rows, Site("mlp_out", layer), g):
            return None
        site = Site("mlp_raw_out", layer)
        if self._model.norm("ln2_post", layer) is not None:
            g = self._through_norm(rows, f"mlp{layer}", "ln2_post", layer, g)
        placement = self._placements.get(site)
        if placement is None:
            values = self._state.values[site][0]
            self._book(rows, self._columns.blocks["sublayer", site], g, values)
            return None
        self._book_dictionary(rows, placement, g, f"mlp{layer}")
        if placement.dictionary.W_skip is None:
            return None
        return self._through_norm(
            rows, f"mlp{layer}", "ln2", layer, g @ placement.dictionary.W_skip.T
        )

    def _attention(
        self, rows: Tensor, layer: int, g: Gradient, cut: bool = True
    ) -> Gradient | None:
        """Book attention's constants; return the gradient at the block's input through heads."""
        if cut and self._cut(rows, Site("attn_out", layer), g):
            return None
        bias = self._columns.biases[f"attn{layer}"]
        if self._model.norm("ln1_post", layer) is not None:
            g = self._through_norm(rows, f"attn{layer}", "ln1_post", layer, g)
        # [target, pos, head, d_head] throughout, so that no copy of the pattern is made a target.
        heads, n = self._model.heads(layer), g.shape[1]
        rows[:, bias] += (g @ heads.b_O).sum(1)
        pattern = self._state.values[Site("pattern", layer)][0, :, :n, :n].to(g.dtype)
        at_z = einops.einsum(g, heads.W_O, "t q d, h e d -> t q h e")
        at_v = einops.einsum(pattern, at_z, "h q k, t q h e -> t k h e")
        rows[:, bias] += einops.einsum(at_v.sum(1), heads.b_V, "t h e, h e -> t")
        at_x = einops.einsum(at_v, heads.W_V, "t k h e, h d e -> t k d")
        return self._through_norm(rows, f"attn{layer}", "ln1", layer, at_x)

    def _through_norm(
        self, rows: Tensor, bias_key: str, name: NormName, layer: int, g: Gradient
    ) -> Gradient:
        """Carry `g` from a norm's output to its input and book the norm's bias."""
        norm = self._model.norm(name, layer)
        assert norm is not None
        rows[:, self._columns.biases[bias_key]] += (g @ norm.bias).sum(1)
        kind: SiteKind = f"{name}_scale"  # type: ignore[assignment]
        scale = self._state.values[Site(kind, layer)][0, : g.shape[1]].to(g.dtype)
        return norm.adjoint(g, scale)

    def _cut(self, rows: Tensor, site: Site, g: Gradient) -> bool:
        """Book an SAE that replaces the whole value at `site`; True if there is one."""
        if site not in self._placements:
            return False
        self._book_dictionary(rows, self._placements[site], g, str(site))
        return True

    def _book_dictionary(
        self, rows: Tensor, placement: Placement, g: Gradient, bias_key: str
    ) -> None:
        write, dictionary = placement.write, placement.dictionary
        columns, n = self._columns.features[write], g.shape[1]
        per_position = zip(columns.features[:n], columns.activations, columns.starts, strict=False)
        for pos, (features, activations, start) in enumerate(per_position):
            scaled = dictionary.W_dec[features] * activations[:, None]
            rows[:, start : start + len(features)] += g[:, pos] @ scaled.T
        self._book(rows, self._columns.blocks["error", write], g, self._state.errors[write][0])
        rows[:, self._columns.biases[bias_key]] += (g @ dictionary.b_dec).sum(1)

    def _book(
        self, rows: Tensor, start: int, g: Gradient, values: Float[Tensor, "pos d_model"]
    ) -> None:
        """Add `<g[t, p], values[p]>` to the per-position columns that begin at `start`."""
        n = g.shape[1]
        rows[:, start : start + n] += einops.einsum(g, values[:n], "t p d, p d -> t p")
