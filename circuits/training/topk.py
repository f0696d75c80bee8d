"""TopK dictionaries (Gao et al. 2024): squared error, and AuxK for dead features.

    z = x W_enc^T + b_enc;  a = the k largest z of a token, negative ones cut to 0
    loss = mean over tokens of |a W_dec + b_dec - y|^2  +  aux_coefficient * AuxK

Gradients are written out, over active features only; tests hold them against autograd.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.training.sparse import (
    Codes,
    decode,
    feature_sums,
    fired,
    value_gradients,
    weight_gradients,
)
from circuits.training.step import Parameters, Step

__all__ = ["add_auxk", "topk_step"]


def topk_step(
    p: Parameters,
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    *,
    k: int,
    dead: Int[Tensor, " dead"],
    aux_k: int,
    aux_coefficient: float,
) -> Step:
    """Gradients of the TopK loss on one batch.

    Args:
        p: parameters; see `Parameters`.
        x: scaled inputs.
        y: scaled targets.
        k: features a token.
        dead: features that have not fired for long.
        aux_k: dead features used a token.
        aux_coefficient: weight of AuxK; 0 for none.
    """
    n_tokens, n_features = len(x), len(p["b_enc"])
    z = torch.addmm(p["b_enc"], x, p["W_enc"].T)
    value, feature = z.topk(k, dim=-1, sorted=False)
    token = torch.arange(n_tokens, device=x.device).repeat_interleave(k)
    codes = Codes(token, feature.flatten(), value.clamp_min(0).flatten(), n_tokens, n_features)
    error = decode(codes, p["W_dec"]) + p["b_dec"] - y
    if "W_skip" in p:
        error += x @ p["W_skip"]
    g_out = error * (2 / n_tokens)
    g_z = value_gradients(codes, p["W_dec"], g_out) * (codes.value > 0)
    g_dec, g_enc = weight_gradients(codes, [(codes.value, g_out), (g_z, x)])
    gradients = {
        "W_enc": g_enc,
        "W_dec": g_dec,
        "b_enc": feature_sums(codes, g_z),
        "b_dec": g_out.sum(0),
    }
    if "W_skip" in p:
        gradients["W_skip"] = x.T @ g_out
    if aux_coefficient and len(dead):
        z_dead = z[:, dead]
        add_auxk(gradients, p, x, -error, z_dead, dead, aux_k=aux_k, coefficient=aux_coefficient)
    l0 = (codes.value > 0).sum().item() / n_tokens
    return Step(gradients, error.square().mean().item(), l0, fired(codes))


def add_auxk(
    gradients: Parameters,
    p: Parameters,
    x: Float[Tensor, "token d_in"],
    missed: Float[Tensor, "token d_out"],
    z_dead: Float[Tensor, "token dead"],
    dead: Int[Tensor, " dead"],
    *,
    aux_k: int,
    coefficient: float,
) -> float:
    """Add to `gradients` those of AuxK: dead features predict what the living ones missed.

        a = relu of the aux_k largest z over dead features
        AuxK = coefficient * min(n_dead / aux_k, 1) * mean over tokens of |a W_dec - missed|^2

    `missed` is a constant, so no gradient reaches the living features or `b_dec`.

    Returns:
        The value of AuxK.
    """
    n_tokens = len(x)
    a = z_dead.clamp_min(0)
    if len(dead) > aux_k:
        value, index = a.topk(aux_k, dim=-1, sorted=False)
        a = torch.zeros_like(a).scatter_(-1, index, value)
    weight = coefficient * min(len(dead) / aux_k, 1.0)
    residual = a @ p["W_dec"][dead] - missed
    g_out = residual * (2 * weight / n_tokens)
    g_z = (g_out @ p["W_dec"][dead].T) * (a > 0)
    gradients["W_dec"][dead] += a.T @ g_out
    gradients["W_enc"][dead] += g_z.T @ x
    gradients["b_enc"][dead] += g_z.sum(0)
    return weight * residual.square().sum().item() / n_tokens
