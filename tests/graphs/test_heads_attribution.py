"""Edge attribution against autograd through an explicit mask of edges."""

import pytest
import torch
from torch import Tensor

from circuits import load_model
from graphs.heads import EdgeRunner, edge_attribution, logit_difference, mean_kl
from graphs.heads.attribution import interpolation
from graphs.heads.metrics import Metric
from tests import models
from tests.graphs.heads_reference import EDGES, Reference, pairs, random_circuits, runner


def difference(n_prompts: int = 3) -> Metric:
    return logit_difference(torch.arange(n_prompts), 7 + torch.arange(n_prompts))


def by_mask(reference: Reference, clean: Tensor, corrupted: Tensor, metric: Metric) -> Tensor:
    """Gradient at 0 of masks that turn each edge from its current value to the corrupted one."""
    other, _ = reference.run(reference.embed(corrupted))
    mask = torch.zeros(EDGES.n_readers, EDGES.n_writers).double().requires_grad_()

    def mix(reader: int, writers: list[Tensor], bias: Tensor) -> Tensor:
        current, there = torch.stack(writers), torch.stack(other[: len(writers)])
        weights = mask[reader, : len(writers), None, None, None]
        return ((1 - weights) * current + weights * there).sum(0) + bias

    value = metric(reference.run(reference.embed(clean), mix)[1])
    return torch.autograd.grad(value, mask)[0]


def by_offsets(
    reference: Reference, clean: Tensor, corrupted: Tensor, metric: Metric, start: Tensor
) -> Tensor:
    """Gradient at 0 of how much of (corrupted - clean) each edge adds, in a run from `start`."""
    one, _ = reference.run(reference.embed(clean))
    other, _ = reference.run(reference.embed(corrupted))
    mask = torch.zeros(EDGES.n_readers, EDGES.n_writers).double().requires_grad_()

    def mix(reader: int, writers: list[Tensor], bias: Tensor) -> Tensor:
        n = len(writers)
        added = torch.stack(other[:n]) - torch.stack(one[:n])
        offset = torch.einsum("w,wbpd->bpd", mask[reader, :n], added)
        return torch.stack(writers).sum(0) + offset + bias

    return torch.autograd.grad(metric(reference.run(start, mix)[1]), mask)[0]


@pytest.mark.parametrize("architecture", ["gpt2", "llama_gqa"])
def test_eap_is_the_gradient_of_a_mask(architecture: str) -> None:
    clean, corrupted = pairs()
    model, reference = models.subject(architecture, torch.float64), Reference(architecture)
    found = edge_attribution(model, clean, corrupted, difference())
    want = by_mask(reference, clean, corrupted, difference())
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)
    assert (found[EDGES.exists].abs() > 1e-6).double().mean() > 0.9


@pytest.mark.parametrize("architecture", ["gpt2", "llama_gqa"])
def test_eap_ig_is_the_mean_of_gradients(architecture: str) -> None:
    clean, corrupted = pairs()
    model, reference = models.subject(architecture, torch.float64), Reference(architecture)
    metric = mean_kl(reference.run(reference.embed(clean))[1])
    end, start = reference.embed(clean), reference.embed(corrupted)
    gradients = [
        by_offsets(reference, clean, corrupted, metric, start + k / 3 * (end - start))
        for k in range(3)
    ]
    found = edge_attribution(model, clean, corrupted, metric, steps=3)
    torch.testing.assert_close(found, torch.stack(gradients).mean(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("architecture", ["gpt2", "llama_gqa", "neox_parallel", "neox_sequential"])
def test_eap_is_what_removing_an_edge_does(architecture: str) -> None:
    """To first order: tokens 25 places apart have embeddings that hardly differ."""
    hf = models.hf_model(architecture, torch.float64)
    embedding = hf.get_input_embeddings().weight.data
    generator = torch.Generator().manual_seed(0)
    step = torch.randn(25, models.D_MODEL, generator=generator).double()
    embedding[25:] = embedding[:25] + 1e-5 * step
    model = load_model(hf, models.word_tokenizer(), dtype=torch.float64)
    clean = torch.randint(0, 25, (3, 5), generator=generator)
    run = EdgeRunner.on_prompts(model, clean, clean + 25)
    some = random_circuits(run.edges, 1, 0.15)[0].nonzero()
    keep = run.edges.exists.repeat(len(some), 1, 1)
    for row, (reader, writer) in zip(keep, some.tolist(), strict=True):
        row[reader, writer] = False
    whole = difference()(run.full_logits)
    change = torch.stack([difference()(logits) for logits in run.logits(keep)]) - whole
    scores = edge_attribution(model, clean, clean + 25, difference())[some[:, 0], some[:, 1]]
    assert len(some) > 25
    assert float((change - scores).norm() / scores.norm()) < 1e-3


def test_scores_of_pairs_that_are_no_edges() -> None:
    found = edge_attribution(models.subject("neox_parallel", torch.float64), *pairs(), difference())
    _, run = runner("neox_parallel", *pairs())
    assert (found[~run.edges.exists] == 0).all()


def test_where_gradients_are_taken() -> None:
    assert interpolation(0) == [1.0]
    assert interpolation(5) == [0.0, 0.2, 0.4, 0.6, 0.8]
    with pytest.raises(ValueError, match="steps >= 0"):
        interpolation(-1)


def test_mean_over_prompts() -> None:
    clean, corrupted = pairs()
    model = models.subject("gpt2", torch.float64)
    whole = edge_attribution(model, clean, corrupted, difference())
    one_by_one = [
        edge_attribution(
            model,
            clean[i : i + 1],
            corrupted[i : i + 1],
            logit_difference(torch.tensor([i]), torch.tensor([7 + i])),
        )
        for i in range(3)
    ]
    torch.testing.assert_close(whole, torch.stack(one_by_one).mean(0), rtol=1e-9, atol=1e-9)


def test_a_metric_that_is_no_number() -> None:
    with pytest.raises(ValueError, match=r"one number, got shape \(3,\)"):
        edge_attribution(models.subject("gpt2"), *pairs(), lambda logits: logits[:, 0])


@pytest.mark.usefixtures("unchecked")
def test_prompts_that_do_not_line_up() -> None:
    clean, corrupted = pairs()
    with pytest.raises(ValueError, match="line up"):
        edge_attribution(models.subject("gpt2"), clean, corrupted[:2], difference())


def test_metrics_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0, 0.0], [0.0, 2.0, 5.0]])
    assert logit_difference(torch.tensor([1, 2]), torch.tensor([0, 1]))(logits) == 2.5
    even = torch.zeros(1, 2)
    skewed = torch.tensor([[3.0, 1.0]]).log()
    want = 0.5 * torch.tensor(4 / 3).log()  # KL((1/2, 1/2) || (3/4, 1/4)) = log(4/3) / 2
    torch.testing.assert_close(mean_kl(even)(skewed), want)
    assert mean_kl(logits)(logits) == 0
