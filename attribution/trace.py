"""A trace: all edges of the frozen model at one prompt, with the tables that name them."""

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Float, Int
from torch import Tensor

from attribution.edges import Edges
from attribution.nodes import NodeTable
from attribution.targets import Readout
from circuits.spliced import HeldMode

__all__ = ["Trace"]


@dataclass(frozen=True, eq=False)
class Trace:
    """Edges `[target, source]` and what they mean.

    Attributes:
        targets: rows: the asked-for outputs first, then active features, lower layers first.
        sources: columns: tokens, positions, active features, errors, held MLPs, biases.
        blocks: signed direct effects, in the target's units (pre-activation, or logits), without
            the zeros that causality leaves.
        target_values: what each row sums to.
        tokens: the prompt.
        token_strings: the prompt, as text.
        model_name: the subject model.
        n_layers: its number of blocks.
        outputs: what the first targets read, where.
        mode: `exact`, or `replace` where the reconstructions went on instead of the true values.
        left_out: an upper bound on the share of the influence on the outputs that runs through
            features without a row; 0 where every active feature has one.
    """

    targets: NodeTable
    sources: NodeTable
    blocks: Edges
    target_values: Float[Tensor, " target"]
    tokens: Int[Tensor, " pos"]
    token_strings: tuple[str, ...]
    model_name: str
    n_layers: int
    outputs: tuple[Readout, ...] = ()
    mode: HeldMode = "exact"
    left_out: float = 0.0

    @cached_property
    def edges(self) -> Float[Tensor, "target source"]:
        """All edges as one matrix (built on first use; `blocks` needs a quarter of the memory)."""
        return self.blocks.dense()

    def conservation_errors(self) -> Float[Tensor, " target"]:
        """Per target, `|sum of its row - its value|` over its largest magnitude involved.

        The denominator is the larger of `|value|` and the largest single edge of the row, so that
        a row of large terms that nearly cancel is measured against what it adds up.
        """
        values = self.target_values.double()
        size = self.blocks.row_maxima().double().maximum(values.abs())
        return (self.blocks.row_sums() - values).abs() / size.clamp_min(1e-30)

    def conservation_error(self) -> float:
        """The largest relative gap between a row's sum and its value."""
        return float(self.conservation_errors().max())
