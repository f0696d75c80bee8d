"""What other programs do to activations at run time, done to the weights once.

Pure: tensors in, tensors out.
"""

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["fold_decoder_norm", "fold_gate", "fold_input_scale", "fold_subtracted"]


def fold_gate(
    W_enc: Float[Tensor, "d_in feature"],
    b_gate: Float[Tensor, " feature"],
    b_mag: Float[Tensor, " feature"],
    r_mag: Float[Tensor, " feature"],
) -> tuple[Float[Tensor, "d_in feature"], Float[Tensor, " feature"], Float[Tensor, " feature"]]:
    """A gated encoder as JumpReLU, exactly (Rajamanoharan et al. 2024, "Improving", appendix E).

        a = 1[x W_enc + b_gate > 0] relu(z),    z = e^r_mag x W_enc + b_mag

    The gate is open if `z > b_mag - e^r_mag b_gate`, so `a = z` where `z` exceeds the larger of
    that and 0.

    Returns:
        `W_enc`, `b_enc` and the threshold of JumpReLU.

    Example:
        >>> one, r = torch.ones(1, 1), torch.zeros(1)
        >>> fold_gate(one, torch.tensor([-2.0]), torch.tensor([1.0]), r)[2]
        tensor([3.])
    """
    scale = r_mag.exp()
    return W_enc * scale, b_mag, (b_mag - scale * b_gate).clamp_min(0)


def fold_subtracted(
    W_enc: Float[Tensor, "d_in feature"],
    b_enc: Float[Tensor, " feature"],
    subtracted: Float[Tensor, " d_in"],
) -> Float[Tensor, " feature"]:
    """The bias that makes up for not subtracting: `(x - v) W + b = x W + (b - v W)`."""
    return b_enc - subtracted @ W_enc


def fold_decoder_norm(
    W_enc: Float[Tensor, "d_in feature"],
    b_enc: Float[Tensor, " feature"],
    W_dec: Float[Tensor, "feature d_out"],
) -> tuple[
    Float[Tensor, "d_in feature"], Float[Tensor, " feature"], Float[Tensor, "feature d_out"]
]:
    """Encoder, bias and decoder with the decoder's norms moved to the encoder.

    For TopK that ranks `z_f |d_f|` (`rescale_acts_by_decoder_norm`) and writes `a_f d_f / |d_f|`.
    """
    norm = W_dec.norm(dim=-1)
    unit = torch.where(norm > 0, norm, torch.ones_like(norm))
    return W_enc * norm, b_enc * norm, W_dec / unit[:, None]


def fold_input_scale(
    W_enc: Float[Tensor, "d_in feature"],
    W_dec: Float[Tensor, "feature d_in"],
    b_dec: Float[Tensor, " d_in"],
    input_norm: float,
) -> tuple[Float[Tensor, "d_in feature"], Float[Tensor, "feature d_in"], Float[Tensor, " d_in"]]:
    """Weights for activations as they are, of an SAE that was trained on scaled ones.

    It read and reconstructed `s x`, with `s = sqrt(d_in) / input_norm` (Conerly et al. 2024); its
    pre-activations, and so its thresholds, stay what they are.
    """
    s = sqrt(W_enc.shape[0]) / input_norm
    return W_enc * s, W_dec / s, b_dec / s
