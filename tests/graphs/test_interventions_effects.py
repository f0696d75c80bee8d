"""Effects, predicted and observed: against each other, other checks, and runs of frozen graphs."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import (
    LogitDifference,
    Node,
    TopLogits,
    Trace,
    ablations,
    attribute,
    check_predictions,
)
from circuits import Intervention, SplicedModel
from circuits.patching import NodeValues, patch_values
from graphs import freeze_graph
from graphs.interventions import Effects, compare_effects, measure_effects
from graphs.interventions.agreement import average_ranks
from graphs.interventions.effects import kept_groups
from graphs.interventions.observing import ablation_maps, observe_ablations
from graphs.interventions.predicting import nonlinear_effects, predict_ablations
from graphs.interventions.running import run_frozen
from tests import models
from tests.transcoder_places import spliced

TOKENS = models.TOKENS[None]
OTHER = torch.tensor([[3, 18, 5, 7, 42, 9, 31]])
TARGET = LogitDifference(5, 9)
PLACES = [("gpt2", "each"), ("gpt2", "crossing_among_saes"), ("neox_parallel", "behind")]


@pytest.fixture(params=PLACES, ids="-".join)
def model(request: pytest.FixtureRequest) -> SplicedModel:
    return spliced(*request.param)


def some_nodes(trace: Trace, n: int) -> list[Node]:
    """Nodes of every kind that can be ablated, drawn alike."""
    choose = random.Random(0)
    by_kind: dict[str, list[Node]] = {}
    for (node,) in kept_groups(trace.sources):
        by_kind.setdefault(node.kind, []).append(node)
    return [node for kind in by_kind.values() for node in choose.sample(kind, min(n, len(kind)))]


def groups_of(trace: Trace) -> list[tuple[Node, ...]]:
    """Some single nodes, and groups that lie on each other's paths."""
    nodes = some_nodes(trace, 4)
    features = [node for node in nodes if node.kind == "feature"]
    single = [(node,) for node in nodes]
    return [*single, tuple(nodes), tuple(features), tuple(features[:2]), tuple(features[-2:])]


def nearly(model: SplicedModel, step: float) -> NodeValues:
    """A step from the clean values to the other prompt's."""
    clean = patch_values(model, model.state(TOKENS))
    other = patch_values(model, model.state(OTHER))

    def mix(a: dict, b: dict) -> dict:
        return {site: a[site] + step * (b[site] - a[site]) for site in a}

    return NodeValues(
        mix(clean.activations, other.activations),
        mix(clean.errors, other.errors),
        mix(clean.sublayers, other.sublayers),
        clean.embed + step * (other.embed - clean.embed),
    )


def test_a_small_step_is_predicted_exactly(model: SplicedModel) -> None:
    """So small that nothing switches: nodes of all kinds, and groups on each other's paths."""
    trace, state, near = (
        attribute(model, TOKENS[0], TARGET),
        model.state(TOKENS),
        nearly(model, 1e-6),
    )
    groups = groups_of(trace)
    direct, total = predict_ablations(model, state, near, trace, TARGET, groups)
    observed, switched = observe_ablations(model, state, near, groups, trace.outputs, "frozen")
    assert int(switched.sum()) == 0
    assert float((total[:, 0] - observed[:, 0]).abs().max()) < 1e-9
    assert float(observed.abs().max()) > 1e-6
    assert float((direct[:, 0] - observed[:, 0]).abs().max()) > 1e-7


@pytest.mark.parametrize("corrupted", [False, True], ids=["zero", "corrupted"])
def test_where_nothing_switches_all_paths_are_exact(model: SplicedModel, corrupted: bool) -> None:
    trace = attribute(model, TOKENS[0], TARGET)
    groups, other = groups_of(trace), OTHER if corrupted else None
    effects = measure_effects(model, TOKENS, groups, [TARGET], corrupted=other)
    still = effects.switched == 0
    gap = (effects.total - effects.frozen)[..., 0].abs()
    assert still.any()
    assert float(gap[still].max()) < 1e-9
    assert float(gap[~still].max()) > 1e-6, "switching features break the linear prediction"


def test_groups_that_feed_each_other_are_exact_while_nothing_switches() -> None:
    """Relu transcoders whose features all stay on: every group is linear."""
    random_ones = [models.transcoder("relu", seed=i, n_features=6) for i in range(models.N_LAYERS)]
    always_on = {
        i: replace(one, W_enc=0.02 * one.W_enc, b_enc=torch.full((6,), 60.0))
        for i, one in enumerate(random_ones)
    }
    model = SplicedModel(models.subject("gpt2", torch.float64), always_on)
    trace = attribute(model, TOKENS[0], TARGET)
    groups = groups_of(trace)
    effects = measure_effects(model, TOKENS, groups, [TARGET])
    assert int(effects.switched.sum()) == 0
    torch.testing.assert_close(effects.total, effects.frozen, rtol=1e-9, atol=1e-9)
    alone = sum(effects.total[0, [groups.index((n,)) for n in groups[-3]], 0])
    assert abs(float(alone - effects.total[0, -3, 0])) > 1e-3, "the group is not its members' sum"


def test_features_agree_with_the_causal_check(model: SplicedModel) -> None:
    trace = attribute(model, TOKENS[0], TARGET)
    nodes = [node for node in some_nodes(trace, 4) if node.kind == "feature"]
    check = check_predictions(model, trace, ablations(trace, [n.id for n in nodes]), TARGET)
    effects = measure_effects(model, TOKENS, [(node,) for node in nodes], [TARGET])
    pairs = {"direct": "direct", "total": "total", "live": "frozen", "real": "live"}
    for theirs, ours in pairs.items():
        found = getattr(effects, ours)[0, :, 0]
        torch.testing.assert_close(found, getattr(check, theirs)[:, 0], rtol=1e-9, atol=1e-9)


def test_a_graph_run_with_its_nonlinearities_is_the_frozen_model() -> None:
    """As long as no feature comes on that the prompt does not use, though others go off."""
    model = spliced("gpt2", "crossing_skip")
    trace, state = attribute(model, TOKENS[0], TARGET), model.state(TOKENS)
    groups, n_off = groups_of(trace), 0
    for step in (0.01, 0.03, 0.1):
        near = nearly(model, step)
        graph = freeze_graph(model, state, near, TARGET)
        predicted = nonlinear_effects(graph, groups, batch_size=5)[:, 0, 0]
        observed, switched = observe_ablations(model, state, near, groups, trace.outputs, "frozen")
        maps = ablation_maps(model, state, near, groups)
        run = run_frozen(model, state, TOKENS.expand(len(groups), -1), maps)
        came_on = torch.zeros(len(groups), dtype=torch.bool)
        for site, a in run.activations.items():
            came_on |= ((a != 0) & (state.activations[site] == 0)).flatten(1).any(1)
        gap = (predicted - observed[:, 0]).abs()
        assert float(gap[~came_on].max()) < 1e-9
        n_off += int((switched[~came_on] > 0).sum())
    assert n_off > 0


def test_switched_counts_others_than_the_group() -> None:
    model = spliced("gpt2", "each")
    trace, state = attribute(model, TOKENS[0], TARGET), model.state(TOKENS)
    node = next(node for node in some_nodes(trace, 8) if node.kind == "feature")
    effects = measure_effects(model, TOKENS, [(node,)], [TARGET])
    write = model.write_site(f"{node.site}.{node.layer}")
    change = Intervention(write, node.feature, positions=[node.pos])
    run = model.run(TOKENS, "frozen", interventions=[change], state=state)
    differs = sum(
        int(((a != 0) != (state.activations[site] != 0)).sum())
        for site, a in run.activations.items()
    )
    assert int(effects.switched) == differs - 1


def test_prompts_are_measured_each_by_itself() -> None:
    model = spliced("neox_parallel", "behind")
    tokens, targets = torch.cat([TOKENS, OTHER]), [TARGET, LogitDifference(9, 5)]
    write, placement = list(model.placements.items())[-1]
    used = [model.state(t[None]).activations[write][0] != 0 for t in tokens]
    pos, only_second = (used[1] & ~used[0]).nonzero()[-1].tolist()
    where = {"layer": write.layer, "site": placement.site}
    groups = [
        (Node(kind="token", layer=-1, site="embed", pos=3),),
        (Node(kind="feature", pos=pos, feature=only_second, **where),),
    ]
    other = tokens.flip(0)  # it has the feature that the first prompt does not use
    both = measure_effects(model, tokens, groups, targets, corrupted=other)
    for i in range(2):
        one = measure_effects(
            model, tokens[i : i + 1], groups, targets[i : i + 1], corrupted=other[i : i + 1]
        )
        for side in ("direct", "total", "frozen", "live"):
            torch.testing.assert_close(getattr(both, side)[i], getattr(one, side)[0])
    unused = torch.cat([both.direct[0, 1], both.total[0, 1], both.frozen[0, 1], both.live[0, 1]])
    assert unused.abs().max() < 1e-9, "a feature that a prompt does not use"
    assert both.frozen[1, 1].abs().max() > 1e-6
    mean = both.mean("live")
    torch.testing.assert_close(mean, both.live[:, :, 0].mean(0))
    assert both.agreement("total", "live") == compare_effects(both.mean("total"), mean)


def test_everything_a_prompt_has_but_features_swapped_is_the_other_prompt() -> None:
    """All tokens corrupted in the real model: the logits are the corrupted prompt's."""
    model = spliced("gpt2", "each")
    tokens = [Node(kind="token", layer=-1, site="embed", pos=pos) for pos in range(7)]
    effects = measure_effects(model, TOKENS, [tokens], [TARGET], corrupted=OTHER)
    before, after = (model.state(t).logits[0, -1] for t in (TOKENS, OTHER))
    wanted = (after - before)[5] - (after - before)[9]
    assert float(effects.live) == pytest.approx(float(wanted), abs=1e-9)
    assert effects.ablation == "their values on the corrupted prompt"


def test_progress_and_batches_change_nothing() -> None:
    model = spliced("gpt2", "each")
    trace = attribute(model, TOKENS[0], TARGET)
    groups, seen = groups_of(trace), []
    whole = measure_effects(model, TOKENS, groups, [TARGET])
    parts = measure_effects(
        model, TOKENS, groups, [TARGET], batch_size=3, progress=lambda *pair: seen.append(pair)
    )
    torch.testing.assert_close(whole.live, parts.live, rtol=1e-9, atol=1e-9)
    assert seen[-1] == (2 * len(groups), 2 * len(groups))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_what_cannot_be_measured(unchecked: None) -> None:
    model = spliced("gpt2", "one")
    token = Node(kind="token", layer=-1, site="embed", pos=1)
    far = token.model_copy(update={"pos": 9})
    bias = Node(kind="bias", layer=0, site="mlp", pos=-1)
    everywhere = token.model_copy(update={"pos": -1})
    for groups, message in (
        ([], "groups of at least one node each, got 0 groups"),
        ([()], "groups of at least one node"),
        ([(far,)], "positions 0 to 6"),
        ([(token, token)], "token@1 is named twice"),
        ([(everywhere,)], "each node needs a position"),
        ([(bias,)], "is a bias"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_effects(model, TOKENS, groups, [TARGET])
    with pytest.raises(ValueError, match="one target a prompt, got 2 for 1"):
        measure_effects(model, TOKENS, [(token,)], [TARGET, TARGET])
    with pytest.raises(ValueError, match="line up token by token"):
        measure_effects(model, TOKENS, [(token,)], [TARGET], corrupted=OTHER[:, :4])
    tokens = torch.cat([TOKENS, OTHER])
    with pytest.raises(ValueError, match="every prompt needs the same targets"):
        measure_effects(model, tokens, [(token,)], [TARGET, TopLogits(max_n=1)])


def test_agreement_by_hand() -> None:
    predicted, observed = torch.tensor([1.0, 2.0, -3.0, 0.0]), torch.tensor([2.0, 1.0, -9.0, 0.0])
    found = compare_effects(predicted, observed)
    assert found.mean_absolute_error == (1 + 1 + 6 + 0) / 4
    assert found.mean_absolute_effect == 3.0
    assert found.same_sign == 1.0
    assert found.n == 4
    assert found.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))
    p, o = predicted - 0, observed + 1.5
    assert found.pearson == pytest.approx(float(p @ o / (p.norm() * o.norm())))
    assert found.slope == pytest.approx(float(p @ o / (p @ p)))
    with pytest.raises(ValueError, match="want predictions and observations that vary"):
        compare_effects(predicted, torch.ones(4))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_ranks_are_those_of_counting(values: list[int]) -> None:
    wanted = [
        sum(other < value for other in values) + (1 + values.count(value)) / 2 for value in values
    ]
    assert average_ranks(torch.tensor(values)).tolist() == wanted


def test_a_frozen_run_takes_one_state_for_all_rows() -> None:
    model = spliced("gpt2", "each")
    state = model.state(TOKENS)
    run = run_frozen(model, state, TOKENS.expand(3, -1), {})
    torch.testing.assert_close(run.logits, state.logits[:, -1].expand(3, -1))


def test_means_are_over_prompts() -> None:
    sides = [torch.tensor([[[1.0], [2.0]], [[3.0], [6.0]]]) * k for k in range(1, 5)]
    effects = Effects(((), ()), ("x",), *sides, torch.zeros(2, 2, dtype=torch.long), "zero")
    assert effects.mean("direct").tolist() == [2.0, 4.0]
    assert effects.mean("live").tolist() == [8.0, 16.0]
