"""Where training starts: weights for scaled data."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuits.training.step import Parameters

__all__ = ["fill_decoder", "fire_at_rate", "initial_parameters"]

_CHUNK = 1024


def initial_parameters(
    x: Float[Tensor, "token d_in"],
    d_out: int,
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
        d_out: width of the targets.
        tied: whether y is x (an SAE).
        skip: whether there is a linear skip.
        seed: of the encoder.
    """
    generator = torch.Generator().manual_seed(seed)
    d_in = x.shape[1]
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
    exceeded = [
        torch.quantile(x @ W_enc.T, 1 - rate, dim=0) for W_enc in parameters["W_enc"].split(_CHUNK)
    ]
    parameters["b_enc"] = threshold - torch.cat(exceeded)


def fill_decoder(parameters: Parameters) -> None:
    """Give decoder rows of zeros random directions, of norm 1, drawn with a seed from `W_enc`."""
    W_dec = parameters["W_dec"]
    seed = int(parameters["W_enc"][0].double().cpu().view(torch.int64)[0].item())
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(W_dec.shape, generator=generator), dim=1).to(W_dec)
    parameters["W_dec"] = torch.where(W_dec.norm(dim=1, keepdim=True) > 0, W_dec, rows)
