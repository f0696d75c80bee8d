"""Checks that an architecture can be frozen: every hook is live and every linear formula holds.

Run once at load, on random tokens: one forward, one backward and one captured forward.
"""

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.sites import READ_ONLY, NormName, Site
from circuits.subject import Norm, SubjectModel

__all__ = ["UnsupportedArchitectureError", "check_architecture", "dead_sites"]

_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 2e-2}


class UnsupportedArchitectureError(ValueError):
    """This architecture hides something that exact attribution needs."""


def _sites(model: SubjectModel) -> list[Site]:
    blocks = [site for layer in range(model.n_layers) for site in model.block_sites(layer)]
    return [Site("embed"), *blocks, *model.scale_sites(), Site("unembed_in")]


def dead_sites(model: SubjectModel, tokens: Int[Tensor, "batch pos"]) -> list[Site]:
    """Sites where an edit does not reach the logits; those that are only read are not asked.

    Every site gets `value + strength * noise` with `strength` 0; a site whose `strength` has no
    gradient on a random projection of the logits is dead. One pass tests them all.
    """
    sites = [site for site in _sites(model) if site.kind not in READ_ONLY]
    strength = torch.zeros(len(sites), dtype=model.dtype, device=model.device, requires_grad=True)

    def nudge(i: int):
        return lambda value: value + strength[i].to(value.dtype) * torch.rand_like(value)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        edits = {site: nudge(i) for i, site in enumerate(sites)}
        with torch.enable_grad():
            logits, _ = model.run(tokens, edits=edits)
            loss = (logits * torch.randn_like(logits)).sum()
            (gradient,) = torch.autograd.grad(loss, strength, allow_unused=True)
    if gradient is None:
        return sites
    return [site for site, g in zip(sites, gradient, strict=True) if g == 0 or not g.isfinite()]


def _norm(model: SubjectModel, name: NormName, layer: int) -> Norm | None:
    """A norm, to compute with in at least float32."""
    norm = model.norm(name, layer)
    return None if norm is None else norm.to(torch.promote_types(model.dtype, torch.float32))


def _attention_write(
    model: SubjectModel, layer: int, values: dict[Site, Tensor]
) -> Float[Tensor, "batch pos d_model"]:
    """What attention writes, rebuilt from the pattern, the norm scales and the weights."""
    heads, ln1 = model.heads(layer), _norm(model, "ln1", layer)
    assert ln1 is not None
    x = ln1.linear(values[Site("resid_pre", layer)], values[Site("ln1_scale", layer)]) + ln1.bias
    v = einops.einsum(x, heads.W_V.to(x), "b p d, h d e -> b h p e") + heads.b_V[:, None]
    z = values[Site("pattern", layer)].to(v) @ v
    out = einops.einsum(z, heads.W_O.to(z), "b h p e, h e d -> b p d") + heads.b_O
    post = _norm(model, "ln1_post", layer)
    return (
        out if post is None else post.linear(out, values[Site("ln1_post_scale", layer)]) + post.bias
    )


def _gaps(model: SubjectModel, tokens: Int[Tensor, "batch pos"]) -> dict[str, float]:
    """Relative gaps between captured values and the linear formulas that should give them."""
    logits, captured = model.run(tokens, capture=_sites(model))
    dtype = torch.promote_types(model.dtype, torch.float32)
    values = {site: value.to(dtype) for site, value in captured.items()}

    def gap(want: Tensor, got: Tensor) -> float:
        return float((want - got).abs().max() / want.abs().max().clamp_min(1e-6))

    gaps: dict[str, float] = {}
    for layer in range(model.n_layers):
        at = {site.kind: values[site] for site in model.block_sites(layer)}
        middle = at["resid_pre"] + at["attn_out"]
        gaps[f"attention of layer {layer}"] = gap(
            at["attn_out"], _attention_write(model, layer, values)
        )
        gaps[f"residual sum of layer {layer}"] = gap(at["resid_post"], middle + at["mlp_out"])
        if not model.parallel:
            gaps[f"stream between the sublayers of layer {layer}"] = gap(at["resid_mid"], middle)
        ln2 = _norm(model, "ln2", layer)
        assert ln2 is not None
        read = at["resid_pre"] if model.parallel else middle
        rebuilt = ln2.linear(read, values[Site("ln2_scale", layer)]) + ln2.bias
        gaps[f"pre-MLP norm of layer {layer}"] = gap(at["mlp_in"], rebuilt)
        post = _norm(model, "ln2_post", layer)
        if post is not None:
            scale = values[Site("ln2_post_scale", layer)]
            rebuilt = post.linear(at["mlp_raw_out"], scale) + post.bias
            gaps[f"post-MLP norm of layer {layer}"] = gap(at["mlp_out"], rebuilt)
    final = _norm(model, "final", 0)
    assert final is not None
    last = values[Site("resid_post", model.n_layers - 1)]
    rebuilt = final.linear(last, values[Site("final_scale")]) + final.bias
    gaps["final norm"] = gap(values[Site("unembed_in")], rebuilt)
    raw = captured[Site("unembed_in")] @ model.W_U + model.b_U
    cap = model.logit_softcap
    gaps["unembedding"] = gap(logits, cap * torch.tanh(raw / cap) if cap else raw)
    return gaps


def check_architecture(model: SubjectModel) -> None:
    """Refuse a model whose hooks are dead or whose blocks are not what the formulas say.

    Raises:
        UnsupportedArchitectureError: names the sites or formulas that fail.
    """
    generator = torch.Generator().manual_seed(0)
    n_pos = min(6, model.n_ctx)
    tokens = torch.randint(0, model.d_vocab, (1, n_pos), generator=generator).to(model.device)
    tolerance = _TOLERANCE[model.dtype]
    try:
        dead = dead_sites(model, tokens)
        wrong = {} if dead else {k: v for k, v in _gaps(model, tokens).items() if not v < tolerance}
    except (AttributeError, KeyError, AssertionError) as error:
        raise UnsupportedArchitectureError(
            f"cannot freeze {model.name!r}: it lacks {error}; supported are pre-norm decoders such "
            "as GPT-2, GPT-NeoX / Pythia, Llama, Qwen and Gemma"
        ) from error
    if dead:
        raise UnsupportedArchitectureError(
            f"cannot freeze {model.name!r}: edits at {', '.join(map(str, dead[:6]))} "
            f"({len(dead)} sites) do not reach the logits"
        )
    if wrong:
        worst = max(wrong, key=lambda k: wrong[k])
        raise UnsupportedArchitectureError(
            f"cannot freeze {model.name!r}: the {worst} differs from its linear formula by "
            f"{wrong[worst]:.2g} (relative); {len(wrong)} such places"
        )
