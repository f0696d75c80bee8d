"""What weights say of many features at once is what the library says of each alone."""

import pytest
import torch

from attribution import (
    deembed_feature,
    deembed_feature_extended,
    extended_embedding,
    promoted_and_suppressed,
)
from case_studies.dashboard.build import feature_records, open_source, word_table
from case_studies.dashboard.places import in_order
from case_studies.dashboard.records import FeatureWeights, Missing, TokenScores
from case_studies.dashboard.weights import feature_weights
from circuits import SplicedModel
from tests import cross_layer, models

FEATURES = [7, 0, 31]
TOP = 6


def transcoders(architecture: str) -> SplicedModel:
    made = {f"mlp.{i}": models.transcoder(seed=i) for i in range(models.N_LAYERS)}
    return SplicedModel(models.subject(architecture, torch.float64), made)


def known(spliced: SplicedModel, name: str) -> list[FeatureWeights]:
    extended, words = extended_embedding(spliced.model), word_table(spliced.model)
    return feature_weights(spliced, name, FEATURES, top=TOP, extended=extended, words=words)


def assert_same(found: TokenScores | Missing, expected: list[tuple[str, float]]) -> None:
    assert not isinstance(found, Missing)
    assert [token for token, _ in found] == [token for token, _ in expected]
    assert [x for _, x in found] == pytest.approx([x for _, x in expected])


@pytest.mark.parametrize("architecture", ["gpt2", "llama_gqa", "gemma2"])
def test_a_batch_agrees_with_each_feature_alone(architecture: str) -> None:
    spliced = transcoders(architecture)
    for feature, weights in zip(FEATURES, known(spliced, "mlp.1"), strict=True):
        promoted, suppressed = promoted_and_suppressed(spliced, "mlp.1", feature, top=TOP)
        assert_same(weights.deembedding, deembed_feature(spliced, "mlp.1", feature, top=TOP))
        extended = deembed_feature_extended(spliced, "mlp.1", feature, top=TOP)
        assert_same(weights.deembedding_extended, extended)
        assert_same(weights.promoted, promoted)
        assert_same(weights.suppressed, suppressed)
        assert bool(weights.logits_note) == (architecture == "gemma2")


def test_what_reads_inside_layer_0_has_no_extended_de_embedding() -> None:
    (found, *_) = known(transcoders("gpt2"), "mlp.0")
    assert isinstance(found.deembedding_extended, Missing)
    assert "inside layer 0" in found.deembedding_extended.reason
    assert not isinstance(found.deembedding, Missing)


def test_a_cross_layer_transcoder_under_post_norms_has_no_logits_and_says_why() -> None:
    model = models.subject("gemma2", torch.float64)
    spliced, words = SplicedModel(model, cross_layer.mixed("whole")), word_table(model)
    (found,) = feature_weights(spliced, "mlp.1", [5], top=TOP, extended=None, words=words)
    for logits in (found.promoted, found.suppressed):
        assert isinstance(logits, Missing)
        assert "one input-dependent denominator a layer" in logits.reason


def test_features_that_are_not_there_are_refused() -> None:
    words = word_table(transcoders("gpt2").model)
    with pytest.raises(ValueError, match=r"feature must be in \[0, 40\), got 40"):
        feature_weights(transcoders("gpt2"), "mlp.1", [0, 40], top=TOP, extended=None, words=words)


def test_records_come_in_the_order_asked_for_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("case_studies.dashboard.build._CHUNK", 2)
    spliced = transcoders("gpt2")
    source = open_source({p.name: spliced for p in in_order(spliced)}, "given", Missing("no scan"))
    wanted = [31, 7, 0, 8, 2]
    found = list(feature_records(source, "mlp.1", wanted, top=TOP))
    assert [record.name for record in found] == [f"mlp.1.{i}" for i in wanted]
    whole = known(spliced, "mlp.1")
    assert (
        [found[1].weights.promoted, found[2].weights.promoted]
        == [
            tuple((t, pytest.approx(x)) for t, x in weights.promoted)  # type: ignore[union-attr]
            for weights in whole[:2]
        ]
    )
    assert found[0].observed == Missing("no scan")


def test_the_vocabulary_runs_through_layer_0_only_where_something_reads_above_it() -> None:
    spliced = transcoders("gpt2")
    assert open_source({"mlp.0": spliced}, "given", Missing("no scan")).extended is None
    extended = open_source(
        {"mlp.0": spliced, "mlp.1": spliced}, "given", Missing("no scan")
    ).extended
    assert extended is not None
    assert torch.equal(extended, extended_embedding(spliced.model))
