"""Parts of the scan, each against a few lines that say the same: keys, contexts, co-activation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuits import Transcoder
from circuits.feature_store.coactivation import TokenSample, count_partners
from circuits.feature_store.collected import encode_active, neighbours
from circuits.feature_store.contexts import BandSamples, TopContexts
from circuits.feature_store.fingerprints import fingerprint
from circuits.feature_store.keys import keys_by_hash, keys_by_value, mixed, place_of
from circuits.feature_store.layout import ScanSettings
from circuits.feature_store.memory import scan_memory
from circuits.feature_store.statistics import FeatureSums, histogram_bins

LAST = 2**32 - 1
Entry = tuple[int, int, float]
"""Feature, place, value."""

values = st.sampled_from([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 7.9, 8.0])
entries = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 40), values),
    max_size=60,
    unique_by=lambda e: e[:2],
)


def columns(batch: list[Entry]) -> tuple[Tensor, Tensor, Tensor]:
    features, places, values = zip(*batch, strict=True)
    return torch.tensor(features), torch.tensor(places), torch.tensor(values)


def fed(kept: TopContexts | BandSamples, batches: list[list[Entry]]) -> None:
    """The window of an entry: its value in the middle, its place on the left."""
    for batch in filter(None, batches):
        features, places, values = columns(batch)
        window = torch.stack([places.float(), values, values], dim=1)
        kept.add(features, places, values, lambda i, window=window: window[i])


def test_splitmix_is_the_published_one():
    """First outputs of splitmix64 with seed 1234567 (Vigna's reference), upper 31 bits."""
    gamma, mask = 0x9E3779B97F4A7C15, 2**64 - 1
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = [(1234567 + i * gamma) & mask for i in range(3)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    assert mixed(signed).tolist() == [output >> 33 for output in outputs]


def test_keys_rank_by_value_then_place():
    values = torch.tensor([1e-40, 1e-3, 1.0, 1.0, 1.0000001, 3e38])
    places = torch.tensor([0, LAST, LAST, 5, LAST, 7])
    keys = keys_by_value(values, places)
    assert keys.tolist() == sorted(keys.tolist())
    assert place_of(keys).tolist() == places.tolist()
    assert (keys >= 0).all()


def test_hashes_differ_by_owner_and_are_even():
    places = torch.arange(4000)
    first, second = (keys_by_hash(torch.full((4000,), owner), places) for owner in (1, 2))
    assert place_of(first).tolist() == places.tolist()
    assert (first >= 0).all()
    assert (first.argsort() != second.argsort()).float().mean() > 0.99
    low = (first >> 32).double() / 2**31
    assert abs(float(low.mean()) - 0.5) < 0.02
    assert abs(float(low.var()) - 1 / 12) < 0.005


@settings(max_examples=60, deadline=None)
@given(entries, st.integers(1, 7))
def test_top_contexts_are_the_largest_earliest_first(batch: list[Entry], size: int):
    top = TopContexts(3, 4, 3)
    fed(top, [batch[i : i + size] for i in range(0, len(batch), size)])
    places, windows = top.kept.ranked()
    for feature in range(3):
        mine = sorted((-v, p) for f, p, v in batch if f == feature)[:4]
        assert places[feature].tolist() == [p for _, p in mine] + [-1] * (4 - len(mine))
        for (value, place), window in zip(mine, windows[feature].tolist(), strict=False):
            assert window == pytest.approx([place, -value, -value])


def test_of_equal_values_the_earliest_stay_even_if_they_come_last():
    top = TopContexts(3, 2, 3)
    fed(top, [[(1, place, 1.5)] for place in (9, 7, 8, 3, 5)])
    assert top.kept.ranked()[0].tolist() == [[-1, -1], [3, 5], [-1, -1]]


@settings(max_examples=60, deadline=None)
@given(entries, st.integers(1, 7))
def test_samples_depend_on_entries_alone(batch: list[Entry], size: int):
    samples = BandSamples(3, 3, 2, 3, before=1, first_id=10)
    fed(samples, [batch[i : i + size] for i in range(0, len(batch), size)])
    places, windows = samples.kept.ranked()
    for feature in range(3):
        mine = [(p, v) for f, p, v in batch if f == feature]
        top = max((math.floor(math.log2(v)) for _, v in mine), default=0)
        for band in range(3):
            inside = [p for p, v in mine if min(top - math.floor(math.log2(v)), 2) == band]
            owner = torch.full((len(inside),), feature + 10)
            keys = keys_by_hash(owner, torch.tensor(inside, dtype=torch.int64)).tolist()
            wanted = [p for _, p in sorted(zip(keys, inside, strict=True), reverse=True)][:2]
            slot = feature * 3 + band
            assert places[slot].tolist() == wanted + [-1] * (2 - len(wanted))
            assert [w[0] for w in windows[slot].tolist()][: len(wanted)] == wanted


def test_histogram_edges_belong_to_the_bin_above():
    edges = [2.0 ** (i / 2 - 12) for i in range(0, 49, 2)]
    assert histogram_bins(torch.tensor(edges)).tolist() == [*range(0, 48, 2), 47]
    below = torch.tensor(edges[1:]).nextafter(torch.tensor(0.0))
    assert histogram_bins(below).tolist() == list(range(1, 48, 2))


def test_sums_of_two_batches():
    sums = FeatureSums(3)
    sums.add(torch.tensor([0, 2, 2]), torch.tensor([1.0, 2.0, 0.5]))
    sums.add(torch.tensor([2]), torch.tensor([2.0]))
    assert sums.n_active.tolist() == [1, 0, 3]
    assert sums.sum.tolist() == [1.0, 0.0, 4.5]
    assert sums.maximum.tolist() == [1.0, 0.0, 2.0]
    assert sums.histogram[2].nonzero().flatten().tolist() == [22, 26]
    assert sums.histogram[2, 26] == 2


def test_sums_do_not_lose_small_values():
    sums = FeatureSums(1)
    for _ in range(3):
        sums.add(torch.zeros(100_000, dtype=torch.int64), torch.full((100_000,), 0.1))
    one = float(torch.tensor(0.1))
    assert float(sums.sum) == pytest.approx(300_000 * one, rel=1e-9)


def test_windows_stop_at_rows_and_at_what_does_not_count():
    kept = torch.tensor([[False, True, False, True], [False, True, True, False]])
    assert neighbours(kept, 2, 1).tolist() == [
        [-1, -1, 0, -1],
        [0, -1, 1, -1],
        [-1, -1, 2, 3],
        [-1, 2, 3, -1],
    ]


def lists(sample: TokenSample) -> dict[int, list[int]]:
    """Hash -> active features."""
    ends = sample.lengths.cumsum(0).tolist()
    starts = [0, *ends][:-1]
    return {
        h: sample.ids[a:b].tolist()
        for h, a, b in zip(sample.hashes.tolist(), starts, ends, strict=True)
    }


def random_tokens(n: int, n_features: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    density = 1 / np.arange(1.5, n_features + 1)
    return [np.flatnonzero(rng.random(n_features) < density).tolist() for _ in range(n)]


def sampled(tokens: list[list[int]], most: int, batch: int) -> TokenSample:
    sample = TokenSample(most)
    for first in range(0, len(tokens), batch):
        part = tokens[first : first + batch]
        places = torch.arange(first, first + len(part))
        pairs = [(t, f) for t, ids in enumerate(part) for f in ids]
        pairs.sort(key=lambda pair: pair[1])  # as several dictionaries give them
        t, f = (torch.tensor([p[i] for p in pairs], dtype=torch.int64) for i in (0, 1))
        sample.add(sample.chosen(places), t, f)
    return sample


@pytest.mark.parametrize("most", [10_000, 700, 100, 3])
def test_the_sample_of_tokens_fits_and_depends_on_the_corpus_alone(most: int):
    tokens = random_tokens(300, 20)
    hashes = mixed(torch.arange(300)).tolist()
    sample = sampled(tokens, most, 7)
    limit = 2**31
    while sum(len(ids) for ids, h in zip(tokens, hashes, strict=True) if h < limit) > most:
        limit //= 2
    wanted = {h: ids for ids, h in zip(tokens, hashes, strict=True) if h < limit}
    assert lists(sample) == wanted
    assert lists(sampled(tokens, most, 300)) == wanted
    assert len(sample.ids) <= most


def test_partners_in_a_case_by_hand():
    """Features 0 and 1 always together, 2 with 0 half of the time, 3 alone, 4 never."""
    tokens = [[0, 1], [0, 1, 2], [2], [3]]
    n_active = torch.tensor([2, 2, 2, 1, 0])
    n_counted, partners, counts = count_partners(sampled(tokens, 99, 2), n_active, m=2, most=99)
    assert n_counted.tolist() == [2, 2, 2, 1, 0]
    assert partners.tolist() == [[1, 2], [0, 2], [0, 1], [-1, -1], [-1, -1]]
    assert counts.tolist() == [[2, 1], [2, 1], [1, 1], [0, 0], [0, 0]]


@pytest.mark.parametrize("m", [1, 4, 30, 50])
def test_partners_are_the_largest_cosines(m: int):
    n = 30
    tokens = random_tokens(400, n, seed=1)
    on = torch.zeros(400, n, dtype=torch.float64)
    for token, ids in enumerate(tokens):
        on[token, ids] = 1
    n_active = on.sum(0).long()
    _, partners, counts = count_partners(sampled(tokens, 10**6, 50), n_active, m=m, most=10**6)
    together = on.T @ on
    for f in range(n):
        cosine = together[f] / n_active.clamp_min(1).double().sqrt()
        cosine[f] = 0
        order = [j for j in range(n) if cosine[j] > 0]
        order.sort(key=lambda j: (-round(float(cosine[j]), 12), j))  # equal ones round alike
        wanted = order[:m]
        assert partners[f].tolist() == wanted + [-1] * (m - len(wanted))
        assert counts[f, : len(wanted)].tolist() == together[f][wanted].tolist()


def test_partners_on_some_tokens_are_those_of_smallest_hash():
    tokens = random_tokens(300, 6, seed=2)
    n_active = torch.tensor([sum(f in ids for ids in tokens) for f in range(6)])
    n_counted, partners, counts = count_partners(sampled(tokens, 10**6, 50), n_active, m=5, most=40)
    order = mixed(torch.arange(300)).argsort().tolist()
    for f in range(6):
        mine = [t for t in order if f in tokens[t]][:40]
        assert int(n_counted[f]) == len(mine)
        for partner, count in zip(partners[f].tolist(), counts[f].tolist(), strict=True):
            assert partner < 0 or count == sum(partner in tokens[t] for t in mine)


def test_shares_from_a_sample_are_within_the_error_that_is_stated():
    """Of 400 estimated shares, z-scores have a standard deviation of about 1, as binomials do."""
    n, most = 20, 100
    tokens = random_tokens(6000, n, seed=3)
    on = torch.zeros(6000, n, dtype=torch.float64)
    for token, ids in enumerate(tokens):
        on[token, ids] = 1
    n_active, together = on.sum(0).long(), on.T @ on
    sample = sampled(tokens, 8000, 500)
    assert len(sample.hashes) < 6000
    n_counted, partners, counts = count_partners(sample, n_active, m=n, most=most)
    z = []
    for f in range(n):
        for g, count in zip(partners[f].tolist(), counts[f].tolist(), strict=True):
            if g >= 0:
                share = float(together[f, g] / n_active[f])
                error = math.sqrt(share * (1 - share) / int(n_counted[f]))
                z.append((count / int(n_counted[f]) - share) / error)
    assert len(z) > 100
    assert 0.7 < float(np.std(z)) < 1.15


def test_encoding_in_blocks(monkeypatch: pytest.MonkeyPatch):
    from circuits.feature_store import collected

    monkeypatch.setattr(collected, "_BLOCK", 20)
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(4, 6, generator=generator)
    transcoder = Transcoder(W, W.T.contiguous(), torch.zeros(6), torch.zeros(4))
    x = torch.randn(11, 4, generator=generator)
    active = encode_active(transcoder, x)
    a = transcoder.encode(x)
    tokens, features = a.nonzero(as_tuple=True)
    assert active.tokens.tolist() == tokens.tolist()
    assert active.features.tolist() == features.tolist()
    torch.testing.assert_close(active.values, a[tokens, features])


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_activations_that_are_no_activations(value: float):
    threshold = torch.full((3,), -10.0)
    transcoder = Transcoder(
        torch.eye(3),
        torch.eye(3),
        torch.zeros(3),
        torch.zeros(3),
        activation="jumprelu",
        threshold=threshold,
    )
    x = torch.ones(2, 3)
    x[1, 2] = value
    if math.isnan(value):  # JumpReLU turns NaN into 0
        transcoder = Transcoder(torch.eye(3), torch.eye(3), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="activations must be finite and not negative, got"):
        encode_active(transcoder, x)


def test_fingerprints_see_every_part():
    def made(**changes: object) -> Transcoder:
        parts = {
            "W_enc": torch.eye(3),
            "W_dec": torch.eye(3),
            "b_enc": torch.zeros(3),
            "b_dec": torch.zeros(3),
        }
        return Transcoder(**(parts | changes))  # type: ignore[arg-type]

    ones = torch.ones(3)
    others = [
        made(W_enc=2 * torch.eye(3)),
        made(W_dec=2 * torch.eye(3)),
        made(b_enc=ones),
        made(b_dec=ones),
        made(W_skip=torch.zeros(3, 3)),
        made(activation="jumprelu", threshold=ones),
        made(activation="jumprelu", threshold=2 * ones),
        made(activation="topk", k=1),
        made(activation="topk", k=2),
    ]
    assert len({fingerprint(each) for each in [made(), *others]}) == 10
    assert fingerprint(made()) == fingerprint(made().to(dtype=torch.float64))  # type: ignore[arg-type]


def test_fingerprints_see_shapes():
    """The same eight numbers in a row, cut otherwise."""

    def ones(d_in: int, d_out: int) -> Transcoder:
        shapes = (d_in, 1), (1, d_out), (1,), (d_out,)
        return Transcoder(*(torch.ones(shape) for shape in shapes))

    assert fingerprint(ones(5, 1)) != fingerprint(ones(3, 2))


def test_memory_is_what_tables_take():
    settings = ScanSettings(top_k=2, before=1, after=1, bands=2, per_band=1, partners=3)
    memory = scan_memory({"mlp.0": 10, "mlp.1": 30}, settings, context=64)
    # counts 16, sum 8, maximum 4, octave 2, histogram 8 x 48, 4 contexts of 8 + 12, partners 3 x 8
    assert memory.kept == 40 * (16 + 8 + 4 + 2 + 8 * 48 + 4 * (8 + 4 * 3) + 3 * 8)
    assert memory.entries == 4 * settings.coactivation_entries
    assert memory.peak >= memory.kept + memory.entries + memory.counting
    assert memory.batch >= 4 * 16 * 64 * 30
