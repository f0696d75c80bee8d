"""Edges between heads: counts by formula, names, order; circuits of them against slow models."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphs.heads import EdgeRunner, HeadEdges, run_edges
from tests import models
from tests.graphs.heads_reference import EDGES, Mix, Reference, pairs, random_circuits, runner

GAP_OF_LIBRARY = 1e-5  # transformers' RMS norms and rotary tables are float32 in any dtype


def test_counts_of_gpt2() -> None:
    edges = HeadEdges(12, 12)
    assert (edges.n_writers, edges.n_readers, edges.n_edges) == (157, 445, 32_491)
    assert int(edges.exists.sum()) == 32_491


def test_counts_by_hand() -> None:
    # two layers of one head: 3 * 1 + 2, 3 * 3 + 4, and 5 to the output
    assert HeadEdges(2, 1).n_edges == 23
    assert HeadEdges(2, 1, parallel=True).n_edges == 21


@given(layers=st.integers(1, 5), heads=st.integers(1, 5), parallel=st.booleans())
def test_edges_of_any_shape(layers: int, heads: int, parallel: bool) -> None:
    edges = HeadEdges(layers, heads, parallel)
    L, H = layers, heads
    within = 0 if parallel else H
    by_layer = sum(3 * H * (1 + i * (H + 1)) + 1 + i * (H + 1) + within for i in range(L))
    assert edges.n_edges == by_layer + 1 + L * (H + 1) == int(edges.exists.sum())
    assert len(edges.writer_names) == edges.n_writers
    assert len(edges.reader_names) == edges.n_readers
    names = [edges.name(reader, writer) for reader, writer in edges.exists.nonzero().tolist()]
    assert len(set(names)) == edges.n_edges
    assert [list(edges.find(name)) for name in names[::7]] == edges.exists.nonzero().tolist()[::7]


def test_names_are_those_of_eap_ig() -> None:
    edges = HeadEdges(12, 12)
    assert edges.find("a9.h9->logits") == (edges.output, edges.head(9, 9))
    assert edges.find("input->a0.h1<q>") == (edges.head_reader(0, 1, "q"), 0)
    assert edges.find("m3->a5.h2<k>") == (edges.head_reader(5, 2, "k"), edges.mlp(3))
    assert edges.name(edges.mlp_reader(4), edges.head(4, 11)) == "a4.h11->m4"


def test_owners() -> None:
    for reader, name in enumerate(EDGES.reader_names[:-1]):
        assert EDGES.writer_names[EDGES.owner(reader)] == name.partition("<")[0]
    assert EDGES.owner(EDGES.output) == EDGES.n_writers


@pytest.mark.parametrize("name", ["a0.h1->input", "m3->a3.h0<q>", "a0.h9->logits", "m0", ""])
def test_no_such_edge(name: str) -> None:
    with pytest.raises(ValueError, match="no edge"):
        HeadEdges(4, 4).find(name)


def test_a_writer_behind_its_reader() -> None:
    with pytest.raises(ValueError, match=r"m0->a0.h1<q> is no edge"):
        EDGES.name(EDGES.head_reader(0, 1, "q"), EDGES.mlp(0))


@pytest.mark.parametrize(
    "architecture", ["gpt2", "llama_gqa", "qwen2", "neox_parallel", "neox_sequential"]
)
def test_all_edges_and_none(architecture: str) -> None:
    clean, corrupted = pairs()
    model, run = runner(architecture, clean, corrupted)
    none = torch.zeros_like(run.edges.exists)
    whole, empty = run.logits(torch.stack([run.edges.exists, none]))
    gap = GAP_OF_LIBRARY if architecture in ("llama_gqa", "qwen2") else 1e-9
    assert (whole - model.run(clean)[0][:, -1]).abs().max() < gap
    assert (empty - model.run(corrupted)[0][:, -1]).abs().max() < gap
    torch.testing.assert_close(whole, run.full_logits, rtol=1e-12, atol=1e-12)


def patched(keep: Tensor, other: list[Tensor]) -> Mix:
    """Kept edges carry what is written now, others what is in `other`."""

    def mix(reader: int, writers: list[Tensor], bias: Tensor) -> Tensor:
        chosen = [one if keep[reader, w] else other[w] for w, one in enumerate(writers)]
        return torch.stack(chosen).sum(0) + bias

    return mix


@pytest.mark.parametrize("architecture", ["gpt2", "llama_gqa"])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_circuits_are_those_of_a_slow_model(architecture: str, share: float) -> None:
    clean, corrupted = pairs()
    model, reference = models.subject(architecture, torch.float64), Reference(architecture)
    keep = random_circuits(EDGES, 4, share)
    other, _ = reference.run(reference.embed(corrupted))
    found = run_edges(model, clean, corrupted, keep)
    for row, logits in zip(keep, found, strict=True):
        _, want = reference.run(reference.embed(clean), patched(row, other))
        torch.testing.assert_close(logits, want, rtol=1e-9, atol=1e-9)


def test_circuits_of_parallel_blocks() -> None:
    """Without edges into the MLPs these are the corrupted ones, whatever the heads do."""
    clean, corrupted = pairs()
    _, run = runner("neox_parallel", clean, corrupted)
    keep = run.edges.exists.clone()
    for layer in range(run.edges.n_layers):
        keep[run.edges.mlp_reader(layer)] = False
    added = run.run(keep[None])
    for layer in range(run.edges.n_layers):
        assert added[run.edges.mlp(layer)].abs().max() < 1e-12
    assert added[run.edges.head(2, 1)].abs().max() > 0.1


@pytest.mark.usefixtures("unchecked")
def test_prompts_that_do_not_line_up() -> None:
    clean, corrupted = pairs()
    with pytest.raises(ValueError, match=r"line up.*\(3, 5\) and \(3, 4\)"):
        EdgeRunner.on_prompts(models.subject("gpt2"), clean, corrupted[:, :4])


@pytest.mark.usefixtures("unchecked")
def test_no_prompts() -> None:
    none = torch.zeros(0, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="line up"):
        EdgeRunner.on_prompts(models.subject("gpt2"), none, none)


def test_positions_from_the_first_that_differs() -> None:
    clean, corrupted = pairs(2, 5)
    corrupted[:, :3] = clean[:, :3]
    corrupted[1, 2] += 1
    _, run = runner("gpt2", clean, corrupted)
    assert run.n_differing == 3
    _, same = runner("gpt2", clean, clean)
    assert same.n_differing == 1


def test_flags_of_another_shape() -> None:
    _, run = runner("gpt2", *pairs())
    with pytest.raises(ValueError, match=r"\(40, 16\) at the end, got \(1, 40, 15\)"):
        run.logits(run.edges.exists[None, :, :15])


def test_flags_of_no_edges() -> None:
    _, run = runner("gpt2", *pairs())
    keep = run.edges.exists.clone()
    keep[0, 3] = True
    with pytest.raises(ValueError, match=r"1 kept pairs are no edges, the first a0.h2->a0.h0<q>"):
        run.logits(keep[None])


def test_norms_behind_sublayers_are_refused() -> None:
    with pytest.raises(ValueError, match="heads do not add up"):
        EdgeRunner.on_prompts(models.subject("gemma2"), *pairs())
