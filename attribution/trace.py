"""A trace: all edges of the frozen model at one prompt, with the tables that name them."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from attribution.nodes import NodeTable

__all__ = ["Trace"]


@dataclass(frozen=True, eq=False)
class Trace:
    """Edges `[target, source]` and what they mean.

    Attributes:
        targets: rows: the asked-for outputs first, then active features, lower layers first.
        sources: columns: tokens, positions, active features, errors, held MLPs, biases.
        edges: signed direct effects, in the target's units (pre-activation, or logits).
        target_values: what each row sums to.
        tokens: the prompt.
        token_strings: the prompt, as text.
        model_name: the subject model.
        n_layers: its number of blocks.
    """

    targets: NodeTable
    sources: NodeTable
    edges: Float[Tensor, "target source"]
    target_values: Float[Tensor, " target"]
    tokens: Int[Tensor, " pos"]
    token_strings: tuple[str, ...]
    model_name: str
    n_layers: int

    def conservation_errors(self) -> Float[Tensor, " target"]:
        """Per target, `|sum of its row - its value|` over its largest magnitude involved.

        The denominator is the larger of `|value|` and the largest single edge of the row, so that
        a row of large terms that nearly cancel is measured against what it adds up.
        """
        gap = (self.edges.double().sum(1) - self.target_values.double()).abs()
        size = self.edges.abs().amax(1).double().maximum(self.target_values.double().abs())
        return gap / size.clamp_min(1e-30)

    def conservation_error(self) -> float:
        """The largest relative gap between a row's sum and its value."""
        return float(self.conservation_errors().max())
