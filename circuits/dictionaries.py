"""Sparse dictionaries: transcoders and SAEs as fixed weights with one encode and one decode.

Weights only; training lives in `circuits.training`, files in `circuits.checkpoints`.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.activations import jumprelu, relu, topk
from circuits.sites import DICTIONARY_SITES, Site

__all__ = ["SAE", "Activation", "Dictionary", "Transcoder"]

Activation = Literal["relu", "jumprelu", "topk"]


@dataclass(frozen=True, eq=False)
class Dictionary:
    """A sparse dictionary `a = act(x W_enc + b_enc)`, `y_hat = a W_dec + b_dec (+ x W_skip)`.

    Args:
        W_enc: encoder directions, one column a feature; read on the input as it is (any input
            centring is folded into `b_enc`).
        W_dec: decoder directions, one row a feature.
        b_enc: encoder bias.
        b_dec: decoder bias, in the output space.
        activation: `relu`, `jumprelu` (needs `threshold`) or `topk` (needs `k`).
        threshold: JumpReLU thresholds, one a feature.
        k: how many features TopK keeps a token.
        W_skip: linear skip from input to output (skip transcoders).
    """

    W_enc: Float[Tensor, "d_in feature"]
    W_dec: Float[Tensor, "feature d_out"]
    b_enc: Float[Tensor, " feature"]
    b_dec: Float[Tensor, " d_out"]
    activation: Activation = "relu"
    threshold: Float[Tensor, " feature"] | None = None
    k: int | None = None
    W_skip: Float[Tensor, "d_in d_out"] | None = field(default=None)

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2 or self.W_dec.ndim != 2:
            raise ValueError(
                f"W_enc and W_dec must be matrices, got shapes {tuple(self.W_enc.shape)} and "
                f"{tuple(self.W_dec.shape)}"
            )
        d_in, n_features = self.W_enc.shape
        n_rows, d_out = self.W_dec.shape
        wanted: dict[str, tuple[int, ...]] = {
            "W_dec": (n_features, d_out),
            "b_enc": (n_features,),
            "b_dec": (d_out,),
            "threshold": (n_features,),
            "W_skip": (d_in, d_out),
        }
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{name} must have shape {shape} to go with W_enc {tuple(self.W_enc.shape)} "
                    f"and W_dec {(n_rows, d_out)}, got {tuple(tensor.shape)}"
                )
        if self.activation == "jumprelu" and self.threshold is None:
            raise ValueError("activation 'jumprelu' needs a threshold for every feature, got none")
        if self.activation == "topk" and (self.k is None or self.k < 1):
            raise ValueError(f"activation 'topk' needs k >= 1, got {self.k}")
        if self.activation not in ("relu", "jumprelu", "topk"):
            raise ValueError(f"activation must be relu, jumprelu or topk, got {self.activation!r}")

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def n_features(self) -> int:
        return self.W_enc.shape[1]

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """`x W_enc + b_enc`."""
        return x @ self.W_enc + self.b_enc

    def activate(self, z: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """The activation function on pre-activations."""
        if self.activation == "jumprelu":
            assert self.threshold is not None
            return jumprelu(z, self.threshold)
        if self.activation == "topk":
            assert self.k is not None
            return topk(z, self.k)
        return relu(z)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch feature"]:
        """Feature activations on `x`."""
        return self.activate(self.pre_activations(x))

    def decode(
        self, a: Float[Tensor, "*batch feature"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_out"]:
        """`a W_dec + b_dec`, plus `x W_skip` where there is a skip."""
        y = a @ self.W_dec + self.b_dec
        return y if self.W_skip is None else y + x @ self.W_skip

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction of the output from the input."""
        return self.decode(self.encode(x), x)

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> "Dictionary":
        """The same dictionary in another dtype or on another device."""
        moved = {
            name: tensor.to(dtype=dtype, device=device)
            for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip")
            if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Transcoder(Dictionary):
    """Predicts an MLP's output from its input (Dunefsky et al. 2024).

    Reads the MLP's input as the model computes it, norm gain and bias included
    (`mlp_in`), and predicts the MLP's output before any post-norm (`mlp_raw_out`).
    """

    def read_site(self, layer: int) -> Site:
        return Site("mlp_in", layer)

    def write_site(self, layer: int) -> Site:
        return Site("mlp_raw_out", layer)


@dataclass(frozen=True, eq=False)
class SAE(Dictionary):
    """Reconstructs one activation: a residual stream, or the output of attention or of an MLP."""

    site: str = "resid_post"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.site not in DICTIONARY_SITES:
            raise ValueError(f"an SAE sits at one of {DICTIONARY_SITES}, got {self.site!r}")
        if self.d_in != self.d_out:
            raise ValueError(f"an SAE has d_in = d_out, got {self.d_in} and {self.d_out}")

    def read_site(self, layer: int) -> Site:
        return Site(self.site, layer)  # type: ignore[arg-type]

    def write_site(self, layer: int) -> Site:
        return self.read_site(layer)
