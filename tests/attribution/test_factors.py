"""Edges as sums over paths of products of factors, against paths followed by hand."""

import itertools
from dataclasses import replace
from math import prod

import pytest
import torch
from torch import Tensor

from attribution import LogitDifference, Trace, attribute, factorise, split_by_path, virtual_weights
from attribution.frozen import freeze_attention
from circuits import FrozenState, Site, SplicedModel, SubjectModel
from tests import models
from tests.models import ARCHITECTURES, MIXTURES

TOKENS = models.TOKENS


def traced(architecture: str, mixture: str) -> tuple[SplicedModel, Trace]:
    spliced = models.spliced(architecture, mixture, torch.float64)
    return spliced, attribute(spliced, TOKENS, LogitDifference(3, 5))


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_named_factors_multiply_to_their_path(architecture: str, mixture: str):
    spliced, trace = traced(architecture, mixture)
    for row in (0, len(trace.targets) // 2, -1):
        split = split_by_path(spliced, trace, trace.targets[row].id)
        assert torch.equal(split.edges, trace.edges[row])
        assert not split.values[:, trace.edges[row] == 0].any()
        for column in trace.edges[row].abs().topk(5).indices.tolist():
            edge = split.edge(trace.sources[column].id)
            assert edge.edge == float(trace.edges[row, column])
            for path in edge.paths:
                value = path.input_dependent * path.virtual_weight
                i = split.heads.index(path.head)
                assert value == pytest.approx(float(split.values[i, column]), rel=1e-10)
                assert path.activation == (
                    edge.source.activation if edge.source.kind == "feature" else 1.0
                )


def through_head(
    model: SubjectModel, state: FrozenState, layer: int, head: int, g: Tensor
) -> Tensor:
    """A gradient `[pos, d_model]` behind attention, carried through one head to before it."""

    def scale(kind: str) -> Tensor:
        return state.values[Site(f"{kind}_scale", layer)][0]  # type: ignore[arg-type]

    heads = model.heads(layer)
    if (behind := model.norm("ln1_post", layer)) is not None:
        g = behind.adjoint(g, scale("ln1_post"))
    pattern = state.values[Site("pattern", layer)][0, head]
    before = model.norm("ln1", layer)
    assert before is not None
    return before.adjoint(pattern.T @ (g @ heads.W_O[head].T) @ heads.W_V[head].T, scale("ln1"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_remainder_is_all_paths_through_several_heads(architecture: str):
    spliced, trace = traced(architecture, "transcoders")
    model, state = spliced.model, spliced.state(TOKENS[None])
    split = split_by_path(spliced, trace, trace.targets[0].id)
    g = torch.zeros(len(TOKENS), model.d_model, dtype=torch.float64)
    norm = model.norm("final")
    assert norm is not None
    final = state.values[Site("final_scale")][0]
    g[-1] = trace.outputs[0].vector
    g = norm.adjoint(g, final)
    options = [None, *range(model.n_heads)]
    want = torch.zeros(len(TOKENS), dtype=torch.float64)
    single = {}
    embedding = state.values[Site("embed")][0]
    for route in itertools.product(options, repeat=model.n_layers):  # from the last layer down
        carried = g
        for layer, head in zip(reversed(range(model.n_layers)), route, strict=True):
            if head is not None:
                carried = through_head(model, state, layer, head, carried)
        value = (carried * embedding).sum(1)
        taken = [
            (layer, head)
            for layer, head in zip(reversed(range(model.n_layers)), route, strict=True)
            if head is not None
        ]
        if len(taken) > 1:
            want += value
        else:
            single[taken[0] if taken else None] = value
    tokens = trace.sources.where(kind="token")
    assert torch.allclose(split.remainder[tokens], want, rtol=1e-9, atol=1e-12)
    assert want.abs().max() > 1e-6
    for i, head in enumerate(split.heads):
        assert torch.allclose(split.values[i, tokens], single[head], rtol=1e-9, atol=1e-12)


STEP = 13
NO_SKIP = {
    "transcoders": MIXTURES["transcoders"],
    "residual": MIXTURES["residual"],
    "sublayers": {
        "mlp.0": models.transcoder("topk"),
        "attn_out.0": models.sae("attn_out", seed=6),
        "mlp_out.1": models.sae("mlp_out", seed=9),
        "attn_out.2": models.sae("attn_out", "relu", seed=8),
    },
}


@pytest.mark.parametrize(
    ("architecture", "dictionaries", "mode"),
    [
        ("gpt2", "transcoders", "exact"),
        ("gpt2", "sublayers", "replace"),
        ("neox_parallel", "sublayers", "exact"),
        ("neox_parallel", "residual", "replace"),
        ("gemma2", "transcoders", "replace"),
        ("gemma2", "sublayers", "exact"),
    ],
)
def test_a_path_is_what_the_engine_gives_with_that_head_alone(
    architecture: str, dictionaries: str, mode, monkeypatch: pytest.MonkeyPatch
):
    """For every target: outputs, and features that read the stream or a sublayer's output."""
    model = models.subject(architecture, torch.float64)
    spliced = SplicedModel(model, NO_SKIP[dictionaries])
    targets = [LogitDifference(3, 5), LogitDifference(7, 2, pos=2)]
    trace = attribute(spliced, TOKENS, targets, mode=mode)
    splits = [split_by_path(spliced, trace, target.id) for target in trace.targets[::STEP]]
    kinds = {target.site for target in trace.targets[::STEP]}
    assert len(kinds) > len(NO_SKIP[dictionaries]) / 2

    def edges_with(alone: tuple[int, int] | None) -> Tensor:
        def freeze(model: SubjectModel, state: FrozenState, layer: int):
            frozen = freeze_attention(model, state, layer)
            mixing = torch.zeros_like(frozen.mixing)
            if alone is not None and alone[0] == layer:
                mixing[alone[1]] = frozen.mixing[alone[1]]
            return replace(frozen, mixing=mixing)

        monkeypatch.setattr("attribution.frozen_prompt.freeze_attention", freeze)
        return attribute(spliced, TOKENS, targets, mode=mode).edges[::STEP]

    split = torch.tensor([node.kind != "bias" for node in trace.sources])
    direct, met = edges_with(None), set()
    for alone in (None, (0, 1), (1, 3), (2, 0)):
        paths = direct if alone is None else edges_with(alone) - direct
        for one, want in zip(splits, paths, strict=True):
            got = torch.zeros_like(want)
            if alone in one.heads:
                got = one.values[one.heads.index(alone)]
                met.add(alone)
            assert torch.allclose(got[split], want[split], rtol=1e-9, atol=1e-11)
    assert len(met) > 1


def test_what_errors_and_held_mlps_write_is_no_weight():
    spliced = SplicedModel(models.subject("gpt2"), {"mlp.0": models.transcoder()})
    trace = attribute(spliced, TOKENS, LogitDifference(3, 5))
    split = split_by_path(spliced, trace, trace.targets[0].id)
    for kind, invariant in (
        ("feature", True),
        ("token", True),
        ("position", True),
        ("error", False),
        ("sublayer", False),
    ):
        column = max(trace.sources.where(kind=kind), key=lambda i: abs(float(split.edges[i])))
        paths = split.edge(trace.sources[column].id).paths
        assert paths
        assert all(path.invariant == invariant for path in paths)


@pytest.mark.parametrize("architecture", ["gpt2", "neox_parallel", "llama_gqa"])
def test_virtual_weights_are_those_of_the_weights_alone(architecture: str):
    spliced, trace = traced(architecture, "transcoders")
    layers = sorted(site.layer for site in spliced.placements)
    low, high = layers[0], layers[-1]
    target = next(n for n in reversed(trace.targets) if n.kind == "feature" and n.layer == high)
    split = split_by_path(spliced, trace, target.id)
    features = [target.feature]
    direct = virtual_weights(spliced, f"mlp.{high}", f"mlp.{low}", target_features=features)[0]
    head = (high - 1 if spliced.model.parallel else high, 1)
    headed = virtual_weights(
        spliced, f"mlp.{high}", f"mlp.{low}", head=head, target_features=features
    )[0]
    n_seen = 0
    for column in trace.sources.where(kind="feature", layer=low):
        node = trace.sources[column]
        for path in split.edge(node.id).paths:
            if path.head in (None, head):
                want = (direct if path.head is None else headed)[node.feature]
                assert path.virtual_weight == pytest.approx(float(want), rel=1e-9)
                assert path.invariant
                n_seen += 1
    assert n_seen > 5


def test_a_skip_is_part_of_the_remainder():
    spliced, trace = traced("gpt2", "skip")
    split = split_by_path(spliced, trace, trace.targets[0].id)
    plain = models.spliced("gpt2", "transcoders", torch.float64)
    without = split_by_path(
        plain, attribute(plain, TOKENS, LogitDifference(3, 5)), "output.logit difference"
    )
    tokens = trace.sources.where(kind="token")
    # The paths are the same, since neither attention nor norms know of the skip; the edges differ.
    assert torch.allclose(split.values[:, tokens], without.values[:, tokens], rtol=1e-9)
    assert (split.remainder[tokens] - without.remainder[tokens]).abs().max() > 1e-6


def test_edges_asked_for_come_in_their_order():
    spliced, trace = traced("gpt2", "transcoders")
    output, feature = trace.targets[0].id, trace.targets[-1].id
    asked = [(feature, "token@0"), (output, "token@1"), (feature, "bias.mlp0")]
    edges = factorise(spliced, trace, asked)
    assert [(e.target.id, e.source.id) for e in edges] == asked
    bias = edges[2]
    assert bias.paths == ()
    assert bias.remainder == bias.edge
    total = sum(prod((p.input_dependent, p.virtual_weight)) for p in edges[1].paths)
    assert total + edges[1].remainder == pytest.approx(edges[1].edge, rel=1e-12)


def test_unknown_nodes_are_named():
    spliced, trace = traced("gpt2", "transcoders")
    with pytest.raises(KeyError, match="no node"):
        split_by_path(spliced, trace, "mlp9.1@0")
    with pytest.raises(KeyError, match="no node"):
        factorise(spliced, trace, [(trace.targets[0].id, "token@99")])
