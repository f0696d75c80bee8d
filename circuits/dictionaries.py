"""Sparse dictionaries: transcoders and SAEs as fixed weights with one encode and one decode.

Weights only; training lives in `circuits.training`, files in `circuits.checkpoints`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.activations import jumprelu, relu, topk
from circuits.conventions import NATIVE, Convention
from circuits.sites import DICTIONARY_SITES, Site

__all__ = [
    "SAE",
    "Activation",
    "CrossLayerTranscoder",
    "Dictionary",
    "Transcoder",
    "check_cross_layer",
]

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
        convention: what the weights expect of their input and were taught to write.
    """

    W_enc: Float[Tensor, "d_in feature"]
    W_dec: Float[Tensor, "feature d_out"]
    b_enc: Float[Tensor, " feature"]
    b_dec: Float[Tensor, " d_out"]
    activation: Activation = "relu"
    threshold: Float[Tensor, " feature"] | None = None
    k: int | None = None
    W_skip: Float[Tensor, "d_in d_out"] | None = field(default=None)
    convention: Convention = NATIVE

    decoder_axes: ClassVar[tuple[str, ...]] = ("feature", "d_out")

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2 or self.W_dec.ndim != len(self.decoder_axes):
            raise ValueError(
                f"W_enc must be [d_in, feature] and W_dec [{', '.join(self.decoder_axes)}], got "
                f"shapes {tuple(self.W_enc.shape)} and {tuple(self.W_dec.shape)}"
            )
        d_in, n_features = self.W_enc.shape
        d_out = self.d_out
        wanted: dict[str, tuple[int, ...]] = {
            "W_dec": (n_features, *self.W_dec.shape[1:]),
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
                    f"and W_dec {tuple(self.W_dec.shape)}, got {tuple(tensor.shape)}"
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
        return self.W_dec.shape[-1]

    @property
    def n_features(self) -> int:
        return self.W_enc.shape[1]

    @property
    def n_writes(self) -> int:
        """To how many layers the features write: 1, but for a cross-layer transcoder."""
        return 1

    def decoder(self, slot: int = 0) -> Float[Tensor, "feature d_out"]:
        """What each feature writes to the layer `slot` above its own, per unit of activation.

        Raises:
            ValueError: if it does not write there.
        """
        self._check_slot(slot)
        return self.W_dec

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.n_writes:
            raise ValueError(f"slot must be in [0, {self.n_writes}), got {slot}")

    def summed_decoder(self, slots: range) -> Float[Tensor, "feature d_out"]:
        """What each feature writes to several layers, added up."""
        first, *others = (self.decoder(slot) for slot in slots)
        return sum(others, first)

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
        """`a W_dec + b_dec`, plus `x W_skip` where there is a skip: at the features' own layer."""
        y = a @ self.decoder() + self.b_dec
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

    Natively it reads the MLP's input as the model computes it, norm gain and bias included
    (`mlp_in`), and predicts the MLP's output before any post-norm (`mlp_raw_out`). By its
    convention it may read the residual stream before the norm (`resid_mid`), or predict what the
    MLP adds to the stream, behind a post-norm (`mlp_out`).
    """

    def read_site(self, layer: int) -> Site:
        return Site("resid_mid" if self.convention.norm == "none" else "mlp_in", layer)

    def write_site(self, layer: int) -> Site:
        behind = self.convention.output == "after post-norm"
        return Site("mlp_out" if behind else "mlp_raw_out", layer)


@dataclass(frozen=True, eq=False)
class CrossLayerTranscoder(Transcoder):
    """One layer's part of a cross-layer transcoder (Ameisen et al. 2025, "Circuit tracing").

        a^l = act(x^l W_enc + b_enc),   y_hat^m = sum_{l <= m} a^l W_dec^l[:, m - l] + b_dec^m

    The features of layer `l` read its MLP's input and write to the MLP outputs of the layers `l`,
    `l + 1`, ...: slot `j` of `W_dec` to layer `l + j`. `b_dec` (and `W_skip`) belong to layer `l`
    alone, and so do `decode` and a call: the whole reconstruction of a layer needs the activations
    of all below, and is `SplicedModel.reconstruct`. A set of them is a whole by the rule of
    `check_cross_layer`.
    """

    W_dec: Float[Tensor, "feature write d_out"]

    decoder_axes: ClassVar[tuple[str, ...]] = ("feature", "write", "d_out")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_writes < 1:
            raise ValueError(
                f"W_dec must have at least one slot [feature, write, d_out], that of its own "
                f"layer, got shape {tuple(self.W_dec.shape)}"
            )

    @property
    def n_writes(self) -> int:
        return self.W_dec.shape[1]

    def decoder(self, slot: int = 0) -> Float[Tensor, "feature d_out"]:
        self._check_slot(slot)
        return self.W_dec[:, slot]


def check_cross_layer(transcoders: Mapping[int, CrossLayerTranscoder]) -> None:
    """Refuse cross-layer transcoders, by layer, that are not a whole.

    The rule: they lie in a run of layers without a gap, and each writes to all layers from its own
    to the last of the run. So every write goes to a layer that is replaced, and what is replaced
    has a bias of its own. The top layers of a set are such a run; what the features left out would
    have written is then part of the errors. All are of one convention.

    Raises:
        ValueError: names the layer whose number of slots is wrong, that is missing, or whose
            convention is another.
    """
    if not transcoders:
        return
    last = max(transcoders)
    for layer, transcoder in sorted(transcoders.items()):
        if layer + transcoder.n_writes != last + 1:
            raise ValueError(
                f"the cross-layer transcoder mlp.{layer} has {transcoder.n_writes} slots and so "
                f"writes to layers {layer} to {layer + transcoder.n_writes - 1}, but the last "
                f"cross-layer transcoder is mlp.{last}; want {last + 1 - layer} slots, one a layer "
                "from its own to the last, or all the layers that it was trained with"
            )
    missing = [layer for layer in range(min(transcoders), last) if layer not in transcoders]
    if missing:
        raise ValueError(
            f"cross-layer transcoders of the layers below write to {missing}, which have none of "
            f"their own; give every layer from {min(transcoders)} to {last}, or only the top layers"
        )
    for layer, transcoder in transcoders.items():
        if transcoder.convention != transcoders[last].convention:
            raise ValueError(
                f"the cross-layer transcoders mlp.{layer} and mlp.{last} are of different "
                f"conventions, {transcoder.convention} and {transcoders[last].convention}; they "
                "write to the same places, so declare one convention for the whole set"
            )


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
