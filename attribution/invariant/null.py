"""How large a virtual weight is: against what random directions of the same norms would give.

Input-invariant. Two nulls for the source's direction, its norm kept: isotropic (any direction is
as likely, closed form) and matched (mean and covariance of the real decoder directions, sampled).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.invariant.deembedding import effective_encoder, encoder_through_head
from attribution.invariant.routes import Head, check_route
from attribution.invariant.sphere import cosine_p_value
from attribution.invariant.strongest import WeightPairs
from attribution.invariant.weights import decoder_on_route
from circuits.spliced import SplicedModel

__all__ = [
    "Significance",
    "isotropic_significance",
    "isotropic_z",
    "matched_directions",
    "matched_p_value",
    "matched_quantile",
    "matched_significance",
]


@dataclass(frozen=True, eq=False)
class Significance:
    """How far weights stand out from a null.

    Attributes:
        z: distance from the null's mean, in its standard deviations, signed.
        p: probability of a weight at least as large in size. Among `n` weights looked at, the
            strongest is remarkable if `n * p` is small.
    """

    z: Float[Tensor, " pair"]
    p: Float[Tensor, " pair"]


def isotropic_z(
    weights: Float[Tensor, "*n"],
    encoder_norm: Float[Tensor, "*#n"],
    decoder_norm: Float[Tensor, "*#n"],
    d_model: int,
) -> Float[Tensor, "*n"]:
    """Weights over the standard deviation of `<e, d>` for `d` of its norm in a random direction.

        z = w / (|e| |d| / sqrt(d_model))

    The coordinates of a uniform unit vector have mean square `1 / d_model`. A direction of norm 0
    has z 0.

    Example:
        >>> isotropic_z(torch.tensor([6.0]), torch.tensor([1.0]), torch.tensor([3.0]), 4)
        tensor([4.])
    """
    size = encoder_norm * decoder_norm / d_model**0.5
    return torch.where(size > 0, weights / size, 0.0)


def isotropic_significance(
    spliced: SplicedModel,
    target: str,
    source: str,
    pairs: WeightPairs,
    *,
    head: Head | None = None,
) -> Significance:
    """`pairs` against decoder directions drawn uniformly from the sphere, in closed form.

    The null is of sources: `e_t` (carried through `head` if there is one) and `|d_s|` are kept.

    Args:
        spliced: holds both dictionaries.
        target: the reading dictionary.
        source: the writing dictionary.
        pairs: weights of the same path, as `top_virtual_weights` gives them.
        head: (layer, query head) on the way; None is the residual stream alone.

    Raises:
        ValueError: as `virtual_weights`.
    """
    encoder, decoder = _directions(spliced, target, source, pairs, head)
    norms = encoder.norm(dim=1), decoder.norm(dim=1)
    z = isotropic_z(pairs.weights.double(), *norms, spliced.model.d_model)
    return Significance(z, cosine_p_value(z / spliced.model.d_model**0.5, spliced.model.d_model))


def matched_directions(
    decoder: Float[Tensor, "source d_model"], n_samples: int, seed: int
) -> Float[Tensor, "sample d_model"]:
    """Random unit vectors with the mean and covariance of the decoder's own directions.

    Normal with the mean and covariance of the rows of `decoder` at norm 1, then put to norm 1.
    What the rows share (a common mean, a few crowded dimensions) is in the null; which single
    directions they take is not.

    Args:
        decoder: real decoder rows; rows of zeros are left out.
        n_samples: how many.
        seed: of the sampling.

    Raises:
        ValueError: if fewer than two rows are not zero, or `n_samples` is less than 2.
    """
    norms = decoder.norm(dim=1, keepdim=True).double()
    unit = (decoder.double() / norms)[norms[:, 0] > 0]
    if len(unit) < 2 or n_samples < 2:
        raise ValueError(
            f"want at least two decoder rows that are not zero and n_samples >= 2, got {len(unit)} "
            f"rows and n_samples {n_samples}"
        )
    mean = unit.mean(0)
    variances, axes = torch.linalg.eigh((unit - mean).T @ (unit - mean) / len(unit))
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(n_samples, len(mean), generator=generator, dtype=torch.float64)
    spread = normal.to(unit.device) * variances.clamp_min(0).sqrt() @ axes.T
    return torch.nn.functional.normalize(mean + spread, dim=1)


def matched_quantile(
    encoder: Float[Tensor, "target d_model"],
    directions: Float[Tensor, "sample d_model"],
    q: float,
) -> Float[Tensor, " target"]:
    """The size that a share `q` of null weights stays below, per unit of decoder norm.

    Args:
        encoder: what the targets read of the residual stream.
        directions: of the null, as `matched_directions` gives them.
        q: the share, in [0, 1].
    """
    null = encoder.to(directions) @ directions.T
    return null.abs().quantile(q, dim=1)


def matched_p_value(
    cosines: Float[Tensor, " pair"],
    encoder: Float[Tensor, "pair d_model"],
    directions: Float[Tensor, "sample d_model"],
) -> Float[Tensor, " pair"]:
    """`(1 + number of null weights at least as large in size) / (1 + number of null weights)`.

    Args:
        cosines: weights over the norms of their decoder rows.
        encoder: what each pair's target reads of the residual stream.
        directions: of the null.

    Returns:
        At least `1 / (1 + samples)`: take more samples to tell stronger weights apart.
    """
    null = encoder.to(directions) @ directions.T
    larger = (null.abs() >= cosines[:, None].abs()).sum(1)
    return (1 + larger).double() / (1 + len(directions))


def matched_significance(
    spliced: SplicedModel,
    target: str,
    source: str,
    pairs: WeightPairs,
    *,
    head: Head | None = None,
    n_samples: int = 1000,
    seed: int = 0,
    chunk: int = 1024,
) -> Significance:
    """`pairs` against directions with the decoder's own mean and covariance, sampled.

    Args:
        spliced: holds both dictionaries.
        target: the reading dictionary.
        source: the writing dictionary.
        pairs: weights of the same path, as `top_virtual_weights` gives them.
        head: (layer, query head) on the way; None is the residual stream alone.
        n_samples: how many directions, the same for every pair.
        seed: of the sampling.
        chunk: pairs judged together.

    Raises:
        ValueError: as `virtual_weights` and `matched_directions`.
    """
    encoder, decoder = _directions(spliced, target, source, pairs, head)
    ends = spliced.write_site(target), spliced.write_site(source)
    every = decoder_on_route(spliced, *ends, head)
    directions = matched_directions(every, n_samples, seed)
    cosines = pairs.weights.double() / decoder.norm(dim=1)
    z, p = [], []
    for part, e in zip(cosines.split(chunk), encoder.split(chunk), strict=True):
        null = e @ directions.T
        z.append((part - null.mean(1)) / null.std(1))
        p.append(matched_p_value(part, e, directions))
    return Significance(torch.cat(z), torch.cat(p))


def _directions(
    spliced: SplicedModel, target: str, source: str, pairs: WeightPairs, head: Head | None
) -> tuple[Float[Tensor, "pair d_model"], Float[Tensor, "pair d_model"]]:
    """For each pair, what its target reads of the stream at the source, and what that writes."""
    read_at, write = spliced.write_site(target), spliced.write_site(source)
    check_route(spliced, read_at, write, head)
    model, reader, features = spliced.model, spliced.placements[read_at], pairs.targets.tolist()
    if head is None:
        encoder = effective_encoder(model, reader, features)
    else:
        encoder = encoder_through_head(model, reader, head, features)
    decoder = decoder_on_route(spliced, read_at, write, head)[pairs.sources]
    return encoder.double(), decoder.double()
