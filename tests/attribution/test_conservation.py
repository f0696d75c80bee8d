"""Every row adds up to its target's value, on every architecture (design, 2.4)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution import (
    DirectionTarget,
    FeatureTarget,
    LogitDifference,
    ProbabilityDifference,
    TopLogits,
    Trace,
    attribute,
)
from circuits import Site, SplicedModel
from tests import models
from tests.models import ARCHITECTURES, D_MODEL, MIXTURES, N_LAYERS, TOKENS

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
READABLE = ("resid_pre", "resid_post", "attn_out", "resid_mid", "mlp_in", "mlp_out")


def all_targets(spliced: SplicedModel) -> list:
    """One target of every kind, directions at every place, features that may be inactive."""
    directions = [
        DirectionTarget(Site(kind, layer), torch.linspace(-1.0, 2.0, D_MODEL), pos=2 + layer)
        for layer in range(N_LAYERS)
        for kind in READABLE
        if not (spliced.model.parallel and kind == "resid_mid")
    ]
    features = [
        FeatureTarget(placement.name, feature, pos=pos)
        for placement in spliced.placements.values()
        for feature, pos in ((0, 0), (1, -1), (2, 3))
    ]
    return [
        LogitDifference([3, 4], [5]),
        LogitDifference(7, 8, pos=0),
        ProbabilityDifference(torch.tensor([1, 2]), torch.tensor([3])),
        TopLogits(),
        DirectionTarget(Site("unembed_in"), torch.ones(D_MODEL), pos=1),
        *directions,
        *features,
    ]


def rows_add_up(trace: Trace) -> float:
    """Our own measure, without `Trace`: the gap over the largest term involved."""
    edges, values = trace.edges.double(), trace.target_values.double()
    gap = (edges.sum(1) - values).abs()
    size = edges.abs().amax(1).maximum(values.abs())
    return float((gap / size.clamp_min(1e-12)).max())  # a row of zeros (a padding token) is fine


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_sums_to_its_value(architecture: str, mixture: str, dtype: torch.dtype):
    spliced = models.spliced(architecture, mixture, dtype)
    trace = attribute(spliced, TOKENS, all_targets(spliced))
    active = sum(int(a.count_nonzero()) for a in spliced.state(TOKENS[None]).activations.values())
    n_outputs = len(trace.targets.where(kind="output"))
    assert len(trace.targets) == n_outputs + active
    assert rows_add_up(trace) < TOLERANCE[dtype]
    assert trace.conservation_error() == pytest.approx(rows_add_up(trace), rel=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_are_those_of_the_model_itself(architecture: str):
    """What rows sum to is compared with logits and encoders, not with the sweep's own inputs."""
    spliced = models.spliced(architecture, "skip", torch.float64)
    cap = spliced.model.logit_softcap
    trace = attribute(spliced, TOKENS, LogitDifference([3], [4], pos=-2))
    logits, captured = spliced.model.run(TOKENS[None], capture=[Site("mlp_in", 1)])
    logits = cap * torch.atanh(logits / cap) if cap else logits
    want = logits[0, -2, 3] - logits[0, -2, 4]
    assert torch.allclose(trace.edges[0].sum(), want, rtol=1e-5)  # HF's RMSNorm is float32
    dictionary = spliced.placements[Site("mlp_raw_out", 1)].dictionary
    for row in trace.targets.where(kind="feature", layer=1)[:20]:
        node = trace.targets[row]
        z = captured[Site("mlp_in", 1)][0, node.pos] @ dictionary.W_enc[:, node.feature]
        want = z + dictionary.b_enc[node.feature]
        assert torch.allclose(trace.edges[row].sum(), want, rtol=1e-4, atol=1e-5)
        assert node.activation == pytest.approx(float(want), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "neox_parallel", "gemma2"])
def test_every_kind_of_source_carries_something(architecture: str):
    """What the reference tools leave out: position 0, learned positions, biases, errors."""
    dictionaries = {"mlp.0": models.transcoder(), "attn_out.1": models.sae("attn_out")}
    spliced = SplicedModel(models.subject(architecture, torch.float64), dictionaries)
    trace = attribute(spliced, TOKENS, LogitDifference([3], [4]))
    kinds = {"feature", "token", "error", "sublayer", "bias"}
    kinds |= {"position"} if architecture == "gpt2" else set()
    assert {node.kind for node in trace.sources} == kinds
    for kind in kinds:
        assert trace.edges[:, trace.sources.where(kind=kind)].abs().max() > 1e-6, kind
    for kind in kinds - {"bias"}:
        at_zero = trace.sources.where(kind=kind, pos=0)
        assert trace.edges[0, at_zero].abs().max() > 0, f"{kind} at position 0"


def test_no_source_reaches_back_in_time_or_up_the_layers():
    spliced = models.spliced("llama_gqa", "transcoders", torch.float64)
    trace = attribute(spliced, TOKENS)
    for row in trace.targets.where(kind="feature"):
        target = trace.targets[row]
        for column in trace.edges[row].nonzero()[:, 0].tolist():
            source = trace.sources[column]
            assert source.pos <= target.pos
            assert source.kind in ("token", "bias") or source.layer < target.layer


def test_the_chunk_size_does_not_matter():
    spliced = models.spliced("gpt2", "mixed", torch.float64)
    whole = attribute(spliced, TOKENS, all_targets(spliced))
    seen: list[tuple[int, int]] = []
    parts = attribute(
        spliced,
        TOKENS,
        all_targets(spliced),
        memory=3 * 6 * len(TOKENS) * D_MODEL * 8,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert torch.allclose(whole.edges, parts.edges, rtol=1e-12, atol=1e-12)
    assert seen[-1] == (len(whole.targets), len(whole.targets))
    assert len(seen) > 20


def test_only_the_target_without_feature_rows():
    spliced = models.spliced("gpt2", "mixed", torch.float64)
    full = attribute(spliced, TOKENS, LogitDifference([3], [4]))
    short = attribute(spliced, TOKENS, LogitDifference([3], [4]), feature_rows=False)
    assert len(short.targets) == 1
    assert torch.allclose(short.edges[0], full.edges[0], rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    architecture=st.sampled_from(ARCHITECTURES),
    tokens=st.lists(st.integers(0, models.D_VOCAB - 1), min_size=1, max_size=9),
    places=st.dictionaries(
        st.tuples(
            st.sampled_from(["mlp", "mlp_skip", "resid_pre", "resid_post", "attn_out", "mlp_out"]),
            st.integers(0, N_LAYERS - 1),
        ),
        st.tuples(st.sampled_from(["relu", "jumprelu", "topk"]), st.integers(0, 5)),
        max_size=6,
    ),
)
def test_conservation_holds_for_any_splicing(architecture: str, tokens: list[int], places: dict):
    dictionaries, taken = {}, set()
    for (kind, layer), (activation, seed) in places.items():
        is_mlp = kind.startswith("mlp")
        stream = ("stream", layer - 1) if kind == "resid_pre" else ("stream", layer)
        place = (
            ("mlp", layer) if is_mlp else (stream if kind.startswith("resid") else (kind, layer))
        )
        if place in taken:
            continue
        taken.add(place)
        if kind in ("mlp", "mlp_skip"):
            dictionary = models.transcoder(activation, skip=kind == "mlp_skip", seed=seed)
            dictionaries[f"mlp.{layer}"] = dictionary
        else:
            dictionaries[f"{kind}.{layer}"] = models.sae(kind, activation, seed=seed)
    spliced = SplicedModel(models.subject(architecture, torch.float64), dictionaries)
    trace = attribute(spliced, torch.tensor(tokens), [TopLogits(max_n=2), LogitDifference(1, 2, 0)])
    assert rows_add_up(trace) < 1e-9
