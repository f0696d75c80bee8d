"""Predictions against interventions: exact where the model is frozen, reported where it is not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import (
    DirectionTarget,
    FeatureTarget,
    LogitDifference,
    Node,
    ProbabilityDifference,
    TopLogits,
    Trace,
    attribute,
)
from attribution.effects.agreement import measure_agreement
from attribution.effects.causal import (
    CausalCheck,
    ablations,
    check_predictions,
    relative_changes,
    sample_ablations,
)
from attribution.effects.influence import signed_influence
from attribution.effects.observing import listen
from circuits import Intervention, Site, SplicedModel, load_dictionaries, load_model
from tests import models
from tests.models import D_MODEL, TOKENS

BATCH = TOKENS[None]
PROMPT = "The war lasted from the year 1732 to the year 17"
DIRECTION = torch.linspace(-1.0, 2.0, D_MODEL)
TARGETS = [
    LogitDifference([3, 4], [5]),
    ProbabilityDifference(torch.tensor([1, 2]), torch.tensor([3])),
    TopLogits(max_n=2, pos=3),
    *(
        DirectionTarget(Site(kind, layer), DIRECTION)
        for kind in ("resid_pre", "resid_post", "attn_out", "mlp_in", "mlp_out")
        for layer in (0, 1, 2)
    ),
]


def moving_features(trace: Trace, n: int) -> list[Node]:
    """Features that move something, from all over the sources."""
    columns = trace.sources.where(kind="feature")
    moves = trace.edges[:, columns].abs().amax(0) > 1e-3
    moving = [trace.sources[c] for c, m in zip(columns, moves.tolist(), strict=True) if m]
    return moving[:: len(moving) // n][:n]


def every_kind(trace: Trace) -> list[Intervention]:
    """All four kinds at one position, two at all positions, each on another feature."""
    one, two, three, four, five, six = (
        (f"{n.site}.{n.layer}", n.feature, [n.pos]) for n in moving_features(trace, 6)
    )
    return [
        Intervention(*one[:2], "ablate", positions=one[2]),
        Intervention(*two[:2], "scale", 2.5, two[2]),
        Intervention(*three[:2], "set", -0.7, three[2]),
        Intervention(*four[:2], "add", 0.3, four[2]),
        Intervention(*five[:2], "scale", -2.0),
        Intervention(*six[:2], "ablate"),
    ]


def feature_targets(spliced: SplicedModel) -> list[FeatureTarget]:
    """One feature of every dictionary as an output, active or not."""
    return [FeatureTarget(write, 1, pos=-1) for write in spliced.placements]


@pytest.mark.parametrize(
    ("architecture", "mixture"),
    [
        ("gpt2", "mixed"),
        ("gpt2", "residual"),
        ("neox_parallel", "mixed"),
        ("llama_gqa", "mixed"),
        ("gemma2", "skip"),
    ],
)
def test_edges_predict_the_frozen_model_exactly(architecture: str, mixture: str):
    spliced = models.spliced(architecture, mixture, torch.float64)
    targets = [*TARGETS, *feature_targets(spliced)]
    trace = attribute(spliced, TOKENS, targets)
    check = check_predictions(spliced, trace, every_kind(trace), targets)
    assert check.direct.abs().amax(1).min() > 1e-6, "an intervention without effect tests nothing"
    moved = check.direct[:, trace.targets.where(kind="output")].abs().amax(0)
    assert (moved > 1e-6).float().mean() > 0.3, "few outputs were moved at all"
    assert check.max_frozen_error() < 1e-9
    assert check.max_frozen_error_of_values() < 1e-9


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_influence_predicts_live_features_until_one_switches(architecture: str):
    """Small steps leave every feature on its side of the threshold."""
    spliced = models.spliced(architecture, "mixed", torch.float64)
    trace = attribute(spliced, TOKENS, TARGETS)
    steps = [
        Intervention(f"{n.site}.{n.layer}", n.feature, "scale", 1 + 1e-6, positions=[n.pos])
        for n in moving_features(trace, 10)
    ]
    check = check_predictions(spliced, trace, steps, TARGETS)
    gap = (check.total - check.live).abs().amax(1) / check.total.abs().amax(1)
    assert gap.max() < 1e-6
    assert ((check.total - check.direct).abs().amax(1) / check.total.abs().amax(1)).max() > 0.1


def test_total_is_the_influence_times_the_change():
    spliced = models.spliced("gpt2", "mixed", torch.float64)
    trace = attribute(spliced, TOKENS, LogitDifference([3], [4]))
    column = trace.sources.where(kind="feature")[5]
    node = trace.sources[column]
    name = f"{node.site}.{node.layer}"
    change = Intervention(name, node.feature, "set", 3 * node.activation, positions=[node.pos])
    check = check_predictions(spliced, trace, [change], LogitDifference([3], [4]))
    torch.testing.assert_close(check.direct[0], 2 * trace.edges[:, column])
    want = 2 * signed_influence(trace, targets=range(len(trace.targets)), sources=[column])[:, 0]
    torch.testing.assert_close(check.total[0], want)
    largest, values = trace.edges.abs().amax(1), trace.target_values.abs()
    assert (largest > values).any()
    assert (values > largest).any()
    assert torch.equal(check.sizes, largest.maximum(values))


def test_the_real_effect_is_that_of_a_run_with_nothing_frozen():
    spliced = models.spliced("gpt2", "mixed", torch.float64)
    target = LogitDifference([3], [4], pos=-2)
    trace = attribute(spliced, TOKENS, target)
    interventions = sample_ablations(trace, 6, seed=1)
    check = check_predictions(spliced, trace, interventions, target)
    base = spliced.run(BATCH, "exact")
    feature = trace.targets.where(kind="feature")[-1]
    node = trace.targets[feature]
    write = spliced.write_site(f"{node.site}.{node.layer}")
    for i, change in enumerate(interventions):
        run = spliced.run(BATCH, "exact", interventions=[change])
        moved = (run.logits - base.logits)[0, -2]
        assert float(check.real[i, 0]) == pytest.approx(float(moved[3] - moved[4]), abs=1e-9)
        moved = (run.pre_activations[write] - base.pre_activations[write])[0, node.pos]
        assert float(check.real[i, feature]) == pytest.approx(float(moved[node.feature]), abs=1e-9)
    assert (check.real - check.live).abs().max() > 1e-3, "nothing was frozen, yet nothing differs"
    assert (check.live - check.frozen).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", models.DTYPES)
def test_tiny(dtype: torch.dtype):
    spliced = SplicedModel(load_model("tiny", dtype=dtype), load_dictionaries("tiny"))
    trace = attribute(spliced, PROMPT)
    seen: list[tuple[int, int]] = []
    interventions = sample_ablations(trace, 8, seed=3)
    check = check_predictions(
        spliced, trace, interventions, progress=lambda done, n: seen.append((done, n))
    )
    assert seen == [(i, 8) for i in range(1, 9)]
    assert check.max_frozen_error_of_values() < (1e-9 if dtype == torch.float64 else 1e-4)
    found = check.agreement(0)
    want = torch.corrcoef(torch.stack([check.total[:, 0], check.real[:, 0]]).double())[0, 1]
    assert found.correlation == pytest.approx(float(want), rel=1e-9)
    assert found.n == 8
    if dtype == torch.float64:  # in float32 small effects drown in the rounding of the two runs
        assert check.max_frozen_error() < 1e-9
        exact = check.agreement(trace.targets[0].id, "direct", "frozen")
        assert (exact.correlation, exact.slope) == pytest.approx((1.0, 1.0), rel=1e-9)


def test_a_trace_of_the_replacement_model_is_checked_in_it():
    spliced = models.spliced("gpt2", "skip", torch.float64)
    target = LogitDifference([3], [4])
    trace = attribute(spliced, TOKENS, target, mode="replace")
    interventions = every_kind(trace)
    check = check_predictions(spliced, trace, interventions, target)
    assert check.max_frozen_error() < 1e-9
    base = spliced.run(BATCH, "replace").logits
    moved = spliced.run(BATCH, "replace", interventions=interventions[:1]).logits - base
    want = float(moved[0, -1, 3] - moved[0, -1, 4])
    assert float(check.real[0, 0]) == pytest.approx(want, abs=1e-9)


def test_errors_of_a_check_by_hand():
    trace = attribute(models.spliced("gpt2", "skip"), TOKENS, feature_rows=False)
    direct = torch.tensor([[4.0, 1.0], [0.1, 0.2]])
    frozen = torch.tensor([[4.0, 1.5], [0.1, 0.1]])
    check = CausalCheck(
        interventions=(),
        targets=trace.targets,
        direct=direct,
        frozen=frozen,
        total=direct,
        live=direct,
        real=direct,
        sizes=torch.tensor([8.0, 10.0]),
    )
    assert check.max_frozen_error() == pytest.approx(0.5)  # 0.1 of 0.2, more than 0.5 of 4
    assert check.max_frozen_error_of_values() == pytest.approx(0.05)


def test_an_intervention_without_effect_is_no_error():
    spliced = models.spliced("gpt2", "transcoders", torch.float64)
    trace = attribute(spliced, TOKENS, LogitDifference([3], [4]))
    top = trace.sources.where(kind="feature", layer=2, pos=0)
    check = check_predictions(spliced, trace, ablations(trace, top[:1]), LogitDifference([3], [4]))
    assert not check.direct.any()
    assert check.max_frozen_error() < 1e-9


def test_relative_changes_by_hand():
    spliced = models.spliced("gpt2", "mixed", torch.float64)
    trace, state = attribute(spliced, TOKENS), spliced.state(BATCH)
    node = trace.sources[trace.sources.where(kind="feature", site="mlp", layer=0)[3]]
    same = trace.sources.where(kind="feature", site="mlp", layer=0, feature=node.feature)
    assert len(same) > 1, "want a feature that is active at several positions"

    def changes(kind, value: float = 0.0, positions=None) -> dict[int, float]:
        change = Intervention("mlp.0", node.feature, kind, value, positions)
        relative = relative_changes(spliced, state, trace, change)
        return {i: float(relative[i]) for i in relative.nonzero()[:, 0].tolist()}

    at, here = [node.pos], trace.sources.row(node.id)
    assert changes("ablate") == dict.fromkeys(same, -1.0)
    assert changes("ablate", positions=at) == {here: -1.0}
    assert changes("scale", 3.0, [node.pos - len(TOKENS)]) == pytest.approx({here: 2.0})
    assert changes("add", 0.5, at) == pytest.approx({here: 0.5 / node.activation})
    assert changes("set", 0.5, at) == pytest.approx({here: 0.5 / node.activation - 1})
    assert changes("scale", 1.0) == {}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 30))
def test_sampled_ablations_are_different_features_of_the_trace(seed: int, n: int):
    trace = attribute(models.spliced("gpt2", "mixed"), TOKENS, feature_rows=False)
    drawn = sample_ablations(trace, n, seed)
    assert drawn == sample_ablations(trace, n, seed)
    names = {(i.site, i.feature, *(i.positions or ())) for i in drawn}
    features = [trace.sources[c] for c in trace.sources.where(kind="feature")]
    assert len(names) == n
    assert names <= {(f"{n.site}.{n.layer}", n.feature, n.pos) for n in features}
    assert {i.kind for i in drawn} == {"ablate"}
    whole = sample_ablations(trace, len(features), seed)
    assert whole == ablations(trace, trace.sources.where(kind="feature"))
    assert drawn != sample_ablations(trace, n, seed + 1) or n < 3


def test_listening_hears_what_arrives_and_changes_nothing():
    spliced = models.spliced("gpt2", "residual")
    sites = [Site("resid_post", 0), Site("resid_pre", 1), Site("unembed_in"), Site("mlp_out", 1)]
    heard, model = listen(spliced, sites)
    want = spliced.run(BATCH, "replace")
    assert torch.equal(heard.run(BATCH, "replace").logits, want.logits)
    assert heard.model is model
    assert spliced.model is not model
    pre = (
        model.arrived(Site("resid_post", 0))
        @ spliced.placements[Site("resid_post", 0)].dictionary.W_enc
    )
    encoder = spliced.placements[Site("resid_post", 0)].dictionary
    torch.testing.assert_close(pre + encoder.b_enc, want.pre_activations[Site("resid_post", 0)])
    assert torch.equal(model.arrived(Site("resid_pre", 1)), model.arrived(Site("resid_post", 0)))
    logits = model.arrived(Site("unembed_in")) @ spliced.model.W_U + spliced.model.b_U
    torch.testing.assert_close(logits, want.logits)


def test_agreement_by_hand():
    predicted = torch.tensor([0.0, 1.0, 2.0, 3.0])
    found = measure_agreement(predicted, torch.tensor([1.0, -1.0, 3.0, 5.0]))
    # means 1.5 and 2: <p, o> = 1.5 + 1.5 + 0.5 + 4.5 = 8, <p, p> = 5, <o, o> = 1 + 9 + 1 + 9 = 20
    assert found.correlation == pytest.approx(8 / 100**0.5)
    assert found.slope == pytest.approx(8 / 5)
    assert found.same_sign == pytest.approx(0.5)  # 0 against 1 counts as different
    assert found.n == 4
    opposite = measure_agreement(predicted, -2 * predicted)
    assert (opposite.correlation, opposite.slope) == pytest.approx((-1.0, -2.0))
    assert opposite.same_sign == 0.0
    assert measure_agreement(predicted, predicted).same_sign == 1.0


@pytest.mark.parametrize("constant", [0, 1])
def test_agreement_of_a_constant_is_refused(constant: int):
    sides = [torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])]
    sides[constant] = torch.tensor([3.0, 3.0])
    with pytest.raises(ValueError, match="got 2 pairs in which one is constant"):
        measure_agreement(*sides)


def test_bad_requests_are_refused():
    spliced = models.spliced("gpt2", "transcoders")
    target = LogitDifference([3], [4])
    trace = attribute(spliced, TOKENS, target)
    some = sample_ablations(trace, 2)
    with pytest.raises(ValueError, match="nothing to check: give at least one intervention"):
        check_predictions(spliced, trace, [], target)
    with pytest.raises(ValueError, match=r"the outputs of the trace have the values \[.*\], those"):
        check_predictions(spliced, trace, some, LogitDifference([3], [5]))
    with pytest.raises(ValueError, match="give the target, the model and the dictionaries"):
        check_predictions(spliced, trace, some, [target, target])
    active = set(spliced.state(BATCH).activations[Site("mlp_raw_out", 0)][0, 2].nonzero()[:, 0])
    silent = min(set(range(models.N_FEATURES)) - {int(i) for i in active})
    change = Intervention("mlp.0", silent, "set", 1.0, positions=[2])
    with pytest.raises(ValueError, match=rf"feature {silent} of .* not active at positions \[2\]"):
        check_predictions(spliced, trace, [change], target)
    with pytest.raises(ValueError, match="no node 'nonsense'"):
        check_predictions(spliced, trace, some, target).agreement("nonsense")
    with pytest.raises(ValueError, match="only features can be ablated here, got token@0"):
        ablations(trace, ["token@0"])
    for n in (0, 10**6):
        with pytest.raises(ValueError, match=r"n must be in \[1, \d+\] \(the features of the tr"):
            sample_ablations(trace, n)
