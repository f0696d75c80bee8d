"""What can be explained, and the errors for what cannot."""

import pytest
import torch

from attribution import (
    DirectionTarget,
    FeatureTarget,
    LogitDifference,
    ProbabilityDifference,
    TopLogits,
    attribute,
)
from attribution.nodes import Node, NodeTable
from circuits import FrozenState, Site, SplicedModel
from tests import models
from tests.models import D_MODEL, D_VOCAB, TOKENS

BATCH = TOKENS[None]


@pytest.fixture(scope="module")
def spliced() -> SplicedModel:
    return models.spliced("gpt2", "mixed", torch.float64)


@pytest.fixture(scope="module")
def state(spliced: SplicedModel) -> FrozenState:
    return spliced.state(BATCH)


def value(spliced: SplicedModel, target) -> float:
    return float(attribute(spliced, TOKENS, target, feature_rows=False).target_values[0])


@pytest.mark.parametrize(("mass", "max_n"), [(0.95, 10), (0.5, 10), (0.9, 2), (1e-9, 9), (1.0, 99)])
def test_top_logits_covers_the_mass_with_the_fewest(spliced, state, mass: float, max_n: int):
    readouts = TopLogits(max_n=max_n, mass=mass).readouts(spliced, state)
    p, ids = state.logits[0, -1].softmax(-1).sort(descending=True)
    needed = next((n for n in range(1, D_VOCAB + 1) if p[:n].sum() >= mass - 1e-12), D_VOCAB)
    assert len(readouts) in (min(needed, max_n), min(needed + (mass == 1.0), max_n, D_VOCAB))
    for readout, token in zip(readouts, ids.tolist(), strict=False):
        assert readout.name.endswith(f"({token})")
        got = state.values[Site("unembed_in")][0, -1] @ readout.vector + readout.constant
        want = state.logits[0, -1, token] - state.logits[0, -1].mean()
        assert torch.allclose(got, want)


def test_top_logits_is_the_default_target(spliced):
    trace = attribute(spliced, TOKENS, feature_rows=False)
    default = attribute(spliced, TOKENS, TopLogits(), feature_rows=False)
    assert [n.id for n in trace.targets] == [n.id for n in default.targets]
    assert torch.equal(trace.edges, default.edges)


@pytest.mark.parametrize("target", [TopLogits(max_n=0), TopLogits(mass=0.0), TopLogits(mass=1.5)])
def test_top_logits_needs_something_to_take(spliced, target: TopLogits):
    with pytest.raises(ValueError, match=r"want max_n >= 1 and mass in \(0, 1\]"):
        attribute(spliced, TOKENS, target)


def test_logit_difference_by_text_id_and_list(spliced, state):
    last, at_two = state.logits[0, -1], state.logits[0, 2]
    for target, want in [
        (LogitDifference(" Mary", " John"), last[3] - last[4]),
        (LogitDifference(3, " John"), last[3] - last[4]),
        (
            LogitDifference([" Mary", 4], (5, " to", 7)),
            last[[3, 4]].mean() - last[[5, 6, 7]].mean(),
        ),
        (LogitDifference(" Mary"), last[3]),
        (LogitDifference(3, 4, pos=2), at_two[3] - at_two[4]),
        (LogitDifference(3, 4, pos=-5), at_two[3] - at_two[4]),
    ]:
        assert value(spliced, target) == pytest.approx(float(want)), target


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (LogitDifference(" Mary John"), "' Mary John' is 2 tokens for .*; want exactly one"),
        (LogitDifference(50), r"token ids must be in \[0, 50\), got 50"),
        (LogitDifference(-1), r"token ids must be in \[0, 50\), got -1"),
        (LogitDifference(()), "needs at least one correct token, got none"),
        (LogitDifference(1, 2, pos=7), r"pos must be in \[-7, 7\), got 7"),
        (LogitDifference(1, 2, pos=-8), "pos must be in"),
        (TopLogits(pos=9), "pos must be in"),
        (
            ProbabilityDifference(torch.tensor([1]), torch.tensor([50])),
            r"token ids must be in \[0, 50\), got 50",
        ),
        (FeatureTarget("mlp.0", 40), r"feature must be in \[0, 40\), got 40"),
        (FeatureTarget("mlp.0", -1), "feature must be in"),
        (FeatureTarget("mlp.1", 0), "no dictionary at 'mlp.1'"),
        (FeatureTarget("mlp.0", 0, pos=7), "pos must be in"),
        (
            DirectionTarget(Site("resid_post", 3), torch.ones(D_MODEL)),
            "layer from 0 to 2, got",
        ),
        (DirectionTarget(Site("unembed_in", 1), torch.ones(D_MODEL)), "layer from 0 to 0"),
        (DirectionTarget(Site("pattern", 0), torch.ones(D_MODEL)), "want one of .* got pattern0"),
        (
            DirectionTarget(Site("mlp_in", 0), torch.ones(5)),
            r"vector of 32 numbers, got \(5,\)",
        ),
        ([], "nothing to explain"),
    ],
)
def test_what_cannot_be_explained_is_named(spliced, target, message: str):
    with pytest.raises(ValueError, match=message):
        attribute(spliced, TOKENS, target, feature_rows=False)


def test_prompts_that_cannot_be_read_are_named(spliced):
    with pytest.raises(ValueError, match="the prompt is empty"):
        attribute(spliced, "")
    with pytest.raises(ValueError, match="reads at most 24"):
        attribute(spliced, " the" * 25)
    with pytest.raises(ValueError, match="token ids must be in"):
        attribute(spliced, torch.tensor([0, 77]))


def test_text_and_ids_give_the_same_trace(spliced):
    text = attribute(spliced, " Mary gave to", LogitDifference(1, 2))
    ids = attribute(spliced, torch.tensor([3, 5, 6]), LogitDifference(1, 2))
    assert torch.equal(text.edges, ids.edges)
    assert text.token_strings == (" Mary", " gave", " to")
    assert text.model_name == spliced.model.name


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_probability_difference_is_the_gradient_of_the_metric(architecture: str):
    """The row's direction, against autograd on `P(correct) - P(wrong)` over the full softmax."""
    spliced = models.spliced(architecture, "mixed", torch.float64)
    state = spliced.state(BATCH)
    correct, wrong = torch.tensor([1, 2, 3]), torch.tensor([4, 5])
    (readout,) = ProbabilityDifference(correct, wrong).readouts(spliced, state)
    logits = state.logits[0, -1].clone().requires_grad_()
    p = logits.softmax(-1)
    (gradient,) = torch.autograd.grad(p[correct].sum() - p[wrong].sum(), logits)
    assert torch.allclose(readout.vector, spliced.model.W_U @ gradient, atol=1e-12)
    assert gradient.abs().max() > 1e-4


def test_an_inactive_feature_can_be_explained(spliced, state):
    site = Site("mlp_raw_out", 0)
    dead = int((state.activations[site][0, 3] == 0).nonzero()[0])
    trace = attribute(spliced, TOKENS, FeatureTarget("mlp.0", dead, pos=3))
    placement = spliced.placements[site]
    z = float(placement.dictionary.pre_activations(state.values[placement.read])[0, 3, dead])
    assert float(trace.edges[0].sum()) == pytest.approx(z, rel=1e-9)
    assert trace.targets[0].id == f"output.mlp0.{dead}"
    assert trace.targets[0].activation == pytest.approx(z)
    assert f"mlp0.{dead}@3" not in {n.id for n in trace.sources}


def test_an_active_feature_as_target_is_its_own_row(spliced, state):
    site = Site("mlp_raw_out", 2)
    active = int(state.activations[site][0, 4].argmax())
    trace = attribute(spliced, TOKENS, FeatureTarget(site, active, pos=4))
    row = trace.targets.row(f"mlp2.{active}@4")
    assert torch.allclose(trace.edges[0], trace.edges[row])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_direction_may_come_in_another_dtype(spliced, state, dtype: torch.dtype):
    site, vector = Site("resid_post", 1), torch.linspace(-1.0, 1.0, D_MODEL, dtype=dtype)
    want = state.values[site][0, 2] @ vector.double()
    assert value(spliced, DirectionTarget(site, vector, pos=2)) == pytest.approx(float(want))


def test_constants_keep_their_precision(spliced):
    """An encoder bias must not pass through float32 on its way into a float64 row."""
    biased = models.transcoder("relu")
    biased.b_enc.fill_(1.0 / 3.0)
    exact = torch.full((40,), 1.0 / 3.0, dtype=torch.float64)
    double = biased.to(dtype=torch.float64)
    object.__setattr__(double, "b_enc", exact)
    one = SplicedModel(spliced.model, {0: double})
    trace = attribute(one, TOKENS, FeatureTarget("mlp.0", 3))
    norm = one.model.norm("ln2", 0)
    assert norm is not None
    want = 1.0 / 3.0 + float(norm.bias @ double.W_enc[:, 3])
    got = float(trace.edges[0, trace.sources.row("bias.target")])
    assert got == pytest.approx(want, rel=1e-14)


def test_targets_of_one_name_are_told_apart(spliced):
    targets = [LogitDifference(3, 4), LogitDifference(5, 6), LogitDifference(3, 4, pos=1)]
    trace = attribute(spliced, TOKENS, targets, feature_rows=False)
    names = [f"output.logit difference{suffix}" for suffix in ("", " #2", " #3")]
    assert [n.id for n in trace.targets] == names
    assert trace.targets[2].pos == 1


def test_outputs_come_first_then_features_by_layer(spliced):
    trace = attribute(spliced, TOKENS, [LogitDifference(3, 4), FeatureTarget("mlp.2", 1)])
    kinds = [n.kind for n in trace.targets]
    assert kinds[:2] == ["output", "output"]
    assert set(kinds[2:]) == {"feature"}
    layers = [n.layer for n in trace.targets[2:]]
    assert layers == sorted(layers)
    assert [n.id for n in trace.targets[2:]] == [n.id for n in trace.sources if n.kind == "feature"]


def test_node_ids_are_unique_or_refused():
    node = Node(kind="token", layer=-1, site="embed", pos=0)
    with pytest.raises(ValueError, match="node ids must be unique"):
        NodeTable([node, node])
    table = NodeTable([node])
    assert table.row("token@0") == 0
    assert table.where(kind="token", pos=0) == [0]
    with pytest.raises(KeyError):
        table.row("token@1")
