"""What a run of one circuit leaves for runs of others that are partly the same circuit."""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from circuits.sites import Site

__all__ = ["Agreement", "HeldRun"]


@dataclass(frozen=True)
class HeldRun:
    """What one circuit's run leaves for others that are partly the same."""

    streams: dict[int, Float[Tensor, "batch pos d_model"]]
    """What enters each layer but the first."""
    writes: dict[Site, Float[Tensor, "batch pos d_model"]]
    """What goes on where dictionaries write, but behind the last attention."""
    activations: dict[Site, Float[Tensor, "batch pos _"]]
    """Features, patched or not, of the dictionaries that also write to layers above their own."""


@dataclass(frozen=True)
class Agreement:
    """Where circuits are the same as one that was run: below a layer, and before positions.

    A causal model makes the same of the same nodes there.
    """

    run: HeldRun
    """Of that circuit."""
    first_layer: int
    """The lowest layer that must be run; 0 for the embeddings too."""
    first_pos: tuple[int, ...]
    """For every layer, from which position on its dictionaries must be run."""

    @classmethod
    def beside(
        cls, run: HeldRun, different: Iterable[tuple[int, int]], *, n_layers: int, n_pos: int
    ) -> "Agreement":
        """Of circuits that differ from the one of `run` in nodes at these layers and positions.

        A node counts at the layer that it writes in; tokens are of layer -1.
        """
        first_pos = [n_pos - 1] * n_layers
        lowest = n_layers - 1
        for layer, pos in different:
            lowest = min(lowest, max(layer, 0))
            for above in range(max(layer, 0), n_layers):
                first_pos[above] = min(first_pos[above], pos)
        return cls(run, lowest, tuple(first_pos))
