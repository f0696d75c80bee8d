"""Proof in closed form: choices, intervals, knockouts and minimality where runs are formulas."""

import json
from itertools import chain, combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from attribution.nodes import Node
from graphs.faithfulness import normalised
from graphs.proof import Estimate, Outcome, Proof, ProofChoices, check_disjoint
from graphs.proof.estimates import (
    as_estimate,
    check_span,
    mean_estimate,
    resampling,
    share_estimate,
    shares,
)
from graphs.proof.knockouts import (
    greedy_knockouts,
    knockout_gaps,
    knockouts_by_class,
    random_knockouts,
)
from graphs.proof.minimality import removal_harms
from graphs.proof.records import Knockouts, Minimality, NodeHarm
from graphs.proof.summaries import summarise_gaps, summarise_harms

NAMES = "abcde"
STRENGTH = torch.tensor([1.0, 3.0], dtype=torch.float64)
"""Two prompts; the second is worth three times as much."""


def _measure(kept):
    """a or b is worth 2, c is worth 1, d takes 0.5 away, e does nothing."""
    a, b, c, d, _ = kept.double().unbind(1)
    value = 2 * torch.maximum(a, b) + c - 0.5 * d
    return Outcome(value[:, None] * STRENGTH, (2.5 - value[:, None]).abs() * STRENGTH)


def _set(names):
    return torch.tensor([name in names for name in NAMES])


def _sets(*names):
    return torch.stack([_set(n) for n in names])


UNITS = [
    Node(kind="token", layer=-1, site="embed", pos=0),
    Node(kind="feature", layer=0, site="mlp", pos=1, feature=1),
    Node(kind="feature", layer=0, site="mlp", pos=2, feature=1),
    Node(kind="error", layer=0, site="mlp", pos=2),
    Node(kind="feature", layer=1, site="mlp", pos=2, feature=1),
]
WEIGHTS = resampling(2, n_resamples=200, seed=0)
WHOLE = 2.5 * STRENGTH


def test_choices_in_one_line():
    choices = ProofChoices(value="corrupted", errors="dropped")
    assert str(choices) == (
        "unit node; component features, tokens, MLPs, errors dropped; value corrupted; positions "
        "each; direction noising (clean run, ablated nodes patched in); set outside the circuit"
    )
    assert str(choices.on("the circuit")).endswith("set the circuit")
    other = ProofChoices(value="corrupted", errors="kept", direction="denoising", positions="all")
    assert "positions all; direction denoising (corrupted run" in str(other)
    assert ProofChoices.model_validate_json(choices.model_dump_json()) == choices


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"value": "mean"}, "tokens have no mean value"),
        (
            {"value": "zero", "component": ("features",), "direction": "denoising"},
            "starts from a corrupted",
        ),
        ({"component": ("features", "features")}, "each kind once"),
        ({"component": ()}, "at least 1"),
        ({"component": ("heads",)}, "component"),
        ({"errors": "ignored"}, "errors"),
        ({"position": "all"}, "position"),
    ],
)
def test_choices_that_cannot_be(fields, match):
    with pytest.raises(ValidationError, match=match):
        ProofChoices(**{"value": "corrupted", "errors": "kept"} | fields)


def test_value_and_errors_must_be_said():
    with pytest.raises(ValidationError, match="value"):
        ProofChoices.model_validate({"errors": "kept"})
    with pytest.raises(ValidationError, match="errors"):
        ProofChoices.model_validate({"value": "corrupted"})


def test_resamples_are_draws_with_replacement():
    weights = resampling(5, n_resamples=4000, seed=1)
    assert torch.allclose(weights.sum(1), torch.ones(4000).double())
    counts = weights * 5
    assert torch.equal(counts, counts.round())
    # Binomial(5, 1/5): mean 1, variance 4/5.
    assert float(counts.mean()) == pytest.approx(1.0)
    assert float(counts.var()) == pytest.approx(0.8, abs=0.03)
    assert torch.equal(weights, resampling(5, n_resamples=4000, seed=1))
    assert not torch.equal(weights, resampling(5, n_resamples=4000, seed=2))
    with pytest.raises(ValueError, match="at least one prompt"):
        resampling(0, n_resamples=5, seed=0)
    with pytest.raises(ValueError, match="got 5, 0"):
        resampling(5, n_resamples=0, seed=0)


def test_intervals_of_a_mean_are_those_of_the_normal_law():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, generator=generator).double()
    found = mean_estimate(values, resampling(400, n_resamples=4000, seed=0))
    half = 1.96 * float(values.std()) / 20
    assert found.value == float(values.mean())
    assert found.low == pytest.approx(found.value - half, abs=0.01)
    assert found.high == pytest.approx(found.value + half, abs=0.01)


def test_resamples_in_which_nothing_differs_are_left_out_of_an_interval():
    part = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    weights = torch.eye(4, dtype=torch.float64)
    found = share_estimate(part, 2 * part, weights)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_an_interval_is_widened_to_its_value():
    draws = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    assert as_estimate(0.5, draws) == Estimate(value=0.5, low=0.025, high=0.975)
    assert as_estimate(2.0, draws).high == 2.0
    assert as_estimate(-2.0, draws).low == -2.0
    assert str(Estimate(value=0.5, low=-1e-9, high=1.0)) == "0.500 [0.000, 1.000]"


numbers = st.lists(st.floats(-5, 5), min_size=2, max_size=8)


@given(numbers, st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_shares_are_ratios_of_means(values, seed):
    part = torch.tensor(values, dtype=torch.float64)
    whole = torch.linspace(1.0, 4.0, len(part)).double()
    weights = resampling(len(part), n_resamples=30, seed=seed)
    found = share_estimate(part, whole, weights)
    assert found.value == pytest.approx(sum(values) / float(whole.sum()), abs=1e-12)
    assert found.value == pytest.approx(normalised(part, whole, torch.zeros_like(whole)))
    assert found.low <= found.value <= found.high
    several = shares(torch.stack([part, -part]), whole, weights)
    for row, draw in zip(weights, several.T, strict=True):
        by_hand = float((row * part).sum() / (row * whole).sum())
        assert draw.tolist() == pytest.approx([by_hand, -by_hand], abs=1e-12)


def test_a_ratio_of_means_is_not_a_mean_of_ratios():
    part, whole = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.01, 0.99]).double()
    assert share_estimate(part, whole, WEIGHTS).value == pytest.approx(1.0)
    assert float((part / whole).mean()) == pytest.approx(50.0)


def test_a_span_must_be_clear_of_zero():
    span = check_span(WHOLE, 0 * WHOLE, WEIGHTS)
    assert torch.equal(span, WHOLE)
    assert torch.equal(check_span(0 * WHOLE, WHOLE, WEIGHTS), -WHOLE)
    with pytest.raises(ValueError, match="must differ"):
        check_span(WHOLE, WHOLE, WEIGHTS)
    with pytest.raises(ValueError, match="must differ"):  # half of the resamples say otherwise
        check_span(torch.tensor([2.0, -1.0]).double(), torch.zeros(2).double(), WEIGHTS)
    with pytest.raises(ValueError, match="must differ"):
        check_span(1e-9 * WHOLE, 0 * WHOLE, WEIGHTS)


def test_gaps_by_hand():
    """C = {a, c}: without a, the model still has b."""
    gaps = knockout_gaps(_measure, _set("ac"), _sets("", "a", "c", "ac"))
    # C: 3, 1, 2, 0; M: 2.5, 2.5, 1.5, 1.5
    expected = torch.tensor([0.5, -1.5, 0.5, -1.5]).double()
    assert torch.equal(gaps, expected[:, None] * STRENGTH)


def test_the_whole_model_has_no_gap():
    subsets = ["".join(s) for s in chain(*(combinations(NAMES, n) for n in range(6)))]
    gaps = knockout_gaps(_measure, _set(NAMES), _sets(*subsets))
    assert not gaps.any()


def test_random_knockouts_are_halves_of_the_circuit():
    sets = random_knockouts(_set("abd"), n=2000, seed=0)
    assert not sets[:, [2, 4]].any()
    assert sets[:, [0, 1, 3]].double().mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.05)
    assert len(sets.unique(dim=0)) == 8
    assert torch.equal(sets, random_knockouts(_set("abd"), n=2000, seed=0))


def test_classes_are_kind_site_and_layer():
    sets = knockouts_by_class(UNITS, _set("abcde"))
    assert sorted("".join(n for n, f in zip(NAMES, row, strict=True) if f) for row in sets) == [
        "a",
        "bc",
        "d",
        "e",
    ]
    assert torch.equal(knockouts_by_class(UNITS, _set("ce")), _sets("c", "e"))


def test_greedy_takes_the_widest_gap_each_time():
    """C = {a, c, d}, gaps: a -2 (+0), c 0, d 0; then a with c or d adds nothing more."""
    found = greedy_knockouts(_measure, _set("acd"), n_steps=2, n_candidates=5, seed=0)
    assert found.shape == (2, 5)
    assert torch.equal(found[0], _set("a"))
    assert int(found[1].sum()) == 2
    assert bool(found[1][0])
    assert not bool((found & ~_set("acd")).any())
    all_steps = greedy_knockouts(_measure, _set("abcde"), n_steps=9, n_candidates=1, seed=0)
    assert all_steps.sum(1).tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="at least one step"):
        greedy_knockouts(_measure, _set("ac"), n_steps=0, n_candidates=1, seed=0)
    with pytest.raises(ValueError, match="n_candidates=0"):
        greedy_knockouts(_measure, _set("ac"), n_steps=1, n_candidates=0, seed=0)


def test_greedy_widens_the_mean_gap_not_its_size_prompt_by_prompt():
    """C = {a, b}, of a model with c: without a the gaps are 1 and -1, without b 0.5 and 0.5."""

    def measure(kept):
        a, b, c = kept.double()[..., None].unbind(1)
        value = -c * ((1 - a) * torch.tensor([1.0, -1.0]).double() + (1 - b) * 0.5)
        return Outcome(value, value)

    circuit = torch.tensor([True, True, False])
    (found,) = greedy_knockouts(measure, circuit, n_steps=1, n_candidates=2, seed=0)
    assert found.tolist() == [False, True, False]


def test_candidates_are_drawn_with_the_seed():
    wanted = {
        int(
            greedy_knockouts(_measure, _set("abcde"), n_steps=1, n_candidates=1, seed=s)[0]
            .int()
            .argmax()
        )
        for s in range(20)
    }
    assert wanted == {0, 1, 2, 3, 4}


def test_harms_by_hand():
    members, harms = removal_harms(_measure, _set("abcd"), _sets("", "b", "ab"))
    assert members.tolist() == [0, 1, 2, 3]
    expected = torch.tensor(
        [
            [0.0, 0.0, 1.0, -0.5],  # alone: a and b stand in for each other
            [2.0, 0.0, 1.0, -0.5],  # without b, a counts; b itself comes back into its context
            [2.0, 2.0, 1.0, -0.5],  # of a pair that is gone, each alone brings all back
        ]
    ).double()
    assert torch.equal(harms, expected[..., None] * STRENGTH)


@given(st.integers(0, 31), st.integers(0, 31))
@settings(max_examples=40, deadline=None)
def test_harm_is_the_difference_the_unit_makes(circuit_bits, knockout_bits):
    circuit = torch.tensor([bool(circuit_bits >> i & 1) for i in range(5)])
    knockout = circuit & torch.tensor([bool(knockout_bits >> i & 1) for i in range(5)])
    members, harms = removal_harms(_measure, circuit, knockout[None])
    assert members.tolist() == circuit.nonzero().flatten().tolist()
    for i, v in enumerate(members.tolist()):
        with_v, without = (circuit & ~knockout).clone(), (circuit & ~knockout).clone()
        with_v[v], without[v] = True, False
        a, b = _measure(torch.stack([with_v, without])).metric
        assert torch.equal(harms[0, i], a - b)


def test_gaps_in_a_record():
    sets = _sets("", "a", "c")
    gaps = torch.tensor([0.5, -1.5, 0.5]).double()[:, None] * STRENGTH
    found = summarise_gaps("by hand", sets, gaps, WHOLE, WEIGHTS, UNITS)
    assert found.search == "by hand"
    assert found.n_sets == 3
    assert found.mean.value == pytest.approx(2.5 / 3 / 2.5)
    assert found.worst.value == pytest.approx(-0.6)
    assert found.worst_nodes == (UNITS[0].id,)
    # Gap and span are the same on every prompt up to its strength: no spread over prompts.
    assert found.worst.high - found.worst.low < 1e-12
    assert found.mean.high - found.mean.low < 1e-12
    uneven = gaps.clone()
    uneven[1, 0] = -9.0
    wide = summarise_gaps("by hand", sets, uneven, WHOLE, WEIGHTS, UNITS)
    assert wide.worst.low == pytest.approx(-9.0 / 2.5)
    assert wide.worst.high == pytest.approx(-0.6)
    with pytest.raises(ValueError, match="'by hand' has no K"):
        summarise_gaps("by hand", sets[:0], gaps[:0], WHOLE, WEIGHTS, UNITS)


def test_harms_in_a_record():
    members, harms = removal_harms(_measure, _set("abcd"), _sets("", "b"))
    nodes = [UNITS[i] for i in members.tolist()]
    found = summarise_harms(nodes, harms, WHOLE, WEIGHTS, threshold=0.3)
    assert [h.node for h in found.nodes] == [n.id for n in nodes]
    assert [h.alone.value for h in found.nodes] == pytest.approx([0, 0, 0.4, -0.2])
    assert [h.largest for h in found.nodes] == pytest.approx([0.8, 0, 0.4, -0.2])
    assert found.smallest.value == 0.0
    assert found.smallest_node == nodes[0].id
    assert found.n_contexts == 1
    assert (found.needed_alone.value, found.needed.value) == (0.25, 0.5)
    low = summarise_harms(nodes, harms, WHOLE, WEIGHTS, threshold=0.2)
    assert (low.needed_alone.value, low.needed.value) == (0.5, 0.75)
    high = summarise_harms(nodes, harms, WHOLE, WEIGHTS, threshold=0.9)
    assert high.needed == Estimate(value=0.0, low=0.0, high=0.0)


def test_shares_of_needed_units_have_intervals_over_prompts():
    """A unit that matters on one prompt of two counts in the resamples that hold it."""
    harms = torch.tensor([[[0.04, 0.0]]]).double()
    whole = torch.ones(2).double()
    found = summarise_harms(UNITS[:1], harms, whole, WEIGHTS, threshold=0.01)
    assert found.needed_alone == Estimate(value=1.0, low=0.0, high=1.0)


def test_a_removal_that_helps_counts_too():
    """Alone it helps by half; in the other context it harms by less than what counts."""
    harms = torch.tensor([[[-0.5, -0.5]], [[0.1, 0.1]]]).double()
    found = summarise_harms(UNITS[:1], harms, torch.ones(2).double(), WEIGHTS, threshold=0.3)
    everyone = Estimate(value=1.0, low=1.0, high=1.0)
    assert found.needed_alone == found.needed == everyone
    assert found.nodes[0].largest == -0.5


def test_prompts_that_chose_do_not_prove():
    check_disjoint(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 1], [1, 4]]))
    check_disjoint(torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match=r"1 of 2 are \(the first in row 1\); draw others"):
        check_disjoint(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 1], [3, 4]]))


def _proof() -> Proof:
    names = [n for n, f in Proof.model_fields.items() if f.annotation is Estimate]
    numbers = {n: Estimate(value=i, low=i - 1, high=i + 1) for i, n in enumerate(names, 1)}
    gap = Knockouts(
        search="random",
        n_sets=2,
        mean=Estimate(value=0.5, low=0, high=1),
        worst=Estimate(value=-0.5, low=-1, high=0),
        worst_nodes=("mlp0.1@1",),
    )
    harm = Estimate(value=0.25, low=0, high=1)
    minimality = Minimality(
        threshold=0.01,
        n_contexts=3,
        smallest=harm,
        smallest_node="mlp0.1@1",
        needed_alone=Estimate(value=0.375, low=0, high=1),
        needed=Estimate(value=0.625, low=0, high=1),
        nodes=(NodeHarm(node="mlp0.1@1", alone=harm, largest=0.5),),
    )
    return Proof(
        choices=ProofChoices(value="corrupted", errors="kept"),
        metric_name="logit difference",
        n_prompts=4,
        n_resamples=10,
        seed=0,
        n_units=9,
        size=1,
        n_idle=0,
        knockouts=(gap,),
        minimality=minimality,
        **numbers,
    )


def test_a_proof_is_json_and_every_line_has_the_choices():
    proof = _proof()
    assert Proof.model_validate_json(proof.model_dump_json()) == proof
    assert json.loads(proof.model_dump_json())["choices"]["errors"] == "kept"
    lines = proof.lines()
    assert len(lines) == 12 + 2 + 3
    own = ("unit node", "component", "errors kept", "value corrupted", "positions", "direction")
    for line in lines:
        assert "metric logit difference; 4 prompts; " in line
        if not line.startswith("metric of the model"):
            assert all(word in line for word in own)
    assert [line.partition(" [")[0] for line in lines[-5:]] == [
        "knockout gap, random, mean |gap| 0.500",
        "knockout gap, random, worst -0.500",
        "smallest harm (mlp0.1@1) 0.250",
        "units whose removal changes at least 1% of m(M) - m(empty) 0.375",
        "the same, without some K of 3 0.625",
    ]
    apart = [line for line in lines if "tokens apart" in line]
    assert [line.rpartition("; set ")[2] for line in apart] == [
        "the circuit, its tokens apart)",
        "everything, tokens apart)",
    ]
    by_name = {line.partition(" (metric")[0].rpartition(" [")[0]: line for line in lines}
    assert f"faithfulness {proof.faithfulness.value:.3f}" in by_name
    assert "set outside the circuit)" in by_name[f"faithfulness {proof.faithfulness.value:.3f}"]
    assert "set the circuit)" in by_name[f"necessity {proof.necessity.value:.3f}"]
    assert "set the circuit)" in by_name[f"KL without the circuit {proof.kl_without.value:.3f}"]
