"""The subject model: one adapter over transformer-lens' TransformerBridge in raw mode.

The only module that knows a transformer-lens name. Everything else speaks of `Site`s.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sites import READ_ONLY, NormName, Site, SiteKind
from circuits.starts import Start, check_replaced, check_start, passing_on

__all__ = ["Edit", "Heads", "Norm", "QueryKey", "SubjectModel"]

Edit = Callable[[Tensor], Tensor]

_HOOKS: dict[SiteKind, str] = {
    "embed": "embed.hook_out",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "mlp_in": "blocks.{}.mlp.hook_in",
    "mlp_post": "blocks.{}.mlp.out.hook_in",
    "mlp_raw_out": "blocks.{}.mlp.hook_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "z": "blocks.{}.attn.o.hook_in",
    "pattern": "blocks.{}.attn.hook_pattern",
    "attn_scores": "blocks.{}.attn.hook_attn_scores",
    "rotary_cos": "blocks.{}.attn.hook_cos",
    "rotary_sin": "blocks.{}.attn.hook_sin",
    "q_norm_scale": "blocks.{}.attn.q_norm.hook_scale",
    "k_norm_scale": "blocks.{}.attn.k_norm.hook_scale",
    "ln1_scale": "blocks.{}.ln1.hook_scale",
    "ln2_scale": "blocks.{}.ln2.hook_scale",
    "ln1_post_scale": "blocks.{}.ln1_post.hook_scale",
    "ln2_post_scale": "blocks.{}.ln2_post.hook_scale",
    "final_scale": "ln_final.hook_scale",
    "unembed_in": "unembed.hook_in",
}


_ORDER: tuple[SiteKind, ...] = tuple(_HOOKS)


def _moment(site: Site) -> tuple[int, int]:
    """Sites of one layer in the order of computation: two may share a hook, which runs edits in
    the order of registration (`mlp_raw_out` is `mlp_out` where there is no post-norm).
    """
    return site.layer, _ORDER.index(site.kind)


class _Enough(Exception):
    """Ends a forward pass once every wanted value is there."""


@dataclass(frozen=True)
class Norm:
    """A norm with its denominator held: `out = gain * (x - centred * mean(x)) / scale + bias`."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool

    def linear(
        self, x: Float[Tensor, "*rest d_model"], scale: Float[Tensor, "*#rest 1"]
    ) -> Float[Tensor, "*rest d_model"]:
        """The linear part: everything but the bias."""
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return x / scale * self.gain

    def adjoint(
        self, g: Float[Tensor, "*rest d_model"], scale: Float[Tensor, "*#rest 1"]
    ) -> Float[Tensor, "*rest d_model"]:
        """Carry a gradient at the norm's output to its input: the transpose of `linear`."""
        g = g * self.gain / scale
        return g - g.mean(-1, keepdim=True) if self.centred else g

    def to(self, dtype: torch.dtype) -> "Norm":
        """The same norm in another dtype."""
        return Norm(self.gain.to(dtype), self.bias.to(dtype), self.centred)


@dataclass(frozen=True)
class Heads:
    """Value and output weights of one layer, one entry a *query* head (grouped heads expanded).

    `group` query heads in a row share their value weights.
    """

    W_V: Float[Tensor, "head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    b_V: Float[Tensor, "head d_head"]
    b_O: Float[Tensor, " d_model"]
    group: int = 1


@dataclass(frozen=True)
class QueryKey:
    """Query and key weights of one layer, one entry a *query* head (grouped heads expanded).

    With x the output of `ln1`, rho the denominators of query and key norms (1 where there are
    none; their gains are folded in here) and R the rotation of the position (none without RoPE):

        score[q, k] = scale * <R_q (x_q W_Q + b_Q) / rho_q, R_k (x_k W_K + b_K) / rho_k>

    and the softmax reads `softcap * tanh(score / softcap)`, or the score where `softcap` is 0.
    """

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "head d_model d_head"]
    b_Q: Float[Tensor, "head d_head"]
    b_K: Float[Tensor, "head d_head"]
    scale: float
    softcap: float


class SubjectModel:
    """A causal language model that can be read, edited and frozen at every `Site`.

    Args:
        bridge: a TransformerBridge in raw mode; its parameters are frozen here.
        tokenizer: a Hugging Face tokenizer, or None to work on token ids alone.
        name: how the model is called in files and messages.
        prepend_bos: whether `tokenize` puts the BOS token first; None does what the tokenizer does.

    Raises:
        ValueError: if `prepend_bos` is asked of a tokenizer that has no BOS token.
    """

    def __init__(
        self, bridge: Any, tokenizer: Any, name: str, prepend_bos: bool | None = None
    ) -> None:
        if prepend_bos and tokenizer is not None and tokenizer.bos_token_id is None:
            raise ValueError(f"the tokenizer of {name!r} has no BOS token; leave prepend_bos unset")
        self._bridge = bridge.eval()
        for parameter in bridge.parameters():
            parameter.requires_grad_(False)
        cfg = bridge.cfg
        self.name = name
        self.tokenizer = tokenizer
        self.prepend_bos = prepend_bos
        self.n_layers: int = cfg.n_layers
        self.d_model: int = cfg.d_model
        self.d_vocab: int = bridge.W_E.shape[0]
        self.n_ctx: int = cfg.n_ctx
        self.n_heads: int = cfg.n_heads
        self.parallel: bool = bool(cfg.parallel_attn_mlp)
        self.logit_softcap: float = max(float(cfg.output_logits_soft_cap or 0.0), 0.0)
        self._heads = lru_cache(maxsize=None)(self._read_heads)
        self._query_keys = lru_cache(maxsize=None)(self._read_query_key)
        self._outputs = lru_cache(maxsize=None)(self._look_at_outputs)

    @classmethod
    def from_transformers(
        cls,
        hf_model: Any,
        tokenizer: Any = None,
        name: str = "local",
        prepend_bos: bool | None = None,
    ) -> "SubjectModel":
        """Wrap an in-memory transformers model. Wrapping changes `hf_model`: save it before."""
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        hf_model.eval().requires_grad_(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bridge = build_bridge_from_module(
                hf_model, type(hf_model).__name__, hf_config=hf_model.config, model_name=name
            )
        return cls(bridge, tokenizer, name, prepend_bos)

    @property
    def bos_token(self) -> int:
        """The id of BOS, or -1 where there is no tokenizer or it has none."""
        bos = None if self.tokenizer is None else self.tokenizer.bos_token_id
        return -1 if bos is None else bos

    @property
    def device(self) -> torch.device:
        return self.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_E.dtype

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return self._bridge.W_E.detach()

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        return self._bridge.W_U.detach()

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        bias = getattr(self._bridge, "b_U", None)
        return self.W_U.new_zeros(self.d_vocab) if bias is None else bias.detach()

    def norm(self, name: NormName, layer: int = 0) -> Norm | None:
        """The norm called `name`, or None where the architecture has none there."""
        owner = self._bridge if name == "final" else self._bridge.blocks[layer]
        module = getattr(owner, "ln_final" if name == "final" else name, None)
        if module is None:
            return None
        gain = module.weight.detach()
        gain = 1 + gain if module.uses_weight_offset else gain
        bias = None if module.uses_rms_norm else module.original_component.bias
        bias = torch.zeros_like(gain) if bias is None else bias.detach()
        return Norm(gain, bias, not module.uses_rms_norm)

    def norm_eps(self, name: NormName, layer: int = 0) -> float:
        """What the norm called `name` adds to the mean square before the root.

        Raises:
            ValueError: if the architecture has no such norm, or one that does not tell.
        """
        owner = self._bridge if name == "final" else self._bridge.blocks[layer]
        module = getattr(owner, "ln_final" if name == "final" else name, None)
        component = getattr(module, "original_component", None)
        eps = getattr(component, "eps", getattr(component, "variance_epsilon", None))
        if eps is None:
            raise ValueError(
                f"{self.name!r} has no norm {name!r} at layer {layer} that adds a number"
            )
        return float(eps)

    def mlp(
        self, layer: int, x: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """The MLP of `layer` alone: `mlp_raw_out` from `mlp_in`."""
        return self._bridge.blocks[layer].mlp(x)

    def heads(self, layer: int) -> Heads:
        """Value and output weights of `layer`, expanded to query heads and cached."""
        return self._heads(layer)

    def _read_heads(self, layer: int) -> Heads:
        attention = self._bridge.blocks[layer].attn
        W_O, W_V = attention.W_O.detach(), attention.W_V.detach()
        repeats = W_O.shape[0] // W_V.shape[0]
        b_V = W_V.new_zeros(W_V.shape[0], W_V.shape[2]) if attention.b_V is None else attention.b_V
        b_O = W_O.new_zeros(self.d_model) if attention.b_O is None else attention.b_O.detach()
        b_V = b_V.detach()
        if repeats > 1:  # repeating copies, which one head a group does not need
            W_V, b_V = W_V.repeat_interleave(repeats, 0), b_V.repeat_interleave(repeats, 0)
        return Heads(W_V, W_O, b_V, b_O, repeats)

    def query_key(self, layer: int) -> QueryKey:
        """Query and key weights of `layer`, expanded to query heads and cached.

        Raises:
            ValueError: if scores of this architecture are not `QueryKey`'s formula.
        """
        return self._query_keys(layer)

    def _read_query_key(self, layer: int) -> QueryKey:
        attention, cfg = self._bridge.blocks[layer].attn, self._bridge.cfg
        if cfg.positional_embedding_type not in ("standard", "rotary"):
            raise ValueError(
                f"attention scores of {self.name!r} add a term for positions "
                f"({cfg.positional_embedding_type}); want learned or rotary positions"
            )
        if cfg.rotary_adjacent_pairs or cfg.rotary_interleaved_cos_sin:
            raise ValueError(
                f"{self.name!r} rotates adjacent entries of queries and keys; want the rotation "
                "of Llama and GPT-NeoX, which pairs entry i with entry i + half the width"
            )
        (W_Q, b_Q), (W_K, b_K) = (self._read_side(layer, side) for side in ("q", "k"))
        component, repeats = attention.original_component, W_Q.shape[0] // W_K.shape[0]
        return QueryKey(
            W_Q,
            W_K.repeat_interleave(repeats, 0),
            b_Q,
            b_K.repeat_interleave(repeats, 0),
            float(getattr(component, "scaling", W_Q.shape[2] ** -0.5)),
            float(getattr(component, "attn_logit_softcapping", None) or 0.0),
        )

    def _read_side(
        self, layer: int, side: Literal["q", "k"]
    ) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head"]]:
        """Weights and biases of queries or keys, the gain of their norm folded in."""
        attention = self._bridge.blocks[layer].attn
        W = getattr(attention, f"W_{side.upper()}").detach()
        b = getattr(attention, f"b_{side.upper()}")
        b = W.new_zeros(W.shape[0], W.shape[2]) if b is None else b.detach()
        norm = getattr(attention, f"{side}_norm", None)
        if norm is None:
            return W, b
        gain = norm.weight.detach()
        if not norm.uses_rms_norm or gain.shape != (W.shape[2],):
            raise ValueError(
                f"{self.name!r} normalises queries and keys by {type(norm).__name__} with a gain "
                f"of shape {tuple(gain.shape)}; want one RMSNorm a head, of width {W.shape[2]}"
            )
        gain = 1 + gain if norm.uses_weight_offset else gain
        return W * gain, b * gain

    def block_sites(self, layer: int) -> list[Site]:
        """The places of one block that are read and held, beside norm denominators.

        A parallel block has no `resid_mid`: attention and MLP read the same stream.
        """
        kinds: tuple[SiteKind, ...] = (
            *("resid_pre", "resid_post", "attn_out", "resid_mid"),
            *("mlp_in", "mlp_raw_out", "mlp_out", "pattern"),
        )
        return [Site(k, layer) for k in kinds if not (self.parallel and k == "resid_mid")]

    def score_sites(self, layer: int) -> list[Site]:
        """Where this model shows what `QueryKey`'s formula depends on beside the weights, and the
        scores themselves.
        """
        kinds: tuple[SiteKind, ...] = ("rotary_cos", "rotary_sin", "q_norm_scale", "k_norm_scale")
        sites = [Site(kind, layer) for kind in (*kinds, "attn_scores")]
        return [s for s in sites if _HOOKS[s.kind].format(s.layer) in self._bridge.hook_dict]

    def scale_sites(self) -> list[Site]:
        """Every norm denominator that must be held for the frozen model to be affine."""
        kinds: tuple[SiteKind, ...] = ("ln1_scale", "ln2_scale", "ln1_post_scale", "ln2_post_scale")
        sites = [Site(kind, layer) for layer in range(self.n_layers) for kind in kinds]
        live = [s for s in sites if _HOOKS[s.kind].format(s.layer) in self._bridge.hook_dict]
        return [*live, Site("final_scale")]

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        edits: Mapping[Site, Edit] | None = None,
        capture: Iterable[Site] = (),
        start: Start | None = None,
        replaced: Iterable[int] = (),
    ) -> tuple[Float[Tensor, "batch read_pos d_vocab"], dict[Site, Tensor]]:
        """One forward pass, or its rest from a layer on.

        Args:
            tokens: token ids.
            edits: what goes on at a site, as a function of what arrived there; at a `READ_ONLY`
                site it must be just that.
            capture: sites whose values, *after* any edit, are returned.
            start: a layer, and the residual stream that enters it (`resid_pre`, before its edit);
                no block below is run. None runs all. With the stream of a whole pass the answer is
                that pass's, bit for bit.
            replaced: layers whose MLP an edit of its output replaces whatever arrives there, so
                that it need not be run; what arrives then means nothing.

        Returns:
            Logits (at the positions an edit of `unembed_in` leaves, normally all), and the
            captured values with their batch axis.

        Raises:
            ValueError: if an edit changes the value of a `READ_ONLY` site, `start` names no layer,
                has not one vector a token, or lies behind an edited or captured site, or a layer
                of `replaced` has no edit of its MLP's output, or one inside the MLP.
        """
        captured: dict[Site, Tensor] = {}
        keep, edits, replaced = set(capture), dict(edits or {}), set(replaced)
        check_replaced(replaced, edits, keep)
        first = 0
        if start is not None:
            check_start(start, tokens, keep | set(edits), n_layers=self.n_layers)
            first, stream = start
            entry = Site("resid_pre", first)
            own = edits.get(entry)
            edits[entry] = lambda _: stream if own is None else own(stream)
        with self._without(first, replaced):
            return self._pass(tokens, edits, keep, captured), captured

    def _pass(
        self,
        tokens: Int[Tensor, "batch pos"],
        edits: Mapping[Site, Edit],
        keep: set[Site],
        captured: dict[Site, Tensor],
        *,
        whole: bool = True,
    ) -> Float[Tensor, "batch read_pos d_vocab"]:
        """One forward pass that puts the values at the sites in `keep` into `captured`.

        Raises:
            _Enough: unless the `whole` pass is wanted, as soon as they are all there.
            ValueError: if an edit changes the value of a `READ_ONLY` site.
        """
        n_wanted = len(keep)

        def hook_at(site: Site, edit: Edit | None, keep: bool) -> Callable[..., Tensor | None]:
            def hook(value: Tensor, hook: Any) -> Tensor | None:
                new = value if edit is None else edit(value)
                writes = edit is not None and site.kind not in READ_ONLY
                if writes:
                    # Some norms tell an edit from its absence by identity, so a denominator that
                    # was changed in place would be ignored.
                    new = new.clone() if new is value else new
                elif new is not value:
                    raise ValueError(
                        f"{site} can be read but not changed: the change would reach the MLP and "
                        "not the residual stream; edit attn_out or resid_pre of the layer"
                    )
                if keep:
                    captured[site] = new
                    if not whole and len(captured) == n_wanted:
                        raise _Enough
                return new if writes else None

            return hook

        hooks = [
            (_HOOKS[site.kind].format(site.layer), hook_at(site, edits.get(site), site in keep))
            for site in sorted(keep | set(edits), key=_moment)
        ]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")
            return self._bridge.run_with_hooks(tokens, fwd_hooks=hooks, use_cache=False)

    @contextmanager
    def _without(self, first: int, replaced: set[int]) -> Iterator[None]:
        """While this lasts, blocks below `first` and MLPs in `replaced` are not run."""
        if not first and not replaced:
            yield
            return
        in_tuple, plain = self._outputs()
        blocks = [self._bridge.blocks[layer] for layer in range(first)]
        mlps = [self._bridge.blocks[i].mlp.original_component for i in sorted(replaced & plain)]
        with passing_on(blocks, in_tuple=in_tuple), passing_on(mlps):
            yield

    def _look_at_outputs(self) -> tuple[bool, frozenset[int]]:
        """Whether blocks give tuples, which transformers unpacks in some architectures, and which
        layers have an MLP of its own that gives a tensor.
        """
        blocks, given = self._bridge.blocks, dict[int | None, Any]()

        def note(key: int | None) -> Callable[..., None]:
            return lambda _module, _args, output: given.__setitem__(key, output)

        handles = [blocks[0].register_forward_hook(note(None))]
        for layer, block in enumerate(blocks):
            if block.mlp.original_component is not block.original_component:
                handles.append(block.mlp.original_component.register_forward_hook(note(layer)))
        try:
            token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
            self._bridge.original_model(token, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        plain = {key for key, output in given.items() if isinstance(output, Tensor)}
        return isinstance(given[None], tuple), frozenset(key for key in plain if key is not None)

    def read(self, tokens: Int[Tensor, "batch pos"], sites: Iterable[Site]) -> dict[Site, Tensor]:
        """Values at `sites`, from a pass that ends as soon as all of them are there.

        Args:
            tokens: token ids.
            sites: what to read.
        """
        captured: dict[Site, Tensor] = {}
        with suppress(_Enough):
            self._pass(tokens, {}, set(sites), captured, whole=False)
        return captured

    def extend(
        self, tokens: Int[Tensor, "batch pos"], cache: Any = None
    ) -> tuple[Float[Tensor, "batch d_vocab"], Any]:
        """Read `tokens` after those in `cache`, as text generation does.

        Args:
            tokens: token ids that follow what the cache has seen.
            cache: what the previous call returned, or None at the start.

        Returns:
            Logits of the token that comes next, and the cache to go on from.
        """
        out = self._bridge.original_model(tokens, past_key_values=cache, use_cache=True)
        return out.logits[:, -1], out.past_key_values

    def tokenize(self, prompt: str, *, cut: bool = False) -> Int[Tensor, " pos"]:
        """Token ids of `prompt`, with or without BOS in front as `prepend_bos` says.

        Args:
            prompt: text.
            cut: whether a prompt that is too long loses its end, instead of being refused.

        Raises:
            ValueError: if there is no tokenizer, the prompt is empty, or it is too long.
        """
        if self.tokenizer is None:
            raise ValueError(
                f"model {self.name!r} has no tokenizer; pass token ids instead of text"
            )
        if not prompt:
            raise ValueError("the prompt is empty; write at least one word")
        ids = list(self.tokenizer(prompt).input_ids)
        bos = self.tokenizer.bos_token_id
        if self.prepend_bos is not None and bos is not None:
            ids = ids[1:] if ids[:1] == [bos] else ids
            ids = [bos, *ids] if self.prepend_bos else ids
        return self.check_tokens(torch.tensor(ids[: self.n_ctx] if cut else ids, dtype=torch.long))

    def check_tokens(self, tokens: Int[Tensor, " pos"]) -> Int[Tensor, " pos"]:
        """Return `tokens`, on the model's device, if the model can read them.

        Raises:
            ValueError: if there are none, too many, or one is outside the vocabulary.
        """
        if tokens.ndim != 1 or tokens.numel() == 0:
            raise ValueError(f"want a 1-D tensor of token ids, got shape {tuple(tokens.shape)}")
        if tokens.numel() > self.n_ctx:
            raise ValueError(
                f"the prompt has {tokens.numel()} tokens but {self.name!r} reads at most "
                f"{self.n_ctx}; shorten it"
            )
        if tokens.min() < 0 or tokens.max() >= self.d_vocab:
            raise ValueError(
                f"token ids must be in [0, {self.d_vocab}), got {int(tokens.min())} to "
                f"{int(tokens.max())}; was another tokenizer used?"
            )
        return tokens.to(self.device)

    def token_strings(self, tokens: Sequence[int] | Int[Tensor, " pos"]) -> tuple[str, ...]:
        """Each token as text, or as its id where there is no tokenizer."""
        ids = [int(t) for t in tokens]
        if self.tokenizer is None:
            return tuple(str(i) for i in ids)
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        return tuple(
            str(i) if piece is None else _piece_text(self.tokenizer, piece)
            for piece, i in zip(pieces, ids, strict=True)
        )

    def single_token(self, text: str) -> int:
        """The id of `text` if it is one token as a continuation (no BOS).

        Raises:
            ValueError: if it is several tokens, or none.
        """
        ids = self.continuation(text)
        if len(ids) != 1:
            raise ValueError(f"{text!r} is {len(ids)} tokens for {self.name!r}; want exactly one")
        return ids[0]

    def continuation(self, text: str) -> list[int]:
        """Token ids of `text` as it continues a prompt: no BOS, and no space added in front."""
        if self.tokenizer is None:
            raise ValueError(
                f"model {self.name!r} has no tokenizer; pass token ids instead of text"
            )
        anchor = self.tokenizer("a", add_special_tokens=False).input_ids
        ids = self.tokenizer("a" + text, add_special_tokens=False).input_ids
        if ids[: len(anchor)] == anchor:
            return ids[len(anchor) :]
        return self.tokenizer(text, add_special_tokens=False).input_ids


def _piece_text(tokenizer: Any, piece: str) -> str:
    """A vocabulary entry as text; byte-level pieces that are not whole characters stay raw."""
    if "▁" in piece:  # SentencePiece, whose decoder would drop a leading space
        return piece.replace("▁", " ")
    text = tokenizer.convert_tokens_to_string([piece])
    return text if text and "\N{REPLACEMENT CHARACTER}" not in text else piece
