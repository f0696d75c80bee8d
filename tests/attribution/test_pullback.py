"""Pullbacks: rows of virtual weights, by name, and times activations the direct edges."""

import pytest
import torch

from attribution import FeatureTarget, attribute
from attribution.invariant.pullbacks import pullback, pullback_on_prompt, top_pullback
from attribution.invariant.weights import virtual_weights
from circuits import Site, SplicedModel
from tests import models
from tests.models import TOKENS


@pytest.fixture(scope="module")
def spliced() -> SplicedModel:
    return models.spliced("llama_gqa", "transcoders", torch.float64)


@pytest.mark.parametrize("head", [None, (1, 3), (2, 0)])
def test_a_pullback_is_a_row_of_virtual_weights(spliced, head: tuple[int, int] | None):
    want = virtual_weights(spliced, "mlp.2", "mlp.0", head=head)[6]
    got = pullback(spliced, "mlp.2", 6, "mlp.0", head=head)
    assert got.shape == (40,)
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-14)
    assert got.abs().max() > 0.1


def test_the_top_of_a_pullback_has_names(spliced):
    scores = pullback(spliced, "mlp.2", 6, "mlp.0", head=(1, 3)).tolist()
    best = sorted(range(40), key=lambda s: -abs(scores[s]))
    top = top_pullback(spliced, "mlp.2", 6, "mlp.0", head=(1, 3), top=5)
    assert top == [(f"mlp.0.{s}", scores[s]) for s in best[:5]]
    assert len(top_pullback(spliced, "mlp.2", 6, "mlp.0", top=99)) == 40
    assert any(score < 0 for _, score in top)
    residual = models.spliced("gpt2", "residual")
    assert top_pullback(residual, "resid_post.0", 1, "resid_pre.0", top=1)[0][0].startswith(
        "resid_pre.0."
    )


@pytest.mark.parametrize("pos", [-1, 3])
def test_over_the_denominator_it_is_the_edge_where_no_attention_lies_between(pos: int):
    """In a parallel model nothing lies between one MLP and the next."""
    spliced = models.spliced("neox_parallel", "transcoders", torch.float64)
    trace = attribute(spliced, TOKENS, FeatureTarget("mlp.1", 6, pos), feature_rows=False)
    at = pos % len(TOKENS)
    sigma = spliced.state(TOKENS[None]).values[Site("ln2_scale", 1)][0, at, 0]
    scores = pullback_on_prompt(spliced, TOKENS, "mlp.1", 6, "mlp.0", pos=pos) / sigma
    columns = trace.sources.where(kind="feature", layer=0, pos=at)
    assert len(columns) > 5
    edges = torch.zeros_like(scores)
    edges[[trace.sources[c].feature for c in columns]] = trace.edges[0, columns]
    assert torch.allclose(scores, edges, rtol=1e-10, atol=1e-12)
    by_text = pullback_on_prompt(spliced, " Mary gave", "mlp.1", 6, "mlp.0")
    by_ids = pullback_on_prompt(spliced, torch.tensor([3, 5]), "mlp.1", 6, "mlp.0")
    assert torch.equal(by_text, by_ids)


def test_what_cannot_be_pulled_back_is_refused(spliced):
    with pytest.raises(ValueError, match=r"feature must be in \[0, 40\), got 40"):
        pullback(spliced, "mlp.2", 40, "mlp.0")
    with pytest.raises(ValueError, match=r"mlp.2 does not write below what mlp.0 reads"):
        pullback(spliced, "mlp.0", 0, "mlp.2")
    with pytest.raises(ValueError, match=r"head 2.0 does not write below what mlp.1 reads"):
        top_pullback(spliced, "mlp.1", 0, "mlp.0", head=(2, 0))
    for pos in (7, -8):
        with pytest.raises(ValueError, match=rf"pos must be in \[-7, 7\), got {pos}"):
            pullback_on_prompt(spliced, TOKENS, "mlp.2", 0, "mlp.0", pos=pos)
