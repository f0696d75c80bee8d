"""Input and target scaling: dictionaries train on unit-variance data, files hold raw weights."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Scaling", "fit_scaling", "fold"]


@dataclass(frozen=True)
class Scaling:
    """`scaled = (raw - mean) * scale` for inputs x and targets y; each scale is one number a
    dimension (equal ones where a single number is meant).
    """

    x_mean: Float[Tensor, " d_in"]
    x_scale: Float[Tensor, " d_in"]
    y_mean: Float[Tensor, " d_out"]
    y_scale: Float[Tensor, " d_out"]

    def inputs(
        self, x: Float[Tensor, "token d_in"], out: Float[Tensor, "token d_in"] | None = None
    ) -> Float[Tensor, "token d_in"]:
        """Scaled inputs, in `out` if that is given."""
        return torch.sub(x, self.x_mean, out=out).mul_(self.x_scale)

    def targets(
        self, y: Float[Tensor, "token d_out"], out: Float[Tensor, "token d_out"] | None = None
    ) -> Float[Tensor, "token d_out"]:
        """Scaled targets, in `out` if that is given."""
        return torch.sub(y, self.y_mean, out=out).mul_(self.y_scale)


def _moments(v: Float[Tensor, "token d"], *, each: bool) -> tuple[Tensor, Tensor]:
    """Mean, and 1 / standard deviation of each dimension or of all together (root mean square)."""
    mean = v.mean(0, dtype=torch.float64)
    variance = torch.stack([(c.double() - mean).square().sum(0) for c in v.split(8192)]).sum(0)
    variance = variance / len(v)
    if not each:
        variance = variance.mean().expand_as(variance)
    floor = 1e-6 * variance.mean().clamp_min(1e-30)
    return mean.float(), variance.clamp_min(floor).rsqrt().float()


def fit_scaling(
    x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"], *, tied: bool
) -> Scaling:
    """Scales under which inputs and targets have mean 0 and variance 1 a dimension on average.

    The target's scale is one number, so that the squared error stays proportional to the raw one
    and its mean over dimensions is the FVU.

    Args:
        tied: whether y is x (an SAE), which then gets the target's scale too. Otherwise every
            input dimension gets its own.
    """
    y_mean, y_scale = _moments(y, each=False)
    x_mean, x_scale = (y_mean, y_scale) if tied else _moments(x, each=True)
    return Scaling(x_mean, x_scale, y_mean, y_scale)


def fold(parameters: dict[str, Tensor], scaling: Scaling) -> dict[str, Tensor]:
    """Weights that do on raw data what `parameters` do on scaled data.

    Args:
        parameters: `W_enc` [feature, d_in], `W_dec` [feature, d_out], `b_enc`, `b_dec`, and where
            there is a skip `W_skip` [d_in, d_out], all for scaled data.

    Returns:
        Tensors of a `Dictionary`: `W_enc` [d_in, feature], the others with the same axes.
    """
    s = scaling
    W_enc = (parameters["W_enc"].double() * s.x_scale.double()).T
    b_enc = parameters["b_enc"].double() - s.x_mean.double() @ W_enc
    W_dec = parameters["W_dec"].double() / s.y_scale.double()
    b_dec = parameters["b_dec"].double() / s.y_scale.double() + s.y_mean.double()
    folded = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    if "W_skip" in parameters:
        W_skip = parameters["W_skip"].double() * s.x_scale.double()[:, None] / s.y_scale.double()
        folded["W_skip"] = W_skip
        folded["b_dec"] = b_dec - s.x_mean.double() @ W_skip
    return {name: tensor.float().contiguous() for name, tensor in folded.items()}
