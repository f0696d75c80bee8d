"""JumpReLU dictionaries (Rajamanoharan et al. 2024) with straight-through thresholds.

    z = x W_enc^T + b_enc;  a = z H(z - t)
    loss = mean over tokens of |a W_dec + b_dec - y|^2 + weight * (L0 / target - 1)^2

With K(u) = 1 where |u| < 1/2 and bandwidth w (in the units of z):
    da/dt = -(t/w) K((z - t)/w),  dL0/dt = -(1/w) K((z - t)/w),  da/dz = H(z - t),  dL0/dz = 0.
The step of L0 sees pre-activations, and thresholds are raw float32 numbers.
"""

import torch
from jaxtyping import Float
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

__all__ = ["jumprelu_step"]

_DENSE_SHARE = 1 / 12
"""Above this share of entries in use, dense products are faster than lists of entries."""


def jumprelu_step(
    p: Parameters,
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    *,
    target_l0: float,
    l0_weight: float,
    bandwidth: float,
) -> Step:
    """Gradients of the JumpReLU loss on one batch.

    Args:
        p: parameters with `threshold`; see `Parameters`.
        x: scaled inputs.
        y: scaled targets.
        target_l0: wanted features a token.
        l0_weight: weight of the L0 penalty.
        bandwidth: w above.
    """
    z = torch.addmm(p["b_enc"], x, p["W_enc"].T)
    used = z > p["threshold"] - bandwidth / 2
    dense = used.count_nonzero().item() > _DENSE_SHARE * z.numel()
    step = _dense_step if dense else _sparse_step
    return step(p, x, y, z, used, target_l0=target_l0, l0_weight=l0_weight, bandwidth=bandwidth)


def _l0_slope(l0: float, target: float, weight: float, n_tokens: int) -> float:
    """D penalty / d (one gate of one token)."""
    return 2 * weight * (l0 / target - 1) / target / n_tokens


def _sparse_step(
    p: Parameters,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    used: Tensor,
    *,
    target_l0: float,
    l0_weight: float,
    bandwidth: float,
) -> Step:
    n_tokens, n_features = z.shape
    token, feature = used.nonzero(as_tuple=True)
    raw, t = z[token, feature], p["threshold"][feature]
    gate = (raw > t).to(z.dtype)
    codes = Codes(token, feature, raw * gate, n_tokens, n_features)
    error = decode(codes, p["W_dec"]) + p["b_dec"] - y
    if "W_skip" in p:
        error += x @ p["W_skip"]
    g_out = error * (2 / n_tokens)
    g_a = value_gradients(codes, p["W_dec"], g_out)
    l0 = gate.sum().item() / n_tokens
    slope = _l0_slope(l0, target_l0, l0_weight, n_tokens)
    window = (raw - t).abs() < bandwidth / 2
    g_t = -(t * g_a + slope) * window / bandwidth
    g_z = g_a * gate
    g_dec, g_enc = weight_gradients(codes, [(codes.value, g_out), (g_z, x)])
    gradients = {
        "W_enc": g_enc,
        "W_dec": g_dec,
        "b_enc": feature_sums(codes, g_z),
        "b_dec": g_out.sum(0),
        "threshold": feature_sums(codes, g_t),
    }
    if "W_skip" in p:
        gradients["W_skip"] = x.T @ g_out
    return Step(gradients, error.square().mean().item(), l0, fired(codes))


def _dense_step(
    p: Parameters,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    used: Tensor,
    *,
    target_l0: float,
    l0_weight: float,
    bandwidth: float,
) -> Step:
    n_tokens = len(z)
    gate = z > p["threshold"]
    a = z * gate
    error = torch.addmm(p["b_dec"], a, p["W_dec"]) - y
    if "W_skip" in p:
        error += x @ p["W_skip"]
    g_out = error * (2 / n_tokens)
    g_a = g_out @ p["W_dec"].T
    counts = gate.sum(0)
    l0 = counts.sum().item() / n_tokens
    slope = _l0_slope(l0, target_l0, l0_weight, n_tokens)
    window = used & ((z - p["threshold"]).abs() < bandwidth / 2)
    in_window = p["threshold"] * (g_a * window).sum(0) + slope * window.sum(0, dtype=z.dtype)
    g_z = g_a * gate
    gradients = {
        "W_enc": g_z.T @ x,
        "W_dec": a.T @ g_out,
        "b_enc": g_z.sum(0),
        "b_dec": g_out.sum(0),
        "threshold": -in_window / bandwidth,
    }
    if "W_skip" in p:
        gradients["W_skip"] = x.T @ g_out
    return Step(gradients, error.square().mean().item(), l0, counts > 0)
