"""Models with weights set by hand, so that the circuit of features behind a logit is known.

Every model is a GPT-2 with ReLU neurons that all are zero but for a few, and its transcoders are
its own MLPs, one feature a neuron. A direction of the residual stream is a pair of entries, one the
negative of the other, so that centring changes nothing, and one direction holds `_LOUD` everywhere,
so that norm denominators are constant to 1e-7.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers
from jaxtyping import Bool, Float
from torch import Tensor

from attribution import LogitDifference
from circuits import SplicedModel, SubjectModel, Transcoder

__all__ = ["KNOWN", "NO", "YES", "Known", "metric", "roc_auc"]

_LOUD, _D_MODEL, _N_NEURONS, _N_POS = 1e4, 24, 6, 3
_CONSTANT, _FIRST, _OUT = 0, 10, 11
"""Directions: the constant, the mark of position 0, and what the logits read. 1 to 9 are free."""
YES, NO = 0, 1
_A, _B, _F, _G = 2, 3, 4, 5
"""Tokens: what the clean prompt says, what the corrupted one says instead, and two fillers."""

Reads = Mapping[int, float]


@dataclass(frozen=True)
class Neuron:
    """`relu(<reads, x> + bias)`, written to directions."""

    reads: Reads
    writes: Reads
    bias: float = 0.0


_BYSTANDER = Neuron({}, {_OUT: 0.1}, bias=0.3)
"""Fires everywhere on every prompt, and writes a little to the logits."""
_FILLER = Neuron({9: 2.0}, {8: 1.0})
"""Fires on fillers; nothing reads it."""


@dataclass(frozen=True)
class Known:
    """A spliced model, its prompts, and the nodes behind its answer.

    `answers` are the sets of nodes any of which is right, `edges` those of the whole circuit but
    for constants.
    """

    spliced: SplicedModel
    clean: Tensor
    corrupted: Tensor
    answers: tuple[frozenset[str], ...]
    edges: frozenset[tuple[str, str]]
    target: LogitDifference = field(default_factory=lambda: LogitDifference(YES, NO))


def metric(logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, " batch"]:
    """What direction `_OUT` holds at the last position."""
    return logits[:, YES] - logits[:, NO]


def roc_auc(scores: Float[Tensor, " node"], is_known: Bool[Tensor, " node"]) -> float:
    """Chance that a known node scores above another one, ties counting half."""
    pairs = scores[is_known][:, None] - scores[~is_known][None]
    return float(((pairs > 0).double() + 0.5 * (pairs == 0).double()).mean())


def _vector(reads: Reads) -> Float[Tensor, " d_model"]:
    vector = torch.zeros(_D_MODEL, dtype=torch.float64)
    for direction, value in reads.items():
        vector[2 * direction], vector[2 * direction + 1] = value, -value
    return vector


def _set(module: Any, name: str, index: Any, value: Tensor | float) -> None:
    getattr(module, name).data[index] = value


def _model(
    tokens: Mapping[int, Reads], layers: Sequence[Sequence[Neuron]], head: tuple[int, int, int]
) -> Any:
    """A model with these neurons and at most one head that does something.

    `head` is (layer, source direction, target direction): it copies one direction of position 0
    into another everywhere.
    """
    config = transformers.GPT2Config(
        vocab_size=6,
        n_embd=_D_MODEL,
        n_layer=len(layers),
        n_head=1,
        n_inner=_N_NEURONS,
        n_positions=_N_POS,
        activation_function="relu",
        tie_word_embeddings=False,
        bos_token_id=YES,
        eos_token_id=YES,
    )
    config._attn_implementation = "eager"
    model: Any = transformers.GPT2LMHeadModel(config).double()
    for parameter in model.parameters():
        parameter.data.zero_()
    for token, signal in tokens.items():
        _set(model.transformer.wte, "weight", token, _vector(signal))
    _set(model.transformer.wpe, "weight", slice(None), _vector({_CONSTANT: _LOUD}))
    _set(model.transformer.wpe, "weight", 0, _vector({_CONSTANT: _LOUD, _FIRST: 1.0}))
    for norm in _norms(model):
        _set(norm, "weight", slice(None), _LOUD * (2 / _D_MODEL) ** 0.5)
    for block, neurons in zip(model.transformer.h, layers, strict=True):
        for i, neuron in enumerate(neurons):
            _set(block.mlp.c_fc, "weight", (slice(None), i), _vector(neuron.reads) / 2)
            _set(block.mlp.c_fc, "bias", i, neuron.bias)
            _set(block.mlp.c_proj, "weight", i, _vector(neuron.writes))
    layer, source, target = head
    attention = model.transformer.h[layer].attn
    _set(attention.c_attn, "bias", 0, 40 * _D_MODEL**0.5)
    _set(attention.c_attn, "weight", (slice(None), _D_MODEL), _vector({_FIRST: 0.5}))
    _set(attention.c_attn, "weight", (slice(None), 2 * _D_MODEL), _vector({source: 0.5}))
    _set(attention.c_proj, "weight", 0, _vector({target: 1.0}))
    _set(model.lm_head, "weight", YES, _vector({_OUT: 0.25}))
    _set(model.lm_head, "weight", NO, _vector({_OUT: -0.25}))
    return model


def _norms(model: Any) -> list[Any]:
    own = [norm for block in model.transformer.h for norm in (block.ln_1, block.ln_2)]
    return [*own, model.transformer.ln_f]


def _known(
    tokens: Mapping[int, Reads],
    layers: Sequence[Sequence[Neuron]],
    *answers: str,
    edges: str,
    head: tuple[int, int, int] = (0, 7, 7),
    without: Mapping[int, int | None] = {},
    place: int = _N_POS - 1,
    both: bool = False,
) -> Known:
    """Put a model together.

    Args:
        tokens: what each token's embedding says; fillers say direction 9.
        layers: neurons by layer, each but the first with a bystander before them.
        answers: node ids, separated by spaces.
        edges: pairs of ids as `source>target`, separated by spaces; `output` is the logit
            difference.
        head: see `_model`; the default copies what nobody reads.
        without: layer -> the neuron its transcoder lacks, or None for no transcoder.
        place: where clean and corrupted prompts differ.
        both: whether they also differ at the last position.
    """
    layers = [[_BYSTANDER, _FILLER, *layers[0]], *layers[1:]]
    tokens = {_F: {9: 1.0}, _G: {9: 0.5}, **tokens}
    model = _model(tokens, layers, head)
    dictionaries: dict[int, Transcoder] = {}
    for i, block in enumerate(model.transformer.h):
        lacking = without.get(i, -1)
        if lacking is None:
            continue
        own = [j for j in range(_N_NEURONS) if j != lacking]
        dictionaries[i] = Transcoder(
            W_enc=block.mlp.c_fc.weight.data[:, own].clone(),
            W_dec=block.mlp.c_proj.weight.data[own].clone(),
            b_enc=block.mlp.c_fc.bias.data[own].clone(),
            b_dec=torch.zeros(_D_MODEL, dtype=torch.float64),
        )
    spliced = SplicedModel(SubjectModel.from_transformers(model), dictionaries)
    clean = torch.tensor([[_F, _F, _F], [_F, _G, _F]])
    clean[:, [place, -1] if both else place] = _A
    corrupted = torch.where(clean == _A, _B, clean)
    ends = (pair.split(">") for pair in edges.split())
    pairs = frozenset((s, "output.logit difference" if t == "output" else t) for s, t in ends)
    return Known(spliced, clean, corrupted, tuple(frozenset(a.split()) for a in answers), pairs)


def _chain() -> Known:
    """Token -> feature of layer 0 -> feature of layer 1 -> logit."""
    return _known(
        {_A: {1: 1.0}, _B: {4: 1.0}},
        [[Neuron({1: 1.0}, {2: 2.0})], [Neuron({2: 1.0}, {_OUT: 1.5})]],
        "token@2 mlp0.2@2 mlp1.0@2",
        edges="token@2>mlp0.2@2 mlp0.2@2>mlp1.0@2 mlp1.0@2>output",
    )


def _conjunction() -> Known:
    """Fires if a feature at position 0, brought by a head, and one at the last are both on."""
    return _known(
        {_A: {1: 1.0}, _B: {4: 1.0}},
        [
            [Neuron({1: 1.0}, {2: 1.0})],
            [Neuron({2: 1.0, 3: 1.0}, {_OUT: 2.0}, bias=-1.0)],
        ],
        "token@0 token@2 mlp0.2@0 mlp0.2@2 mlp1.0@2",
        edges="token@0>mlp0.2@0 token@2>mlp0.2@2 mlp0.2@0>mlp1.0@2 mlp0.2@2>mlp1.0@2 "
        "mlp1.0@2>output",
        head=(1, 2, 3),
        place=0,
        both=True,
    )


def _redundant() -> Known:
    """Two features of layer 0 do the same, and layer 1 takes `min(1, their sum)`."""
    return _known(
        {_A: {1: 1.0}, _B: {4: 1.0}},
        [
            [Neuron({1: 1.0}, {2: 1.0}), Neuron({1: 1.0}, {2: 1.0})],
            [Neuron({2: 1.0}, {_OUT: 1.0}), Neuron({2: 1.0}, {_OUT: -1.0}, bias=-1.0)],
        ],
        "token@2 mlp0.2@2 mlp0.3@2 mlp1.0@2 mlp1.1@2",
        "token@2 mlp0.2@2 mlp1.0@2 mlp1.1@2",
        "token@2 mlp0.3@2 mlp1.0@2 mlp1.1@2",
        "token@2 mlp0.2@2 mlp1.0@2",
        "token@2 mlp0.3@2 mlp1.0@2",
        edges="token@2>mlp0.2@2 token@2>mlp0.3@2 mlp0.2@2>mlp1.0@2 mlp0.3@2>mlp1.0@2 "
        "mlp0.2@2>mlp1.1@2 mlp0.3@2>mlp1.1@2 mlp1.0@2>output "
        "mlp1.1@2>output",
    )


def _decoy() -> Known:
    """The chain, beside a feature that is loud on every prompt alike and feeds the logit most, and
    a path that differs between prompts, is louder still, and feeds nothing.
    """
    return _known(
        {_A: {1: 1.0, 5: 1.0}, _B: {4: 1.0, 5: 1.0}},
        [
            [
                Neuron({1: 1.0}, {2: 2.0}),
                Neuron({5: 1.0}, {_OUT: 6.0}),
                Neuron({1: 9.0}, {6: 1.0}),
            ],
            [Neuron({2: 1.0}, {_OUT: 1.5}), Neuron({6: 2.0}, {8: 1.0})],
        ],
        "token@2 mlp0.2@2 mlp1.0@2",
        edges="token@2>mlp0.2@2 mlp0.2@2>mlp1.0@2 mlp1.0@2>output",
    )


def _copy() -> Known:
    """A head copies what the first token says to the last; an MLP without transcoder reads it.

    No edge crosses that MLP, so that graphs alone cannot know the token behind it.
    """
    return _known(
        {_A: {1: 1.0}, _B: {4: 1.0}},
        [[], [Neuron({3: 1.0}, {2: 1.0})], [Neuron({2: 1.0}, {_OUT: 2.0})]],
        "token@0 sublayer.mlp1@2 mlp2.0@2",
        "sublayer.mlp1@2 mlp2.0@2",
        edges="sublayer.mlp1@2>mlp2.0@2 mlp2.0@2>output",
        head=(1, 1, 3),
        without={1: None},
        place=0,
    )


def _missing() -> Known:
    """The chain with a transcoder that lacks its first feature, so that an error stands for it.

    Errors are held, so that the token behind one changes nothing.
    """
    return _known(
        {_A: {1: 1.0}, _B: {4: 1.0}},
        [[Neuron({1: 1.0}, {2: 2.0})], [Neuron({2: 1.0}, {_OUT: 1.5})]],
        "error.mlp0@2 mlp1.0@2",
        edges="error.mlp0@2>mlp1.0@2 mlp1.0@2>output",
        without={0: 2},
    )


KNOWN = {
    "chain": cache(_chain),
    "conjunction": cache(_conjunction),
    "redundant": cache(_redundant),
    "decoy": cache(_decoy),
    "copy": cache(_copy),
    "missing": cache(_missing),
}
"""Every model, built when it is asked for."""
