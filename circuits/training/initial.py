"""Where training starts: weights for scaled data."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuits.training.step import Parameters

__all__ = ["fire_at_rate", "initial_parameters"]


def initial_parameters(
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    n_features: int,
    *,
    tied: bool,
    skip: bool,
    seed: int,
) -> Parameters:
    """Starting weights of one dictionary.

    Encoder rows are random unit vectors. An SAE's decoder is its encoder; a transcoder's is zero,
    so that it starts at the mean predictor. Biases and skip are zero (scaled targets have mean 0).

    Args:
        x: some scaled inputs, for their width.
        y: some scaled targets.
        tied: whether y is x (an SAE).
        skip: whether there is a linear skip.
        seed: of the encoder.
    """
    generator = torch.Generator().manual_seed(seed)
    d_in, d_out = x.shape[1], y.shape[1]
    W_enc = F.normalize(torch.randn(n_features, d_in, generator=generator), dim=1).to(x.device)
    parameters = {
        "W_enc": W_enc,
        "W_dec": W_enc.clone() if tied else W_enc.new_zeros(n_features, d_out),
        "b_enc": W_enc.new_zeros(n_features),
        "b_dec": W_enc.new_zeros(d_out),
    }
    if skip:
        parameters["W_skip"] = W_enc.new_zeros(d_in, d_out)
    return parameters


def fire_at_rate(
    parameters: Parameters, x: Float[Tensor, "token d_in"], *, rate: float, threshold: float
) -> None:
    """Give every feature the bias at which it exceeds `threshold` on a share `rate` of `x`."""
    z = x @ parameters["W_enc"].T
    parameters["b_enc"] = threshold - torch.quantile(z, 1 - rate, dim=0)
