"""ACDC over edges between heads: exactly the loop that runs the whole model for each candidate."""

import pytest
import torch
from torch import Tensor

from graphs.heads import EdgeRunner, acdc_heads, edge_attribution, logit_difference, mean_kl
from graphs.heads.acdc import prune_readers
from graphs.heads.metrics import Metric
from graphs.heads.partial import Visit
from graphs.heads.reach import downstream, live_and_wide
from tests import models
from tests.graphs.heads_reference import EDGES, pairs, random_circuits, runner, two_layers


def one_at_a_time(
    run: EdgeRunner,
    score: Metric,
    threshold: float,
    start: Tensor,
    candidates: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sequential algorithm, one whole run a candidate; and how near it came to a tie."""
    keep, margins = start.clone(), []
    tried = start if candidates is None else start & candidates
    best = score(run.logits(keep[None])[0])
    for reader in reversed(range(run.edges.n_readers)):
        for writer in reversed(tried[reader].nonzero()[:, 0].tolist()):
            keep[reader, writer] = False
            value = score(run.logits(keep[None])[0])
            margins.append((value - best - threshold).abs())
            if value - best < threshold:
                best = value
            else:
                keep[reader, writer] = True
    return keep, torch.stack(margins).min()


@pytest.mark.parametrize(
    ("architecture", "threshold", "batch"),
    [
        ("gpt2", 1e-4, 8),
        ("gpt2", 1e-5, 1),
        ("llama_gqa", 1e-3, 8),
        ("neox_parallel", 1e-3, 5),
        ("neox_sequential", 1e-3, 3),
    ],
)
def test_the_answer_is_the_sequential_one(architecture: str, threshold: float, batch: int) -> None:
    clean, corrupted = pairs(2, 4)
    model = two_layers(architecture)
    run = EdgeRunner.on_prompts(model, clean, corrupted)
    score = mean_kl(run.full_logits)
    want, margin = one_at_a_time(run, score, threshold, run.edges.exists)
    found = acdc_heads(model, clean, corrupted, score, threshold=threshold, batch=batch)
    assert margin > 1e-12
    assert torch.equal(found, want)
    assert 20 < int(found.sum()) < run.edges.n_edges - 20


def test_a_task_metric_from_some_edges() -> None:
    clean, corrupted = pairs(2, 4, seed=1)
    model, run = runner("gpt2", clean, corrupted)
    difference = logit_difference(torch.tensor([3, 4]), torch.tensor([8, 9]))
    scores = edge_attribution(model, clean, corrupted, difference)
    start = (scores.abs() >= scores.abs().flatten().sort().values[-120]) & run.edges.exists

    def score(logits: Tensor) -> Tensor:
        return -difference(logits)

    want, _ = one_at_a_time(run, score, 1e-3, start)
    found = acdc_heads(model, clean, corrupted, score, threshold=1e-3, start=start)
    assert torch.equal(found, want)
    assert int(start.sum()) == 120
    assert 0 < int(found.sum()) < 115


def partial_runs_are_whole_runs(run: EdgeRunner, keep: Tensor) -> int:
    """At every reader; how many of them reach the output."""
    added = run.run(keep[None])[:, 0]
    asked = 0
    for reader in range(run.edges.n_readers):
        visit = Visit(run, keep, reader, added.clone())
        trials = keep.repeat(3, 1, 1)
        trials[:, reader] = random_circuits(run.edges, 3, 0.5, seed=reader)[:, reader]
        want = run.logits(trials)
        if not visit.matters:
            torch.testing.assert_close(want, run.logits(keep[None]).expand_as(want))
            continue
        asked += 1
        torch.testing.assert_close(visit.logits(trials[:, reader]), want, rtol=1e-9, atol=1e-9)
        after = visit.updated(trials[1, reader])
        whole = run.run(trials[1:2])[:, 0]
        live, wide = live_and_wide(run.edges, trials[1])
        torch.testing.assert_close(after[live, :, -1], whole[live, :, -1], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(after[wide], whole[wide], rtol=1e-9, atol=1e-9)
    return asked


@pytest.mark.parametrize("architecture", ["gpt2", "llama_gqa", "neox_parallel"])
@pytest.mark.parametrize("share", [0.15, 0.5, 1.0])
def test_partial_runs_are_whole_runs(architecture: str, share: float) -> None:
    """Whatever else the circuit holds downstream of the reader and upstream."""
    _, run = runner(architecture, *pairs(2, 4))
    assert partial_runs_are_whole_runs(run, random_circuits(run.edges, 1, share)[0]) > 5


@pytest.mark.parametrize("narrow", [["a1.h0"], ["a1.h1"], ["a0.h1", "a0.h2", "a1.h2", "m1"]])
def test_parts_read_last_among_parts_read_everywhere(narrow: list[str]) -> None:
    """Some heads are computed at the last position alone, between others that are everywhere."""
    _, run = runner("gpt2", *pairs(2, 4))
    keep = run.edges.exists.clone()
    for name in narrow:
        writer = run.edges.writer_names.index(name)
        keep[:-1, writer] = False
    live, wide = live_and_wide(run.edges, keep)
    assert [run.edges.writer_names[i] for i in (live & ~wide)[:9].nonzero()[:, 0]] == sorted(
        name for name in narrow if name != "m1"
    )
    assert partial_runs_are_whole_runs(run, keep) == run.edges.n_readers


def test_memory_that_was_never_written_is_not_read() -> None:
    """Under this setting fresh memory holds NaN."""
    _, run = runner("gpt2", *pairs(2, 4))
    keep = run.edges.exists.clone()
    keep[:-1, run.edges.writer_names.index("a1.h1")] = False
    added, reader = run.run(keep[None])[:, 0], run.edges.mlp_reader(0)
    torch.use_deterministic_algorithms(True)
    try:
        found = Visit(run, keep, reader, added).logits(keep[reader][None])
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, run.logits(keep[None]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_answer_from_few_edges(seed: int) -> None:
    """Late in a search parts are read here everywhere, there last, elsewhere not at all."""
    clean, corrupted = pairs(2, 5, seed=seed)
    model, run = runner("gpt2", clean, corrupted)
    score = mean_kl(run.full_logits)
    (start,) = random_circuits(run.edges, 1, 0.4, seed=seed)
    want, margin = one_at_a_time(run, score, 1e-2, start)
    found = acdc_heads(model, clean, corrupted, score, threshold=1e-2, start=start)
    assert margin > 1e-12
    assert torch.equal(found, want)


def test_what_reaches_the_output() -> None:
    names = ["a0.h1->a1.h2<q>", "a1.h2->m1", "m1->logits", "m0->a1.h2<k>", "input->a2.h0<v>"]
    keep = torch.zeros_like(EDGES.exists)
    for name in names:
        keep[EDGES.find(name)] = True
    live, wide = live_and_wide(EDGES, keep)
    at = EDGES.writer_names

    def named(flags: Tensor) -> set[str]:
        return {at[i] for i in flags.nonzero()[:, 0].tolist()}

    assert named(live) == {"a0.h1", "m0", "a1.h2", "m1"}
    assert named(wide) == {"m0"}
    assert named(downstream(EDGES, keep, at.index("m0"))) == {"m0", "a1.h2", "m1"}
    assert named(downstream(EDGES, keep, at.index("input"))) == {"input", "a2.h0"}
    assert named(downstream(EDGES, keep, EDGES.n_writers)) == set()


def test_readers_one_after_the_other() -> None:
    clean, corrupted = pairs(2, 4)
    _, run = runner("gpt2", clean, corrupted)
    score, exists = mean_kl(run.full_logits), run.edges.exists
    whole = prune_readers(run, exists, reversed(range(40)), score, threshold=1e-4)
    half = prune_readers(run, exists, reversed(range(25, 40)), score, threshold=1e-4)
    assert torch.equal(half[:25], exists[:25])
    assert torch.equal(half[25:], whole[25:])
    assert torch.equal(prune_readers(run, half, reversed(range(25)), score, threshold=1e-4), whole)


def test_only_candidates_go() -> None:
    """Others stay, even where what reads them no longer reaches the output."""
    _, run = runner("gpt2", *pairs(2, 4))
    score, exists = mean_kl(run.full_logits), run.edges.exists
    candidates = random_circuits(run.edges, 1, 0.6)[0]
    dead = run.edges.writer_names.index("m2")
    start = exists.clone()
    start[run.edges.output, dead] = False
    want, _ = one_at_a_time(run, score, 1e-3, start, candidates)
    readers = reversed(range(run.edges.n_readers))
    found = prune_readers(run, start, readers, score, threshold=1e-3, candidates=candidates)
    assert torch.equal(found, want)
    assert torch.equal(found & ~candidates, start & ~candidates)
    row = run.edges.mlp_reader(2)
    assert torch.equal(found[row], start[row] & ~candidates[row])
    assert 10 < int((start & ~found).sum()) < int((start & candidates).sum())


def test_candidates_that_are_no_edges() -> None:
    _, run = runner("gpt2", *pairs())
    exists, wrong = run.edges.exists, torch.ones_like(run.edges.exists)
    with pytest.raises(ValueError, match="kept pairs are no edges"):
        prune_readers(run, exists, [], mean_kl(run.full_logits), threshold=0.1, candidates=wrong)


@pytest.mark.parametrize(("threshold", "batch"), [(0.0, 4), (-1.0, 4), (0.1, 0)])
def test_bad_settings(threshold: float, batch: int) -> None:
    clean, corrupted = pairs(2, 4)
    with pytest.raises(ValueError, match="threshold > 0 and batch >= 1"):
        acdc_heads(
            models.subject("gpt2"),
            clean,
            corrupted,
            mean_kl(torch.zeros(2, models.D_VOCAB)),
            threshold=threshold,
            batch=batch,
        )


def test_start_of_another_shape() -> None:
    _, run = runner("gpt2", *pairs())
    with pytest.raises(ValueError, match="want flags of shape"):
        prune_readers(run, run.edges.exists[:-1], [], mean_kl(run.full_logits), threshold=0.1)
