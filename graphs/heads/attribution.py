"""Edge attribution patching: every edge between heads, MLPs, input and output scored at once.

Input-dependent: two forward passes and as many backward passes as there are steps. What is kept of
a pass is narrow: heads at their own width, before `W_O` and behind `W_Q, W_K, W_V`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.subject import SubjectModel
from graphs.heads.decomposed import Block, DecomposedModel, decompose
from graphs.heads.edges import HeadEdges
from graphs.heads.metrics import Metric
from graphs.heads.running import check_pairs

__all__ = ["edge_attribution", "interpolation"]


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer of a pass; what has a leaf can be walked back through."""

    stream: Float[Tensor, "batch pos d_model"]
    qkv: Float[Tensor, "reader batch pos d_head"]
    z: Float[Tensor, "head batch pos d_head"]
    mlp_in: Float[Tensor, "batch pos d_model"]
    mlp_out: Float[Tensor, "batch pos d_model"]


def interpolation(steps: int) -> list[float]:
    """How far from the corrupted to the clean embedding gradients are taken.

    0 is EAP: at the clean run alone. m is EAP-IG: at k / m for k = 0 .. m - 1, which includes the
    corrupted end and not the clean one, as the published code does (Hanna et al. 2024).

    Raises:
        ValueError: if `steps` is negative.

    Example:
        >>> interpolation(4)
        [0.0, 0.25, 0.5, 0.75]
    """
    if steps < 0:
        raise ValueError(f"want steps >= 0 (0 for EAP), got {steps}")
    return [k / steps for k in range(steps)] or [1.0]


def edge_attribution(
    model: SubjectModel,
    clean: Int[Tensor, "batch pos"],
    corrupted: Int[Tensor, "batch pos"],
    metric: Metric,
    *,
    steps: int = 0,
) -> Float[Tensor, "reader writer"]:
    """Estimate what each edge does to the metric if it alone carries its corrupted value.

        score[v, u] = sum_{prompt, pos} <z'_u - z_u, mean over steps of dL / d(input of v)>

    with z_u, z'_u what u writes on clean and corrupted prompts, and the input of v before its norm
    (EAP, Syed et al. 2023; EAP-IG, Hanna et al. 2024, over input embeddings).

    Args:
        model: the whole model, without dictionaries.
        clean: prompts of one length.
        corrupted: their counterparts, row by row and token by token.
        metric: a scalar from last-position logits. If it is a mean over prompts, scores are.
        steps: 0 for EAP, m for EAP-IG with m gradients; see `interpolation` for where.

    Returns:
        Signed, in units of the metric, in the order of `HeadEdges`; 0 where there is no edge. With
        grouped heads each query head has its own key and value edges, which share the model's.

    Raises:
        ValueError: if the prompts do not line up, the model cannot be taken apart (`decompose`),
            `steps` is negative, or the metric is not a scalar.
    """
    check_pairs(clean, corrupted)
    points = interpolation(steps)
    parts = decompose(model, clean)
    edges = HeadEdges(model.n_layers, model.n_heads, model.parallel)
    start, end = parts.embed(corrupted), parts.embed(clean)
    with torch.no_grad():
        other, _ = _run(parts, start)
    at_clean = _run(parts, end)
    added = _difference(parts, edges, start - end, at_clean[0], other)
    scores = added.new_zeros(edges.n_readers, edges.n_writers)
    for point in points:
        layers, last = at_clean if point == 1 else _run(parts, start.lerp(end, point))
        _add_scores(parts, edges, layers, _gradient_at_output(parts, metric, last), added, scores)
    return torch.where(edges.exists.to(scores.device), scores / len(points), 0.0)


def _run(
    parts: DecomposedModel, start: Float[Tensor, "batch pos d_model"]
) -> tuple[list[_Layer], Float[Tensor, "batch d_model"]]:
    """One pass: its layers, each with gradients of its own alone, and the last stream."""
    layers, stream = [], start
    for block in parts.blocks:
        qkv = block.read(block.normalise(stream[None]), slice(None)).detach().requires_grad_()
        z = block.attend(*qkv.chunk(3))
        middle = stream + torch.einsum("hnpe,hed->npd", z.detach(), block.W_O) + block.b_O
        mlp_in = (stream if parts.parallel else middle).detach().requires_grad_()
        mlp_out = block.mlp(mlp_in)
        layers.append(_Layer(stream, qkv, z, mlp_in, mlp_out))
        stream = middle + mlp_out.detach()
    return layers, stream[:, -1]


def _difference(
    parts: DecomposedModel,
    edges: HeadEdges,
    embed: Float[Tensor, "batch pos d_model"],
    clean: list[_Layer],
    corrupted: list[_Layer],
) -> Float[Tensor, "writer batch pos d_model"]:
    """What each writer adds in the corrupted run over the clean one."""
    added = embed.new_empty(edges.n_writers, *embed.shape)
    added[0] = embed
    with torch.no_grad():
        for layer, (block, one, other) in enumerate(
            zip(parts.blocks, clean, corrupted, strict=True)
        ):
            added[edges.head(layer, 0) : edges.mlp(layer)] = block.write(other.z - one.z)
            added[edges.mlp(layer)] = other.mlp_out - one.mlp_out
    return added


def _gradient_at_output(
    parts: DecomposedModel, metric: Metric, stream: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch d_model"]:
    stream = stream.detach().requires_grad_()
    value = metric(parts.unembed(stream))
    if value.ndim:
        raise ValueError(
            f"the metric must give one number, got shape {tuple(value.shape)}; take its mean"
        )
    return torch.autograd.grad(value, stream)[0]


def _add_scores(
    parts: DecomposedModel,
    edges: HeadEdges,
    layers: list[_Layer],
    at_output: Float[Tensor, "batch d_model"],
    added: Float[Tensor, "writer batch pos d_model"],
    scores: Float[Tensor, "reader writer"],
) -> None:
    """Walk one pass back, adding each reader's gradient times what each writer adds to `scores`."""
    scores[edges.output] += torch.einsum("wbd,bd->w", added[:, :, -1], at_output)
    g = torch.zeros_like(added[0])
    g[:, -1] = at_output
    flat = added.flatten(1)
    for layer in reversed(range(len(layers))):
        block, found = parts.blocks[layer], layers[layer]
        rows = _reader_gradients(block, found, g, parallel=parts.parallel)
        first, mlp = edges.head_reader(layer, 0, "q"), edges.mlp_reader(layer)
        before = edges.n_before(mlp)
        scores[first : mlp + 1, :before] += rows.flatten(1) @ flat[:before].T
        g = g + rows.sum(0)


def _reader_gradients(
    block: Block, found: _Layer, g: Float[Tensor, "batch pos d_model"], *, parallel: bool
) -> Float[Tensor, "reader batch pos d_model"]:
    """Gradients at the streams that the readers of a layer see, the heads' sides and then the MLP.

    With y = x_hat W + b, x_hat the bare normalised stream, sigma its denominator, W centred over
    d_model where the norm is, a gradient at y reaches the stream as

        W (g / sigma) - x_hat <g / sigma, y - b> / d_model

    so that the second term costs a product of the head's width only.
    """
    (mlp,) = torch.autograd.grad(found.mlp_out, found.mlp_in, g)
    at_z = torch.einsum("npd,hed->hnpe", g if parallel else g + mlp, block.W_O)
    (side,) = torch.autograd.grad(found.z, found.qkv, at_z)
    side = side / block.denominator(found.stream)
    with torch.no_grad():
        share = ((found.qkv - block.b_in[:, None, None]) * side).sum(-1) / g.shape[-1]
        rows = g.new_empty(len(side) + 1, *g.shape)
        torch.bmm(side.flatten(1, 2), block.W_in.mT, out=rows[:-1].flatten(1, 2))
        rows[:-1].addcmul_(block.normalise(found.stream), share[..., None], value=-1)
        rows[-1] = mlp
    return rows
