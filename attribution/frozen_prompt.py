"""What all sweeps at one prompt share. Input-dependent."""

from math import prod

import torch
from torch import Tensor

from attribution.columns import Columns
from attribution.frozen import FrozenAttention, freeze_attention, working_dtype
from circuits.spliced import FrozenState, SplicedModel

__all__ = ["FrozenPrompt"]


class FrozenPrompt:
    """A spliced model held at one prompt, its sources laid out, and what sweeps use again.

    Args:
        spliced: the spliced model.
        state: what is held; one prompt.
        columns: the layout of the sources.
        memory: bytes for the folded weights of all layers; without room they are made anew.
    """

    def __init__(
        self, spliced: SplicedModel, state: FrozenState, columns: Columns, memory: int
    ) -> None:
        self.spliced, self.state, self.columns = spliced, state, columns
        self.model, self.dtype = spliced.model, working_dtype(spliced.model.dtype)
        self.bias_columns = torch.tensor(list(columns.biases.values()), device=self.model.device)
        self.bias_place = {key: i for i, key in enumerate(columns.biases)}
        size = self.model.n_layers * self.model.d_model**2 * self.dtype.itemsize
        self._keep = size <= memory
        self._frozen: dict[int, FrozenAttention] = {}
        self._buffers: dict[str, Tensor] = {}

    def attention(self, layer: int) -> FrozenAttention:
        """The frozen attention of a layer, kept if there is room for all of them."""
        if layer in self._frozen:
            return self._frozen[layer]
        frozen = freeze_attention(self.model, self.state, layer)
        if self._keep:
            self._frozen[layer] = frozen
        return frozen

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Memory that is used again and again, since fresh pages are slow; not cleared."""
        size = prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size, dtype=self.dtype, device=self.model.device)
        return self._buffers[name][:size].view(shape)
