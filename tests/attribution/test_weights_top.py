"""The strongest virtual weights: as a full sort gives them, in bounded memory."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attribution.invariant.strongest import largest_columns, top_sources, top_virtual_weights
from attribution.invariant.weights import virtual_weights
from circuits import SAE, SplicedModel
from tests import models
from tests.models import D_MODEL

INTEGERS = st.integers(-2, 2)


def integer_pair(n_targets: int, n_sources: int, seed: int) -> SplicedModel:
    """Residual SAEs with small integers, so that many weights are exactly equal."""
    generator = torch.Generator().manual_seed(seed)

    def made(site: str, n: int) -> SAE:
        encoder = torch.randint(-1, 2, (D_MODEL, n), generator=generator).double()
        decoder = torch.randint(-1, 2, (n, D_MODEL), generator=generator).double()
        zeros = torch.zeros(n).double(), torch.zeros(D_MODEL).double()
        return SAE(encoder, decoder, *zeros, site=site)

    places = {
        "resid_post.1": made("resid_post", n_targets),
        "attn_out.0": made("attn_out", n_sources),
    }
    return SplicedModel(models.subject("gpt2", torch.float64), places)


def ranked(weights: Tensor, signed: bool) -> list[tuple[int, int]]:
    """Every pair by plain sorting: strongest first, then by row and column."""
    rows, columns = weights.shape
    size = (lambda w: w) if signed else abs
    table = weights.tolist()
    every = ((row, column) for row in range(rows) for column in range(columns))
    return sorted(every, key=lambda at: (-size(table[at[0]][at[1]]), *at))


@settings(max_examples=40, deadline=None)
@given(
    n_targets=st.integers(1, 9),
    n_sources=st.integers(1, 9),
    k=st.integers(1, 30),
    seed=st.integers(0, 20),
    signed=st.booleans(),
    chunk_rows=st.integers(0, 9),
)
def test_the_top_is_that_of_a_full_sort_whatever_the_chunks(
    n_targets: int, n_sources: int, k: int, seed: int, signed: bool, chunk_rows: int
):
    spliced = integer_pair(n_targets, n_sources, seed)
    weights = virtual_weights(spliced, "resid_post.1", "attn_out.0")
    found = top_virtual_weights(
        spliced,
        "resid_post.1",
        "attn_out.0",
        k,
        signed=signed,
        chunk_bytes=chunk_rows * n_sources * 16 * 8,
    )
    want = ranked(weights, signed)[:k]
    assert list(zip(found.targets.tolist(), found.sources.tolist(), strict=True)) == want
    assert found.weights.tolist() == [float(weights[at]) for at in want]


@settings(max_examples=25, deadline=None)
@given(
    n_sources=st.integers(1, 9),
    k=st.integers(1, 12),
    seed=st.integers(0, 20),
    signed=st.booleans(),
    chunk_rows=st.integers(0, 5),
)
def test_the_top_sources_of_each_target(
    n_sources: int, k: int, seed: int, signed: bool, chunk_rows: int
):
    spliced, chosen = integer_pair(6, n_sources, seed), [4, 1, 5, 0]
    weights = virtual_weights(spliced, "resid_post.1", "attn_out.0")[chosen]
    found = top_sources(
        spliced,
        "resid_post.1",
        "attn_out.0",
        k,
        target_features=chosen,
        signed=signed,
        chunk_bytes=chunk_rows * n_sources * 16 * 8,
    )
    assert found.targets.tolist() == chosen
    for row in range(4):
        want = [column for _, column in ranked(weights[[row]], signed)[:k]]
        assert found.sources[row].tolist() == want
        assert found.weights[row].tolist() == weights[row, want].tolist()


@pytest.mark.parametrize("head", [None, (1, 3)])
def test_it_ranks_the_weights_of_the_path_asked_for(head: tuple[int, int] | None):
    spliced = models.spliced("llama_gqa", "transcoders", torch.float64)
    chosen = [30, 2, 17]
    weights = virtual_weights(spliced, "mlp.2", "mlp.0", head=head)
    found = top_virtual_weights(spliced, "mlp.2", "mlp.0", 11, head=head, target_features=chosen)
    want = ranked(weights[chosen], signed=False)[:11]
    assert found.targets.tolist() == [chosen[row] for row, _ in want]
    assert found.sources.tolist() == [column for _, column in want]
    assert torch.allclose(found.weights, weights[found.targets, found.sources], rtol=1e-12)
    each = top_sources(spliced, "mlp.2", "mlp.0", 3, head=head, chunk_bytes=9000)
    assert torch.equal(each.sources, weights.abs().topk(3, dim=1).indices)  # no two are equal
    assert torch.allclose(each.weights, weights.gather(1, each.sources), rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    keys=st.lists(st.lists(INTEGERS, min_size=7, max_size=7), min_size=1, max_size=5),
    k=st.integers(1, 7),
)
def test_largest_columns_is_a_stable_sort(keys: list[list[int]], k: int):
    tensor = torch.tensor(keys).double()
    want = tensor.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(largest_columns(tensor, k), want)


class Largest(TorchDispatchMode):
    """Sees every tensor that is made, and remembers the size of the largest, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.n_bytes = max(self.n_bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("find", [top_virtual_weights, top_sources])
def test_the_whole_block_never_exists(find: Any):
    """Sixteen million weights (64 MB) in chunks of 2 MB: no tensor is larger than a chunk."""
    n, chunk_bytes = 4000, 2 * 2**20
    places = {f"mlp.{i}": models.transcoder(seed=i, n_features=n) for i in (0, 2)}
    spliced = SplicedModel(models.subject("gpt2"), places)
    dictionary_bytes = 4 * n * D_MODEL
    with Largest() as whole:
        virtual_weights(spliced, "mlp.2", "mlp.0", target_features=list(range(200)))
    assert whole.n_bytes == 4 * 200 * n  # the watch sees a block when there is one
    with Largest() as seen:
        find(spliced, "mlp.2", "mlp.0", 10, chunk_bytes=chunk_bytes)
    assert dictionary_bytes <= seen.n_bytes <= max(dictionary_bytes, chunk_bytes)
    assert dictionary_bytes < chunk_bytes < 4 * n * n / 30


@pytest.mark.parametrize("find", [top_virtual_weights, top_sources])
def test_progress_counts_targets(find: Any):
    spliced, seen = integer_pair(7, 5, 0), []
    find(
        spliced,
        "resid_post.1",
        "attn_out.0",
        2,
        chunk_bytes=2 * 5 * 16 * 8,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 7), (4, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("find", [top_virtual_weights, top_sources])
def test_bad_input_is_refused(find: Any):
    spliced = models.spliced("gpt2", "transcoders")
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        find(spliced, "mlp.2", "mlp.0", 0)
    with pytest.raises(ValueError, match="target_features is empty"):
        find(spliced, "mlp.2", "mlp.0", 1, target_features=[])
    with pytest.raises(ValueError, match=r"feature must be in \[0, 40\), got 41"):
        find(spliced, "mlp.2", "mlp.0", 1, target_features=[41])
    with pytest.raises(ValueError, match=r"mlp.2 does not write below what mlp.0 reads"):
        find(spliced, "mlp.0", "mlp.2", 1)
    with pytest.raises(ValueError, match=r"head 2.0 does not write below what mlp.1 reads"):
        find(spliced, "mlp.1", "mlp.0", 1, head=(2, 0))
    assert math.prod(find(spliced, "mlp.2", "mlp.0", 10**6).weights.shape) == 1600
