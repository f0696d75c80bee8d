"""Which vector is subtracted from a dictionary's input: by its convention, folded into its bias."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from circuits.conventions import Convention
from circuits.formats.folds import fold_subtracted

__all__ = ["read_as_it_is"]


def read_as_it_is(
    path: Path,
    weights: Mapping[str, Tensor],
    convention: Convention,
    vectors: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Weights that read the input as it is, from weights that read it less a vector.

    Args:
        path: the file, for the message.
        weights: `W_enc` [d_in, feature], `b_enc` and others, which are handed on.
        convention: says which vector was subtracted.
        vectors: those of the file, under the names of `Convention.subtracted`.

    Raises:
        ValueError: if the file has no such vector, or it does not fit.
    """
    if convention.subtracted == "nothing":
        return dict(weights)
    vector = vectors.get(convention.subtracted)
    if vector is None or vector.shape != weights["W_enc"].shape[:1]:
        held = {name: tuple(tensor.shape) for name, tensor in vectors.items()}
        raise ValueError(
            f"{path}: the convention has {convention.subtracted!r} subtracted from the input, but "
            f"the file has {held}; want another convention"
        )
    return {**weights, "b_enc": fold_subtracted(weights["W_enc"], weights["b_enc"], vector)}
