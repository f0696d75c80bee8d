"""Folding: weights of another convention made into weights of this package's own.

What a linear map of the input can express moves into the weights; what it cannot (where a
transcoder reads and writes, which tokens it knows) stays in `Convention` and decides the sites.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.dictionaries import SAE, Dictionary
from circuits.subject import Norm

__all__ = ["MAX_FOLD_ERROR", "fold_affine", "fold_convention", "fold_error", "reads_stream"]

MAX_FOLD_ERROR = 1e-2
"""Largest rounding error of a normalised entry (of size 1) that folding may cause: a ten-thousandth
of that entry's variance, where dictionaries miss a hundredth of the whole and more.
"""


def reads_stream(dictionary: Dictionary) -> bool:
    """Whether what is read has no norm in front, so that its mean over d_model is still there."""
    return isinstance(dictionary, SAE) or dictionary.convention.norm == "none"


def fold_affine(
    W: Float[Tensor, "d_in out"], gain: Float[Tensor, " d_in"], bias: Float[Tensor, " d_in"]
) -> tuple[Float[Tensor, "d_in out"], Float[Tensor, " out"]]:
    """The map of `gain * x + bias` that does what `W` does to `x`.

        x W = (gain * x + bias) (W / gain) - (bias / gain) W

    Returns:
        `W / gain`, a row each, and the constant `-(bias / gain) W`.

    Example:
        >>> W, b = fold_affine(torch.ones(1, 1), torch.tensor([2.0]), torch.tensor([3.0]))
        >>> W, b
        (tensor([[0.5000]]), tensor([-1.5000]))
    """
    return W / gain[:, None], -(bias / gain) @ W


def fold_error(norm: Norm) -> Float[Tensor, " d_model"]:
    """Rounding error of each normalised entry when it is read back from `gain * x + bias`.

        error = u (1 + |bias| / |gain|),    u = half the spacing at 1 of the norm's dtype

    For `x` of size 1, which is what a norm makes; the products that follow round as much again.
    GPT-2's layer 3 has a gain of 2.6e-4, which with a bias of 0.4 costs 1e-4 in float32. A gain of
    0 lets nothing through: infinity.
    """
    unit = torch.finfo(norm.gain.dtype).eps / 2
    gain, bias = norm.gain.double().abs(), norm.bias.double().abs()
    return torch.where(gain > 0, unit * (1 + bias / gain), torch.inf)


def fold_convention(dictionary: Dictionary, norm: Norm | None) -> Dictionary:
    """The same dictionary for inputs as this model has them.

    - norm "bare" (a transcoder that was trained on the norm's output without gain and bias): the
      inverse of both goes into `W_enc`, `b_enc`, `W_skip` and `b_dec` (`fold_affine`, in float64).
    - centred, where the stream itself is read: the mean over d_model is taken out of each encoder
      direction, `W_enc - mean(W_enc)`, so that a mean in the input counts for nothing. What is
      written keeps mean 0, so the convention keeps `centred`: the model's own value minus its mean
      is the target. Every LayerNorm downstream takes the mean away.
    - subtracted: `b_enc` has it since the file was read, so nothing is left to do.

    What the rest says decides where and on which tokens a dictionary runs, and stays. A native
    dictionary is returned as it is; folding twice changes nothing.

    Args:
        dictionary: as its file has it.
        norm: the norm before the layer's MLP, None where the model has none.

    Raises:
        ValueError: if the norm is missing, a gain is too small for the norm's dtype, or centring
            is asked of a model whose norms do not take the mean away.
    """
    convention = dictionary.convention
    if convention.centred:
        _check_centring(norm)
        if reads_stream(dictionary):
            dictionary = _centre_input(dictionary)
    if convention.norm == "bare" and not isinstance(dictionary, SAE):
        dictionary = _fold_norm(dictionary, norm)
        convention = convention.model_copy(update={"norm": "gain and bias"})
    convention = convention.model_copy(update={"subtracted": "nothing"})
    if convention == dictionary.convention:
        return dictionary
    return replace(dictionary, convention=convention)


def _check_centring(norm: Norm | None) -> None:
    if norm is None or not norm.centred:
        raise ValueError(
            "the convention says centred, but writing weights can only be centred in a model whose "
            "norms take the mean away (LayerNorm), and this one has "
            f"{'no norm before its MLP' if norm is None else 'RMSNorm'}; was the dictionary made "
            "for another model?"
        )


def _centre_input(dictionary: Dictionary) -> Dictionary:
    """Encoder (and skip) that give on `x` what they gave on `x - mean(x)`."""

    def centred(W: Float[Tensor, "d_in out"]) -> Float[Tensor, "d_in out"]:
        wide = W.double()
        return (wide - wide.mean(0)).to(W.dtype)

    W_skip = None if dictionary.W_skip is None else centred(dictionary.W_skip)
    return replace(dictionary, W_enc=centred(dictionary.W_enc), W_skip=W_skip)


def _fold_norm(dictionary: Dictionary, norm: Norm | None) -> Dictionary:
    """Weights for the norm's output with gain and bias, from weights for it without."""
    if norm is None:
        raise ValueError(
            "the convention says that a norm's output is read without gain and bias, but this "
            "model has no norm before its MLP; was the dictionary made for another model?"
        )
    _check_gain(norm)
    W_enc, b_dec = dictionary.W_enc, dictionary.b_dec
    gain, bias = norm.gain.to(W_enc.device).double(), norm.bias.to(W_enc.device).double()
    wide, constant = fold_affine(W_enc.double(), gain, bias)
    folded: dict[str, Tensor] = {"W_enc": wide, "b_enc": dictionary.b_enc.double() + constant}
    if dictionary.W_skip is not None:
        folded["W_skip"], constant = fold_affine(dictionary.W_skip.double(), gain, bias)
        folded["b_dec"] = b_dec.double() + constant
    return replace(dictionary, **{name: new.to(W_enc.dtype) for name, new in folded.items()})


def _check_gain(norm: Norm) -> None:
    error = fold_error(norm)
    worst = int(error.argmax())
    if error[worst] > MAX_FOLD_ERROR:
        raise ValueError(
            f"cannot undo the norm's gain: entry {worst} has gain {norm.gain[worst]:.3g} and bias "
            f"{norm.bias[worst]:.3g}, so in {str(norm.gain.dtype).removeprefix('torch.')} its "
            f"normalised value is known to {error[worst]:.2g} only (want {MAX_FOLD_ERROR:g} at "
            "most); load the model in a finer dtype, or use a dictionary trained on the MLP's own "
            "input"
        )
