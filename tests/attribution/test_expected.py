"""Expected attribution is the mean of the direct edges that `attribute` gives, BOS left out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attribution import LogitDifference, attribute
from attribution.invariant.expected import coactivation, expected_attribution
from attribution.invariant.weights import virtual_weights
from circuits import SplicedModel
from tests import models

BATCHES = [
    torch.tensor([[0, 17, 5, 42, 9], [3, 0, 8, 8, 30]]),
    torch.tensor([[12, 33, 7]]),
]
BOS = 0  # of the tokenizer in tests.models
CASES = [
    ("neox_parallel", "mlp.1", "mlp.0", "relu", "jumprelu"),  # no attention between them
    ("neox_parallel", "mlp.2", "resid_post.1", "topk", "relu"),
    ("neox_sequential", "mlp.1", "attn_out.1", "jumprelu", "topk"),
    ("gpt2", "resid_post.1", "mlp.1", "topk", "relu"),
    ("llama_gqa", "mlp.2", "attn_out.2", "relu", "relu"),
    ("gemma2", "mlp.0", "attn_out.0", "topk", "jumprelu"),
    ("qwen2", "resid_post.0", "attn_out.0", "relu", "topk"),
]


def pair(architecture: str, target: str, source: str, acts: tuple[str, str]) -> SplicedModel:
    dictionaries = {}
    for seed, (place, act) in enumerate(zip((target, source), acts, strict=True)):
        site = place.split(".")[0]
        if site == "mlp":
            dictionaries[place] = models.transcoder(act, seed=seed)
        else:
            dictionaries[place] = models.sae(site, act, seed=seed)
    return SplicedModel(models.subject(architecture, torch.float64), dictionaries)


def mean_edges(spliced: SplicedModel, target: str, source: str) -> tuple[Tensor, Tensor, int]:
    """The mean over positions of the edges at one position, prompt by prompt."""
    (t_site, t_layer), (s_site, s_layer) = (name.split(".") for name in (target, source))
    sums, counts, n = torch.zeros(40, 40).double(), torch.zeros(40).double(), 0
    for prompt in (row for batch in BATCHES for row in batch):
        trace = attribute(spliced, prompt, LogitDifference(1, 2))
        for pos in (p for p in range(len(prompt)) if prompt[p] != BOS):
            n += 1
            rows = trace.targets.where(kind="feature", site=t_site, layer=int(t_layer), pos=pos)
            columns = trace.sources.where(kind="feature", site=s_site, layer=int(s_layer), pos=pos)
            targets = [trace.targets[row].feature for row in rows]
            sources = [trace.sources[column].feature for column in columns]
            counts[targets] += 1
            block = trace.edges[rows][:, columns]
            sums[torch.tensor(targets)[:, None], torch.tensor(sources)] += block
    return sums / n, counts / n, n


@pytest.mark.parametrize(("architecture", "target", "source", "t_act", "s_act"), CASES)
def test_it_is_the_mean_of_the_edges_on_paths_without_attention(
    architecture: str, target: str, source: str, t_act: str, s_act: str
):
    spliced = pair(architecture, target, source, (t_act, s_act))
    want, frequency, n = mean_edges(spliced, target, source)
    got = expected_attribution(spliced, BATCHES, target, source)
    assert got.n_positions == n == 11
    assert want.abs().max() > 1e-2
    assert (got.attribution - want).abs().max() < 1e-12 * want.abs().max()
    assert torch.equal(got.frequency, frequency)
    assert 0 < float(frequency.mean()) < 1
    some = expected_attribution(spliced, iter(BATCHES), target, source, target_features=[7, 2])
    assert some.targets.tolist() == [7, 2]
    assert torch.allclose(some.attribution, want[[7, 2]], rtol=1e-11, atol=1e-13)
    assert torch.equal(some.frequency, frequency[[7, 2]])


def test_given_active_is_the_mean_where_the_target_is_active():
    spliced = pair("neox_parallel", "mlp.1", "mlp.0", ("topk", "relu"))
    want, frequency, _ = mean_edges(spliced, "mlp.1", "mlp.0")
    got = expected_attribution(spliced, BATCHES, "mlp.1", "mlp.0").given_active()
    never = frequency == 0
    assert 0 < int(never.sum()) < 40
    assert torch.equal(got[never], torch.zeros_like(got[never]))
    live = want[~never] / frequency[~never][:, None]
    assert torch.allclose(got[~never], live, rtol=1e-11, atol=1e-13)


def test_it_weighs_the_virtual_weights():
    """A pair that never meets gets 0 whatever its weight; signs are those of the weights."""
    spliced = pair("neox_parallel", "mlp.1", "mlp.0", ("topk", "topk"))
    got = expected_attribution(spliced, BATCHES, "mlp.1", "mlp.0").attribution
    weights = virtual_weights(spliced, "mlp.1", "mlp.0")
    met = got != 0
    assert 0 < int(met.sum()) < met.numel()
    assert torch.equal(got.sign()[met], weights.sign()[met])
    assert float(weights[~met].abs().max()) > 1


@settings(max_examples=15, deadline=None)
@given(
    splits=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    positions=st.integers(1, 20),
)
def test_neither_batches_nor_chunks_matter(splits: list[int], positions: int):
    spliced = pair("gpt2", "resid_post.1", "mlp.1", ("topk", "relu"))
    generator = torch.Generator().manual_seed(sum(splits))
    tokens = torch.randint(0, 50, (sum(splits), 6), generator=generator)
    once = expected_attribution(spliced, [tokens], "resid_post.1", "mlp.1")
    chunk_bytes = positions * 8 * 80 * 8
    chosen = list(range(0, 40, 11))
    seen: list[int] = []
    parts = expected_attribution(
        spliced,
        tokens.split(splits),
        "resid_post.1",
        "mlp.1",
        target_features=chosen,
        max_bytes=chunk_bytes,
        progress=seen.append,
    )
    assert torch.allclose(parts.attribution, once.attribution[chosen], rtol=1e-11, atol=1e-13)
    assert seen[-1] == parts.n_positions == int((tokens != BOS).sum())
    assert len(seen) == len(splits)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 6), targets=st.integers(1, 4), sources=st.integers(1, 4))
def test_coactivation_is_a_sum_over_positions(n: int, targets: int, sources: int):
    generator = torch.Generator().manual_seed(n + 10 * targets + 100 * sources)
    t = torch.randn(n, targets, generator=generator, dtype=torch.float64).relu()
    s = torch.randn(n, sources, generator=generator, dtype=torch.float64).relu()
    scale = 1 + torch.rand(n, 1, generator=generator, dtype=torch.float64)
    want = torch.zeros(targets, sources).double()
    for p in range(n):
        for i in range(targets):
            if t[p, i] > 0:
                want[i] += s[p] / scale[p]
    assert torch.allclose(coactivation(t, s, scale), want)


@pytest.mark.parametrize("batches", [[], [torch.tensor([[0, 0]])]])
def test_no_position_is_refused(batches: list[Tensor]):
    spliced = pair("neox_parallel", "mlp.1", "mlp.0", ("relu", "relu"))
    with pytest.raises(ValueError, match="no position to average over"):
        expected_attribution(spliced, batches, "mlp.1", "mlp.0")


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused():
    spliced = models.spliced("gpt2", "transcoders", torch.float64)
    with pytest.raises(ValueError, match=r"want batches of token ids .* got shape \(3,\)"):
        expected_attribution(spliced, [torch.tensor([1, 2, 3])], "mlp.1", "mlp.0")
    with pytest.raises(
        ValueError, match=r"40 targets and 40 sources takes 12800 bytes.* at most 3"
    ):
        expected_attribution(spliced, BATCHES, "mlp.1", "mlp.0", max_bytes=1000)
    with pytest.raises(ValueError, match=r"feature must be in \[0, 40\), got 40"):
        expected_attribution(spliced, BATCHES, "mlp.1", "mlp.0", target_features=[40])
    with pytest.raises(ValueError, match=r"mlp.1 does not write below what mlp.0 reads"):
        expected_attribution(spliced, BATCHES, "mlp.0", "mlp.1")
    gemma = models.spliced("gemma2", "transcoders", torch.float64)
    with pytest.raises(ValueError, match=r"normalises what mlp.0 writes"):
        expected_attribution(gemma, BATCHES, "mlp.1", "mlp.0")
