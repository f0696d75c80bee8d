"""Random small architectures, dictionaries, prompts and targets, as hypothesis strategies.

What is drawn is a description (sizes, names, seeds), so that a failing example prints as what it is
and shrinks towards one layer of GPT-2 without dictionaries.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
import transformers
from hypothesis import strategies as st

from attribution import (
    DirectionTarget,
    FeatureTarget,
    LogitDifference,
    ProbabilityDifference,
    Target,
    TopLogits,
)
from circuits import Dictionary, Site, SplicedModel, SubjectModel
from circuits.conventions import NATIVE, Convention
from circuits.dictionaries import Activation
from circuits.spliced import HeldMode
from tests import models

D_VOCAB, N_CTX, BOS = 20, 12, 0
READABLE = ("resid_pre", "resid_post", "attn_out", "resid_mid", "mlp_in", "mlp_out")
CONVENTIONS = tuple(
    NATIVE.model_copy(update={"norm": norm, "output": output, "first_position": first})
    for norm in ("gain and bias", "none")
    for output in ("before post-norm", "after post-norm")
    for first in ("read", "left out")
)
"""Where transcoders read and write, and whether they know the first position."""


def readable(parallel: bool) -> tuple[str, ...]:
    """What targets read in a block: a parallel one has no `resid_mid`."""
    return tuple(kind for kind in READABLE if not (parallel and kind == "resid_mid"))


@dataclass(frozen=True)
class Shape:
    """A model: its family, its sizes, and the seed of its weights.

    `n_kv_heads` and `rotary` (entries of each head that are rotated) count where the family has
    grouped heads and rotates part of a head.
    """

    family: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    rotary: int
    seed: int


@dataclass(frozen=True)
class Part:
    """One dictionary: where, of what kind, how wide, the seed of its weights, its convention."""

    key: str
    activation: Activation
    n_features: int
    skip: bool
    seed: int
    convention: Convention = NATIVE

    def build(self, d_model: int) -> Dictionary:
        site, _, _ = self.key.rpartition(".")
        sizes = {"seed": self.seed, "n_features": self.n_features, "d_model": d_model}
        if site == "mlp":
            found = models.transcoder(self.activation, skip=self.skip, **sizes)
            found = replace(found, convention=self.convention)
        else:
            found = models.sae(site, self.activation, **sizes)
        if self.activation == "topk":
            return replace(found, k=2)
        if self.activation == "jumprelu":  # of both signs, so that activations are as well
            return replace(found, threshold=found.W_dec.sum(1))
        return found


@dataclass(frozen=True)
class Aim:
    """One target: its kind, its position, and what kinds of targets need."""

    kind: str
    pos: int
    key: str
    index: int
    correct: tuple[int, ...]
    wrong: tuple[int, ...]

    def build(self, d_model: int) -> Target:
        correct, wrong = list(self.correct), list(self.wrong)
        match self.kind:
            case "feature":
                return FeatureTarget(self.key, self.index, self.pos)
            case "direction":
                kind, _, layer = self.key.rpartition(".")
                generator = torch.Generator().manual_seed(self.index)
                vector = torch.randn(d_model, generator=generator)
                return DirectionTarget(Site(kind, int(layer)), vector, self.pos)  # type: ignore[arg-type]
            case "top":
                return TopLogits(max_n=1 + self.index, pos=self.pos)
            case "difference":
                return LogitDifference(correct, wrong, self.pos)
            case _:
                one, other = torch.tensor(correct), torch.tensor(wrong, dtype=torch.long)
                return ProbabilityDifference(one, other, self.pos)


@dataclass(frozen=True)
class Case:
    """A model with dictionaries, a prompt, and what to explain."""

    shape: Shape
    parts: tuple[Part, ...]
    prompt: tuple[int, ...]
    mode: HeldMode
    aims: tuple[Aim, ...]

    @property
    def tokens(self) -> torch.Tensor:
        return torch.tensor(self.prompt)

    def targets(self) -> list[Target]:
        return [aim.build(self.shape.d_model) for aim in self.aims]

    def spliced(self) -> SplicedModel:
        dictionaries = {part.key: part.build(self.shape.d_model) for part in self.parts}
        return SplicedModel(subject(self.shape), dictionaries)


def _sizes(shape: Shape) -> dict[str, Any]:
    return {
        "vocab_size": D_VOCAB,
        "hidden_size": shape.d_model,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "intermediate_size": 20,
        "max_position_embeddings": N_CTX,
        "pad_token_id": None,
        "bos_token_id": BOS,
        "eos_token_id": BOS,
    }


def _grouped(shape: Shape) -> dict[str, Any]:
    return _sizes(shape) | {"num_key_value_heads": shape.n_kv_heads}


def _free(shape: Shape) -> dict[str, Any]:
    return _grouped(shape) | {"head_dim": shape.d_head}


def _gpt2(shape: Shape, **settings: Any) -> transformers.PretrainedConfig:
    return transformers.GPT2Config(
        vocab_size=D_VOCAB,
        n_embd=shape.d_model,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        n_positions=N_CTX,
        bos_token_id=BOS,
        eos_token_id=BOS,
        **settings,
    )


def _partly_rotated(shape: Shape) -> dict[str, Any]:
    """Only the first entries of each head are rotated."""
    share = shape.rotary / shape.d_head
    rope = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": share}
    return {"rope_parameters": rope}


def _gemma3(shape: Shape) -> transformers.PretrainedConfig:
    kinds = ("sliding_attention", "full_attention")
    layer_types = [kinds[layer % 2] for layer in range(shape.n_layers)]
    return transformers.Gemma3TextConfig(
        query_pre_attn_scalar=5, sliding_window=3, layer_types=layer_types, **_free(shape)
    )


DIVIDING: dict[str, Callable[[Shape], transformers.PretrainedConfig]] = {
    "gpt2": _gpt2,
    "gpt2_by_layer": lambda shape: _gpt2(
        shape, scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False
    ),
    "neox_parallel": lambda shape: transformers.GPTNeoXConfig(
        use_parallel_residual=True, **_sizes(shape), **_partly_rotated(shape)
    ),
    "neox_sequential": lambda shape: transformers.GPTNeoXConfig(
        use_parallel_residual=False, **_sizes(shape), **_partly_rotated(shape)
    ),
    "stablelm": lambda shape: transformers.StableLmConfig(
        use_qkv_bias=True, **_grouped(shape), **_partly_rotated(shape)
    ),
    "starcoder2": lambda shape: transformers.Starcoder2Config(**_grouped(shape)),
    "qwen2": lambda shape: transformers.Qwen2Config(**_grouped(shape)),
}
"""Families whose heads share out `d_model`."""

FREE: dict[str, Callable[[Shape], transformers.PretrainedConfig]] = {
    "llama": lambda shape: transformers.LlamaConfig(tie_word_embeddings=False, **_free(shape)),
    "llama_biased": lambda shape: transformers.LlamaConfig(
        attention_bias=True, mlp_bias=True, **_free(shape)
    ),
    "mistral": lambda shape: transformers.MistralConfig(sliding_window=3, **_free(shape)),
    "qwen3": lambda shape: transformers.Qwen3Config(**_free(shape)),
    "gemma2": lambda shape: transformers.Gemma2Config(
        attn_logit_softcapping=4.0,
        final_logit_softcapping=9.0,
        query_pre_attn_scalar=5,
        sliding_window=3,
        **_free(shape),
    ),
    "gemma3": _gemma3,
}
"""Families whose heads are of any width."""

UNLIKE_OTHERS = ("neox_parallel", "neox_parallel", "gemma2", "llama")
"""Drawn more often: parallel blocks, norms behind sublayers, neither biases nor positions."""

IN_FLOAT64 = ("gpt2", "gpt2_by_layer", "stablelm", "starcoder2")
"""Families that run in float64 throughout. In the others RMS norms, or the attention of GPT-NeoX in
the bridge, round to float32."""


def hf_model(shape: Shape) -> Any:
    """A fresh float64 transformers model, the same each time, nothing left at 0 or 1."""
    config = (DIVIDING | FREE)[shape.family](shape)
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(shape.seed)
        model: Any = transformers.AutoModelForCausalLM.from_config(config).double()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
                else:
                    parameter.normal_(std=2.0 * shape.d_model**-0.5)
    return model.eval()


@lru_cache(maxsize=64)
def subject(shape: Shape) -> SubjectModel:
    """The model behind our adapter (shared: never change its weights); token 0 is BOS."""
    return SubjectModel.from_transformers(hf_model(shape), models.word_tokenizer())


GROUPED = Case(
    Shape("llama", 3, 8, 4, 2, 2, 2, 0),
    (Part("mlp.1", "relu", 4, False, 0),),
    (BOS, 3, 5, 3),
    "exact",
    (Aim("difference", -1, "", 0, (1,), (2,)),),
)
"""Two query heads a key-value head, and targets above several layers of them."""

PARALLEL = Case(
    Shape("neox_parallel", 2, 8, 2, 2, 4, 2, 0),
    (Part("mlp.0", "relu", 4, False, 0), Part("mlp.1", "relu", 4, False, 1)),
    (BOS, 3, 5, 3),
    "exact",
    (Aim("difference", -1, "", 0, (1,), (2,)),),
)
"""Features of the second layer do not read what its heads write."""

POST_NORMS = replace(PARALLEL, shape=Shape("gemma2", 2, 8, 2, 1, 4, 2, 0))
"""Norms behind both sublayers, on every path through a head."""

_STREAM = NATIVE.model_copy(update={"norm": "none"})
_BEHIND = NATIVE.model_copy(update={"output": "after post-norm"})
_AROUND = _BEHIND.model_copy(update={"norm": "none"})
AROUND_NORMS = replace(
    POST_NORMS,
    shape=Shape("gemma2", 3, 8, 2, 1, 4, 2, 0),
    parts=(
        Part("mlp.0", "relu", 4, False, 0, _BEHIND),
        Part("mlp.1", "relu", 4, True, 1, _AROUND),
        Part("mlp.2", "relu", 4, False, 2, _STREAM),
    ),
)
"""Transcoders that write behind the post-norm, read in front of the norm, or both."""

# --- strategies ---------------------------------------------------------------------------------


@st.composite
def shapes(draw: st.DrawFn, max_layers: int = 4) -> Shape:
    family = draw(st.sampled_from([*DIVIDING, *FREE, *UNLIKE_OTHERS]))
    d_model = draw(st.sampled_from((8, 16, 24)))
    n_heads = draw(st.sampled_from([n for n in (1, 2, 3, 4, 4) if d_model % (2 * n) == 0]))
    n_kv_heads = [n for n in (1, 2, 3, 4) if n_heads % n == 0]
    n_kv_heads += [n for n in n_kv_heads if 1 < n < n_heads] * 2  # neither one nor all
    if family in FREE:
        d_head = draw(st.sampled_from((2, 4, 6)))
    else:
        d_head = d_model // n_heads
    return Shape(
        family=family,
        n_layers=draw(st.sampled_from([n for n in (1, 2, 3, 4, 2, 3) if n <= max_layers])),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=draw(st.sampled_from(n_kv_heads)),
        d_head=d_head,
        rotary=draw(st.sampled_from(range(2, d_head + 1, 2))),
        seed=draw(st.integers(0, 9)),
    )


@st.composite
def _parts(draw: st.DrawFn, shape: Shape, skips: bool) -> tuple[Part, ...]:
    """Dictionaries at some places; the stream between two blocks goes by either of its names."""

    def choose(*keys: str | None) -> None:
        key = draw(st.sampled_from(keys))
        if key is not None:
            activation = draw(st.sampled_from(("relu", "jumprelu", "topk")))
            n_features = draw(st.integers(1, 6))
            transcodes = key.startswith("mlp.")
            skip = skips and transcodes and draw(st.booleans())
            convention = draw(st.sampled_from(fitting)) if transcodes else NATIVE
            parts.append(Part(key, activation, n_features, skip, len(parts), convention))

    parts: list[Part] = []
    n_layers = shape.n_layers
    fitting = [c for c in CONVENTIONS if c.norm != "none" or shape.family != "neox_parallel"]
    choose(None, None, None, "resid_pre.0")  # rarely, as all that hides what is below
    for layer in range(n_layers):
        choose(None, None, None, f"attn_out.{layer}")
        choose(None, f"mlp.{layer}", f"mlp.{layer}", f"mlp_out.{layer}")
        name = f"resid_pre.{layer + 1}" if layer + 1 < n_layers else None
        choose(None, None, None, None, None, name, f"resid_post.{layer}")
    return tuple(parts)


@st.composite
def _aims(draw: st.DrawFn, shape: Shape, parts: tuple[Part, ...], n_pos: int) -> Aim:
    """A feature may be inactive; a direction may be at any place."""
    options = ["difference", "probability", "top", "direction", *(["feature"] * bool(parts))]
    kind, key, index = draw(st.sampled_from(options)), "", draw(st.integers(0, 2))
    correct, wrong = (), ()
    if kind == "feature":
        part = draw(st.sampled_from(parts))
        key, index = part.key, draw(st.integers(0, part.n_features - 1))
    elif kind == "direction":
        kinds = readable(shape.family == "neox_parallel")
        places = [f"{site}.{layer}" for layer in range(shape.n_layers) for site in kinds]
        key = draw(st.sampled_from([*places, "unembed_in.0"]))
    elif kind in ("difference", "probability"):
        tokens = draw(st.lists(st.integers(0, D_VOCAB - 1), min_size=1, max_size=5, unique=True))
        n_correct = draw(st.integers(1, len(tokens)))
        correct, wrong = tuple(tokens[:n_correct]), tuple(tokens[n_correct:])
    return Aim(kind, draw(st.integers(-n_pos, n_pos - 1)), key, index, correct, wrong)


@st.composite
def cases(draw: st.DrawFn, max_layers: int = 4, skips: bool = True) -> Case:
    shape = draw(shapes(max_layers))
    token, n_pos = st.integers(0, D_VOCAB - 1), draw(st.integers(1, 9))
    prompt = draw(st.lists(token, min_size=n_pos, max_size=n_pos))
    if draw(st.booleans()):
        prompt[0] = BOS
    mode = draw(st.sampled_from(("exact", "replace")))
    parts = draw(_parts(shape, skips))
    aims = draw(st.lists(_aims(shape, parts, n_pos), min_size=1, max_size=3))
    return Case(shape, parts, tuple(prompt), mode, tuple(aims))
