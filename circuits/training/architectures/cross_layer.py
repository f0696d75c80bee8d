"""Cross-layer transcoders (Ameisen et al. 2025, "Circuit tracing", appendix on training).

    a^l = act(x^l W_enc^l^T + b_enc^l)
    y_hat^m = sum_{l <= m} a^l W_dec^{l->m} + b_dec^m (+ x^m W_skip^m)
    loss = mean over tokens of sum_m |y_hat^m - y^m|^2, plus what `act` adds in each layer

`act` and what it adds (AuxK, a penalty) are those of a plain dictionary whose targets are all the
layers that a layer's features write to, side by side: a penalty on decoder norms sees the norm over
all of them, as in the paper.

Layers lie side by side too: x and y are [token, layer * d], and parameters are packed, so that
everything outside sees one dictionary:

    W_enc [layer * F, d], b_enc [layer * F], W_dec: all [F, writes * d], flat, one after the other,
    b_dec [layer * d], W_skip [layer * d, d], and what `act` adds likewise
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.training.architectures.base import (
    Code,
    FeatureRule,
    Finished,
    Memory,
    active_per_token,
    affine_gradients,
    mean_square,
)
from circuits.training.step import Moment, Parameters, Step

__all__ = ["CrossLayer", "cross_layer_error", "pack", "unpack"]


def pack(parts: Sequence[Parameters]) -> Parameters:
    """Parameters (or their gradients) of all layers, from those of each."""
    return {
        name: torch.cat([part[name].flatten() if name == "W_dec" else part[name] for part in parts])
        for name in parts[0]
    }


def unpack(p: Parameters) -> list[Parameters]:
    """Views of each layer's parameters; `W_dec` is [F, writes * d], from its own layer up."""
    n_layers = len(p["b_dec"]) // p["W_enc"].shape[1]
    n_features = len(p["b_enc"]) // n_layers
    sizes = [n_features * (len(p["b_dec"]) // n_layers) * n for n in range(n_layers, 0, -1)]
    pieces = {
        name: tensor.split(sizes) if name == "W_dec" else tensor.chunk(n_layers)
        for name, tensor in p.items()
    }
    parts = [{name: each[i] for name, each in pieces.items()} for i in range(n_layers)]
    return [part | {"W_dec": part["W_dec"].view(n_features, -1)} for part in parts]


def cross_layer_error(
    parts: Sequence[Parameters],
    xs: Sequence[Float[Tensor, "token d"]],
    codes: Sequence[Code],
    y: Float[Tensor, "token layers_d"],
) -> Float[Tensor, "token layers_d"]:
    """`y_hat - y`, all layers side by side."""
    d = len(parts[0]["b_dec"])
    decoded = [c.entries.decode(c.a, part["W_dec"]) for c, part in zip(codes, parts, strict=True)]
    error = decoded[0]
    for layer, each in enumerate(decoded[1:], start=1):
        error[:, layer * d :].add_(each)
    error.add_(torch.cat([part["b_dec"] for part in parts]))
    for layer, (part, x) in enumerate(zip(parts, xs, strict=True)):
        if "W_skip" in part:
            error[:, layer * d : (layer + 1) * d].addmm_(x, part["W_skip"])
    return error.sub_(y)


@dataclass(frozen=True)
class CrossLayer:
    """All layers of a cross-layer transcoder.

    Args:
        rule: how the features of every layer are sparse.
    """

    rule: FeatureRule

    def begin(self, p: Parameters, memory: Memory, x: Float[Tensor, "token layers_d"]) -> None:
        parts = unpack(p)
        memories: list[Memory] = [{} for _ in parts]
        for part, own, x_l in zip(parts, memories, x.chunk(len(parts), dim=1), strict=True):
            self.rule.begin(part, own, x_l)
        p.update(pack(parts))
        memory.update({n: torch.stack([own[n] for own in memories]) for n in memories[0]})

    def step(
        self,
        p: Parameters,
        memory: Memory,
        x: Float[Tensor, "token layers_d"],
        y: Float[Tensor, "token layers_d"],
        moment: Moment,
    ) -> Step:
        parts = unpack(p)
        xs, moments = x.chunk(len(parts), dim=1), _moments(parts, moment)
        codes = [self.rule.encode(*each) for each in zip(parts, xs, moments, strict=True)]
        error = cross_layer_error(parts, xs, codes, y)
        g_out = error * (2 / len(x))
        d, gradients = len(parts[0]["b_dec"]), []
        for i, (part, x_l, code, m) in enumerate(zip(parts, xs, codes, moments, strict=True)):
            above, own = slice(i * d, None), slice(i * d, (i + 1) * d)
            mine = {name: tensor[i] for name, tensor in memory.items()}
            gradient = self.rule.backward(
                part, mine, x_l, code, error[:, above], g_out[:, above], m
            )
            gradients.append(gradient | affine_gradients(part, x_l, g_out[:, own]))
        return Step(
            pack(gradients),
            mean_square(error),
            sum(active_per_token(code.a, x) for code in codes) / len(codes),
            torch.cat([code.entries.fired(code.a) for code in codes]),
        )

    def constrain(self, p: Parameters) -> None:
        for part in unpack(p):
            self.rule.constrain(part)

    def finish(self, p: Parameters, memory: Memory) -> Finished:
        """All layers, packed."""
        each = [
            self.rule.finish(part, {name: tensor[i] for name, tensor in memory.items()})
            for i, part in enumerate(unpack(p))
        ]
        thresholds = [one.threshold for one in each if one.threshold is not None]
        return Finished(
            pack([one.parameters for one in each]),
            each[0].activation,
            torch.cat(thresholds) if thresholds else None,
            each[0].k,
        )


def _moments(parts: Sequence[Parameters], moment: Moment) -> list[Moment]:
    """What each layer's step depends on: its dead features, and buffers of its own, for the codes
    of all layers are needed to the end.
    """
    n = len(parts[0]["b_enc"])
    layer = moment.dead // n
    return [
        replace(moment, dead=moment.dead[layer == i] - i * n, work=moment.work.part(f"layer {i}"))
        for i in range(len(parts))
    ]
