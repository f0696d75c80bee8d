"""What to explain: logits, a logit difference, a probability metric, a feature, any direction.

A target is a direction at a place and a position; its value is linear in what is read there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sites import Site, SiteKind
from circuits.spliced import FrozenState, SplicedModel, canonical
from circuits.subject import SubjectModel

__all__ = [
    "READABLE",
    "DirectionTarget",
    "FeatureTarget",
    "LogitDifference",
    "ProbabilityDifference",
    "Readout",
    "Target",
    "TopLogits",
    "logit_readout",
]

TokenLike = str | int
READABLE: tuple[SiteKind, ...] = (
    *("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"),
)
"""What targets read in a block, in the order of computation (a parallel one has no `resid_mid`)."""


@dataclass(frozen=True)
class Readout:
    """One linear functional of the frozen model: `<vector, value at (site, pos)> + constant`.

    `weight` is how much it counts among several outputs when influence is shared out.
    """

    name: str
    site: Site
    pos: int
    vector: Float[Tensor, " d_model"]
    constant: float
    weight: float = 1.0


def _token_id(model: SubjectModel, token: TokenLike) -> int:
    if isinstance(token, str):
        return model.single_token(token)
    if not 0 <= token < model.d_vocab:
        raise ValueError(f"token ids must be in [0, {model.d_vocab}), got {token}")
    return token


def _position(pos: int, n_pos: int) -> int:
    if not -n_pos <= pos < n_pos:
        raise ValueError(f"pos must be in [-{n_pos}, {n_pos}), got {pos}")
    return pos % n_pos


def logit_readout(
    model: SubjectModel, name: str, weights: Float[Tensor, " d_vocab"], pos: int
) -> Readout:
    """`sum_v weights[v] * logit[v]` at `pos`, before any final softcap."""
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    vector, constant = model.W_U.to(weights) @ weights, float(weights @ model.b_U.to(weights))
    return Readout(name, Site("unembed_in"), pos, vector, constant)


@dataclass(frozen=True)
class LogitDifference:
    """Mean logit of the correct tokens minus mean logit of the wrong ones.

    Args:
        correct: a token (text as it continues the prompt, or id), or several.
        wrong: likewise; empty leaves the mean correct logit.
        pos: where; -1 is the last position.
    """

    correct: TokenLike | Sequence[TokenLike]
    wrong: TokenLike | Sequence[TokenLike] = ()
    pos: int = -1

    def readouts(self, spliced: SplicedModel, state: FrozenState) -> list[Readout]:
        model = spliced.model
        if not isinstance(self.correct, str | int) and not len(self.correct):
            raise ValueError("a logit difference needs at least one correct token, got none")
        weights = state.logits.new_zeros(model.d_vocab)
        for tokens, sign in ((self.correct, 1.0), (self.wrong, -1.0)):
            group = [tokens] if isinstance(tokens, str | int) else list(tokens)
            for token in group:
                weights[_token_id(model, token)] += sign / len(group)
        return [logit_readout(model, "logit difference", weights, _position(self.pos, state.n_pos))]


@dataclass(frozen=True)
class ProbabilityDifference:
    """The direction in which `P(correct) - P(wrong)` grows fastest at this prompt.

    The softmax is over the full vocabulary. With `s` = +1 on correct, -1 on wrong, 0 elsewhere
    and `m = <p, s>`, the row is `w = p * (s - m)`, the gradient of `m` with respect to the
    logits; it sums to `<w, logits>` (before any final softcap), not to `m` itself.
    """

    correct: Int[Tensor, " n_correct"]
    wrong: Int[Tensor, " n_wrong"]
    pos: int = -1

    def readouts(self, spliced: SplicedModel, state: FrozenState) -> list[Readout]:
        pos = _position(self.pos, state.n_pos)
        logits = state.logits[0, pos]
        signs = torch.zeros_like(logits)
        for tokens, sign in ((self.correct, 1.0), (self.wrong, -1.0)):
            signs[[_token_id(spliced.model, token) for token in tokens.tolist()]] = sign
        p = logits.softmax(-1)
        weights = p * (signs - p @ signs)
        return [logit_readout(spliced.model, "probability difference", weights, pos)]


@dataclass(frozen=True)
class TopLogits:
    """The likeliest next tokens, each logit minus the mean logit, until `mass` is covered.

    The rule of circuit-tracer: at most `max_n` tokens, the fewest whose probability reaches `mass`.
    """

    max_n: int = 10
    mass: float = 0.95
    pos: int = -1

    def readouts(self, spliced: SplicedModel, state: FrozenState) -> list[Readout]:
        if self.max_n < 1 or not 0 < self.mass <= 1:
            raise ValueError(f"want max_n >= 1 and mass in (0, 1], got {self.max_n}, {self.mass}")
        model, pos = spliced.model, _position(self.pos, state.n_pos)
        p, ids = state.logits[0, pos].softmax(-1).topk(min(self.max_n, model.d_vocab))
        n = int((p.double().cumsum(0) < self.mass).sum()) + 1
        everyone = state.logits.new_full((model.d_vocab,), 1.0 / model.d_vocab)
        mean = logit_readout(model, "mean logit", everyone, pos)
        return [
            Readout(
                f"{text!r} ({token})",
                Site("unembed_in"),
                pos,
                model.W_U[:, token].to(mean.vector) - mean.vector,
                float(model.b_U[token]) - mean.constant,
                float(probability),
            )
            for token, text, probability in zip(
                ids[:n].tolist(), model.token_strings(ids[:n]), p[:n], strict=True
            )
        ]


@dataclass(frozen=True)
class FeatureTarget:
    """The pre-activation of one feature at one position, active or not.

    Args:
        site: the dictionary's place, such as `mlp.2`.
        feature: index in the dictionary.
        pos: position; -1 is the last.
    """

    site: str | Site
    feature: int
    pos: int = -1

    def readouts(self, spliced: SplicedModel, state: FrozenState) -> list[Readout]:
        write = spliced.write_site(self.site)
        placement = spliced.placements[write]
        n_features = placement.dictionary.n_features
        if not 0 <= self.feature < n_features:
            raise ValueError(f"feature must be in [0, {n_features}), got {self.feature}")
        return [
            Readout(
                f"{placement.site}{write.layer}.{self.feature}",
                placement.read,
                _position(self.pos, state.n_pos),
                placement.dictionary.W_enc[:, self.feature],
                float(placement.dictionary.b_enc[self.feature]),
            )
        ]


@dataclass(frozen=True)
class DirectionTarget:
    """Any direction of the residual stream: `<vector, value at (site, pos)>`."""

    site: Site
    vector: Float[Tensor, " d_model"] = field(repr=False)
    pos: int = -1

    def readouts(self, spliced: SplicedModel, state: FrozenState) -> list[Readout]:
        if self.vector.shape != (spliced.model.d_model,):
            raise ValueError(
                f"want a vector of {spliced.model.d_model} numbers, got {tuple(self.vector.shape)}"
            )
        block = [site.kind for site in spliced.model.block_sites(0) if site.kind in READABLE]
        kinds = (*block, "unembed_in")
        n_layers = 1 if self.site.kind == "unembed_in" else spliced.model.n_layers
        if self.site.kind not in kinds or not 0 <= self.site.layer < n_layers:
            raise ValueError(
                f"want one of {kinds} in a layer from 0 to {n_layers - 1}, got {self.site}"
            )
        pos = _position(self.pos, state.n_pos)
        vector = self.vector.to(state.logits)
        return [Readout(f"direction at {self.site}", canonical(self.site), pos, vector, 0.0)]


Target = LogitDifference | ProbabilityDifference | TopLogits | FeatureTarget | DirectionTarget
