"""Sets of circuits, overlap and chance, features matched across dictionaries, profiles."""

from dataclasses import replace
from itertools import combinations
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attribution.nodes import Node, NodeTable
from circuits import CrossLayerTranscoder, Transcoder
from circuits.conventions import Convention
from graphs import CircuitGraph, node_influence
from graphs.controls import random_circuits
from graphs.task_circuits import (
    chance_overlap,
    circuit_overlap,
    collapse,
    difference,
    influence_profile,
    intersection,
    match_dictionaries,
    profile_overlap,
    rename_features,
    union,
)
from graphs.task_circuits.chance import shared_by_chance
from graphs.task_circuits.matching import FeatureMatch, mutual_nearest
from graphs.task_circuits.overlap import Share, shares_by
from graphs.task_circuits.sets import line_up

T0, T1, ERROR, LOW, MIDDLE, HIGH = ("token@0", "token@1", "error.mlp0@1", "mlp0.1@1", "mlp1.2@1",
                                    "mlp2.3@1")  # fmt: skip
OUT = "output.logit"


def edges_of(graph: CircuitGraph) -> dict[tuple[str, str], float]:
    ids = [node.id for node in graph.nodes]
    columns = (graph.edge_source, graph.edge_target, graph.edge_attribution)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {(ids[source], ids[target]): value for source, target, value in rows}


def ids_of(graph: CircuitGraph) -> set[str]:
    return {node.id for node in graph.nodes}


@pytest.fixture
def first(make_graph) -> CircuitGraph:
    return make_graph(
        "t0 f0.1 f1.2 o.logit",
        {
            ("t0", "f0.1"): 1.0,
            ("f0.1", "f1.2"): -2.0,
            ("f1.2", "o.logit"): 3.0,
            ("t0", "o.logit"): 0.5,
        },
        torch.float64,
    )


@pytest.fixture
def second(make_graph) -> CircuitGraph:
    """Its rows are in another order than the first's."""
    return make_graph(
        "e0 f2.3 f0.1 f1.2 o.logit",
        {
            ("e0", "f2.3"): 7.0,
            ("f0.1", "f1.2"): 4.0,
            ("f1.2", "o.logit"): 1.0,
            ("f0.1", "o.logit"): -1.0,
            ("f2.3", "o.logit"): 8.0,
        },
        torch.float64,
    )


class TestSets:
    def test_union(self, first, second):
        both = union([first, second])
        assert ids_of(both) == {T0, LOW, MIDDLE, OUT, ERROR, HIGH}
        assert edges_of(both) == {
            (T0, LOW): 1.0,
            (LOW, MIDDLE): 1.0,  # of -2 and 4
            (MIDDLE, OUT): 2.0,  # of 3 and 1
            (T0, OUT): 0.5,
            (ERROR, HIGH): 7.0,
            (LOW, OUT): -1.0,
            (HIGH, OUT): 8.0,
        }
        assert both.metadata.notes["set"] == "union of 2 circuits"
        assert both.edge_attribution.dtype == torch.float64

    def test_intersection(self, first, second):
        both = intersection([first, second])
        assert ids_of(both) == {LOW, MIDDLE, OUT}
        assert edges_of(both) == {(LOW, MIDDLE): 1.0, (MIDDLE, OUT): 2.0}
        assert both.metadata.notes["set"] == "intersection of 2 circuits"

    def test_difference(self, first, second):
        only = difference(first, second)
        assert ids_of(only) == {T0, LOW, OUT}  # LOW and OUT are ends of edges that only it has
        assert edges_of(only) == {(T0, LOW): 1.0, (T0, OUT): 0.5}
        other = difference(second, first)
        assert ids_of(other) == {ERROR, HIGH, LOW, OUT}
        assert edges_of(other) == {(ERROR, HIGH): 7.0, (LOW, OUT): -1.0, (HIGH, OUT): 8.0}
        assert other.metadata.notes["set"] == "difference of 2 circuits"

    def test_nothing_but_the_output_is_different_from_itself(self, first):
        nothing = difference(first, first)
        assert (ids_of(nothing), nothing.n_edges) == ({OUT}, 0)

    def test_a_node_without_shared_edges_is_shared_all_the_same(self, make_graph):
        a = make_graph("f0.1 t0 o.logit", {("f0.1", "o.logit"): 1.0})
        b = make_graph("t0 f0.1 o.logit", {("t0", "f0.1"): 1.0})
        assert ids_of(intersection([a, b])) == {LOW, T0, OUT}
        assert intersection([a, b]).n_edges == 0

    def test_sets_of_three(self, first, second):
        third = first.subgraph([LOW, OUT, T0])
        assert edges_of(intersection([first, second, third])) == {}
        assert ids_of(intersection([first, second, third])) == {LOW, OUT}
        assert edges_of(union([first, second, third]))[T0, OUT] == 0.5
        assert edges_of(union([first, first, second]))[MIDDLE, OUT] == pytest.approx(7 / 3)

    def test_parts_make_up_the_whole(self, random_graph):
        a, b = random_graph(0, density=0.4), random_graph(1, density=0.4)
        parts = [difference(a, b), intersection([a, b]), difference(b, a)]
        edges = [set(edges_of(part)) for part in parts]
        assert all(len(own) > 10 for own in edges)
        assert not any(x & y for x, y in combinations(edges, 2))
        assert set.union(*edges) == set(edges_of(union([a, b])))

    def test_refusals(self, first, make_graph):
        with pytest.raises(ValueError, match="want at least one circuit"):
            union([])
        by_role = collapse(first, ("a", "a", "b", "end"), ("a", "b", "end"))
        with pytest.raises(ValueError, match=r"got \(layers, positions\) \(3, 4\) and \(3, 3\)"):
            intersection([first, by_role])
        longer = replace(
            first, metadata=first.metadata.model_copy(update={"tokens": tuple("abcde")})
        )
        with pytest.raises(ValueError, match=r"got \(layers, positions\) \(3, 4\) and \(3, 5\)"):
            union([first, longer])
        same_length = collapse(first, "abcd", "abcd")
        with pytest.raises(ValueError, match="by role: False and True"):
            difference(first, same_length)
        with pytest.raises(ValueError, match="must share their columns"):
            union([same_length, collapse(first, "abcd", "dcba")])
        other = make_graph("t0 o.other", {("t0", "o.other"): 1.0})
        with pytest.raises(ValueError, match=r"share an output, got \[\['output.logit'\], \['out"):
            intersection([first, other])

    def test_circuits_of_two_tasks_have_both_outputs(self, first, make_graph):
        other = make_graph("t0 f0.1 o.other", {("t0", "f0.1"): 3.0, ("f0.1", "o.other"): 1.0})
        both = union([first, other])
        assert [node.id for node in both.outputs] == [OUT, "output.other"]
        assert edges_of(both)[T0, LOW] == 2.0
        assert circuit_overlap(first, other).edges == Share(n_a=4, n_b=2, n_shared=1)


class TestOverlap:
    def test_by_hand(self, first, second):
        found = circuit_overlap(first, second)
        assert found.nodes == Share(n_a=3, n_b=4, n_shared=2)
        assert found.node_jaccard == 2 / 5
        assert found.edges == Share(n_a=4, n_b=5, n_shared=2)
        assert found.edge_jaccard == 2 / 7
        # min over max: |-2| of |4| and 1 of 3; the others add 1, 0.5, 7, 1 and 8 to the whole
        assert found.weighted_jaccard == pytest.approx(3 / (7 + 17.5))
        assert found.sign_agreement == 0.5
        assert found.by_kind == {
            "error": Share(n_a=0, n_b=1, n_shared=0),
            "feature": Share(n_a=2, n_b=3, n_shared=2),
            "token": Share(n_a=1, n_b=0, n_shared=0),
        }
        assert found.by_layer == {
            0: Share(n_a=1, n_b=1, n_shared=1),
            1: Share(n_a=1, n_b=1, n_shared=1),
            2: Share(n_a=0, n_b=1, n_shared=0),
        }

    def test_a_circuit_overlaps_with_itself(self, random_graph):
        graph = random_graph(3)
        found = circuit_overlap(graph, graph)
        assert (found.node_jaccard, found.edge_jaccard, found.weighted_jaccard) == (1.0, 1.0, 1.0)
        assert found.sign_agreement == 1.0

    def test_circuits_without_anything_in_common(self, make_graph):
        a = make_graph("t0 o.logit", {("t0", "o.logit"): 1.0})
        b = make_graph("t1 o.logit", {("t1", "o.logit"): 1.0})
        found = circuit_overlap(a, b)
        assert (found.node_jaccard, found.edge_jaccard, found.weighted_jaccard) == (0.0, 0.0, 0.0)
        assert found.sign_agreement is None

    def test_empty_circuits(self, make_graph):
        empty = make_graph("o.logit", {})
        found = circuit_overlap(empty, empty)
        assert (found.node_jaccard, found.edge_jaccard, found.weighted_jaccard) == (0.0, 0.0, 0.0)

    def test_shares_of_any_sort(self, first, second):
        found = shares_by(line_up([first, second]), lambda n: None if n.pos == 0 else n.pos)
        assert found == {1: Share(n_a=2, n_b=4, n_shared=2), 3: Share(n_a=1, n_b=1, n_shared=1)}


def features(*places: tuple[int, int]) -> list[Node]:
    return [Node(kind="feature", layer=layer, site="mlp", pos=0, feature=i) for layer, i in places]


def hypergeometric(n: int, marked: int, drawn: int, k: int) -> float:
    return comb(marked, k) * comb(n - marked, drawn - k) / comb(n, drawn) if k <= drawn else 0.0


class TestChance:
    @given(st.integers(0, 40).flatmap(lambda n: st.tuples(*[st.integers(0, n)] * 2, st.just(n))))
    @settings(deadline=None)
    def test_from_one_pool_it_is_hypergeometric(self, sizes):
        n_a, n_b, n = sizes
        wanted = [hypergeometric(n, n_a, n_b, k) for k in range(min(n_a, n_b) + 1)]
        found = shared_by_chance((n, n, n), n_a, n_b).tolist()
        assert found == pytest.approx(wanted, abs=1e-12)

    def test_from_two_pools_it_is_what_counting_gives(self):
        """All pairs of choices of 3 of 0..5 and of 2 of 3..9."""
        counts = [0, 0, 0]
        for a in combinations(range(6), 3):
            for b in combinations(range(3, 10), 2):
                counts[len(set(a) & set(b))] += 1
        wanted = [count / sum(counts) for count in counts]
        assert shared_by_chance((6, 7, 3), 3, 2).tolist() == pytest.approx(wanted, abs=1e-12)
        assert shared_by_chance((7, 6, 3), 2, 3).tolist() == pytest.approx(wanted, abs=1e-12)

    def test_one_layer_by_hand(self):
        """Two of four, twice: 0, 1 or 2 in common with chances 1/6, 4/6 and 1/6."""
        pool = features((0, 0), (0, 1), (0, 2), (0, 3))
        found = chance_overlap(pool[:2], pool[1:3], pool, pool)
        assert (found.n_shared, found.n_pool_a, found.n_pool_b) == (1, 4, 4)
        assert found.expected_shared == pytest.approx(1.0)
        assert found.spread == pytest.approx((1 / 3) ** 0.5)
        assert found.jaccard == pytest.approx(1 / 3)
        assert found.expected_jaccard == pytest.approx(4 / 6 / 3 + 1 / 6)
        assert found.p_value == pytest.approx(5 / 6)

    def test_layers_add_up(self):
        a = features((0, 0), (0, 1), (1, 0), (2, 0))
        b = features((0, 0), (1, 0), (1, 1), (3, 0))
        pool = features(*((layer, i) for layer, n in enumerate((4, 5, 6, 7)) for i in range(n)))
        found = chance_overlap(a, b, pool, pool)
        assert found.expected_shared == pytest.approx(2 * 1 / 4 + 1 * 2 / 5)
        sizes = [(2, 1, 4), (1, 2, 5)]
        variance = [a * b * (n - a) * (n - b) / n**2 / (n - 1) for a, b, n in sizes]
        assert found.spread == pytest.approx(sum(variance) ** 0.5)
        assert found.p_value == pytest.approx(0.5 * 0.4)
        assert found.n_pool_a == 22

    def test_positions_are_strata_if_asked_for(self):
        """One of two at position 0, both times; nothing of the first at position 1."""
        pool = [
            Node(kind="feature", layer=0, site="mlp", pos=pos, feature=i)
            for pos in (0, 1)
            for i in (0, 1)
        ]
        a, b = pool[:1], [pool[0], pool[3]]
        per_layer = chance_overlap(a, b, pool, pool)
        assert per_layer.expected_shared == pytest.approx(1 * 2 / 4)
        found = chance_overlap(a, b, pool, pool, per_position=True)
        assert found.expected_shared == pytest.approx(1 / 2)
        assert found.spread == pytest.approx(1 / 2)
        assert found.p_value == pytest.approx(1 / 2)
        both = chance_overlap(pool[:2], pool[:2], pool, pool, per_position=True)
        assert (both.expected_shared, both.p_value) == pytest.approx((2.0, 1.0))
        assert chance_overlap(pool[:2], pool[:2], pool, pool).expected_shared == pytest.approx(1.0)
        wider = chance_overlap(pool[:1], pool[:1], pool, pool[:3])
        assert (wider.n_pool_a, wider.n_pool_b) == (4, 3)
        assert wider.expected_shared == pytest.approx(1 / 4)

    def test_it_is_what_random_circuits_give(self):
        """Against 4,000 pairs of `random_circuits`: three standard errors of the mean."""
        places = [(layer, i) for layer in range(3) for i in range(8)]
        nodes = features(*places)
        nodes += [
            Node(kind="error", layer=layer, site="mlp", pos=pos)
            for layer in range(2)
            for pos in range(3)
        ]
        nodes.append(Node(kind="token", layer=-1, site="embed", pos=0))
        pools = nodes[4:], nodes[:20] + nodes[24:]
        generator = torch.Generator().manual_seed(0)
        chosen = [torch.rand(len(pool), generator=generator) < 0.5 for pool in pools]
        drawn = torch.zeros(2, 4000, len(nodes), dtype=torch.bool)
        for flags, pool, kept, seed in zip(drawn, pools, chosen, (0, 1), strict=True):
            rows = [nodes.index(node) for node in pool]
            flags[:, rows] = random_circuits(pool, kept, n=4000, seed=seed)
        a, b = drawn[..., :-1]
        shared, either = (a & b).sum(1).double(), (a | b).sum(1)
        sides = [
            [node for node, flag in zip(pool, kept.tolist(), strict=True) if flag]
            for pool, kept in zip(pools, chosen, strict=True)
        ]
        found = chance_overlap(sides[0], sides[1], pools[0], pools[1])
        assert (found.n_pool_a, found.n_pool_b) == (26, 26)
        error = float(shared.std()) / 4000**0.5
        assert found.expected_shared == pytest.approx(float(shared.mean()), abs=3 * error)
        assert found.spread == pytest.approx(float(shared.std()), rel=0.05)
        jaccard = shared / either
        error = float(jaccard.std()) / 4000**0.5
        assert found.expected_jaccard == pytest.approx(float(jaccard.mean()), abs=3 * error)
        beaten = float((shared >= found.n_shared).double().mean())
        assert 0.02 < beaten < 0.98
        assert found.p_value == pytest.approx(beaten, abs=0.03)

    def test_equal_circuits_are_unlikely(self):
        pool = features(*((0, i) for i in range(100)))
        found = chance_overlap(pool[:5], pool[:5], pool, pool)
        assert found.jaccard == 1.0
        assert found.p_value == pytest.approx(1 / comb(100, 5), rel=1e-6)

    def test_inputs_do_not_count(self):
        token = Node(kind="token", layer=-1, site="embed", pos=0)
        found = chance_overlap([token], [token], [token], [token])
        assert (found.n_shared, found.jaccard, found.p_value) == (0, 0.0, 1.0)
        assert found.n_pool_a == found.n_pool_b == 0

    def test_circuits_are_chosen_from_their_pools(self):
        a = features((0, 0), (0, 1))
        with pytest.raises(ValueError, match=r"from its own pool, but mlp0\.1@0 is not in it"):
            chance_overlap(a, a, a, a[:1])
        with pytest.raises(ValueError, match="cannot choose 2 and 1 nodes from pools of 1 and 1"):
            shared_by_chance((1, 1, 1), 2, 1)
        with pytest.raises(ValueError, match="of 1 and 1 nodes, 2 of them in both"):
            shared_by_chance((1, 1, 2), 1, 1)


def transcoder(n: int, seed: int) -> Transcoder:
    generator = torch.Generator().manual_seed(seed)
    W_enc, W_dec = (torch.randn(n, 16, generator=generator) for _ in range(2))
    return Transcoder(W_enc.T.contiguous(), W_dec, torch.zeros(n), torch.zeros(16))


class TestMatching:
    def test_mutual_nearest_by_hand(self):
        a = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        b = torch.tensor([[0.0, 1.0], [0.9, 0.1]])
        found = mutual_nearest(a, b, at_least=0.0)
        assert (found.a.tolist(), found.b.tolist()) == ([0, 2], [1, 0])
        assert found.similarity.tolist() == pytest.approx([0.9, 1.0])
        assert mutual_nearest(a, b, at_least=0.95).a.tolist() == [2]

    def test_of_equal_ones_the_earlier_is_taken(self):
        a = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        for chunk in (1, 2):
            found = mutual_nearest(a, a, at_least=0.0, chunk=chunk)
            assert (found.a.tolist(), found.b.tolist()) == ([0], [0])

    @pytest.mark.parametrize("chunk", [1, 3, 7, 100])
    def test_chunks_change_nothing(self, chunk):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(n, 4, generator=generator) for n in (20, 15))
        found = mutual_nearest(a, b, at_least=-torch.inf, chunk=chunk)
        dot = a @ b.T
        wanted = [(i, int(dot[i].argmax())) for i in range(20)
                  if int(dot[:, int(dot[i].argmax())].argmax()) == i]  # fmt: skip
        assert list(zip(found.a.tolist(), found.b.tolist(), strict=True)) == wanted
        assert len(wanted) > 3

    def test_a_shuffled_rescaled_dictionary_matches_itself(self):
        a, order = transcoder(30, 0), torch.randperm(30, generator=torch.Generator().manual_seed(1))
        b = Transcoder(2 * a.W_enc[:, order], 0.5 * a.W_dec[order], a.b_enc, a.b_dec)
        found = match_dictionaries(a, b, at_least=0.99)
        assert found.a.tolist() == list(range(30))
        assert order[found.b].tolist() == list(range(30))
        torch.testing.assert_close(found.similarity, torch.ones(30))

    def test_similarity_is_the_mean_of_both_cosines(self):
        a = transcoder(30, 0)
        b = Transcoder(a.W_enc, torch.roll(a.W_dec, 1, 1), a.b_enc, a.b_dec)
        cosine = torch.nn.functional.cosine_similarity(a.W_dec, b.W_dec, dim=1)
        found = match_dictionaries(a, b, at_least=0.0)
        rows = found.a[found.a == found.b]
        assert len(rows) > 10
        own = found.similarity[found.a == found.b]
        torch.testing.assert_close(own, (1 + cosine[rows]) / 2)

    def test_unlike_dictionaries_match_little(self):
        assert len(match_dictionaries(transcoder(30, 0), transcoder(40, 1)).a) == 0

    def test_cross_layer_dictionaries_match_by_all_they_write(self):
        generator = torch.Generator().manual_seed(0)
        W_enc = torch.randn(8, 5, generator=generator)
        W_dec = torch.randn(5, 2, 8, generator=generator)
        b_dec = torch.zeros(8)
        a = CrossLayerTranscoder(W_enc, W_dec, torch.zeros(5), b_dec)
        b = CrossLayerTranscoder(W_enc, W_dec * torch.tensor([1.0, -1.0])[:, None], torch.zeros(5),
                                 b_dec)  # fmt: skip
        assert match_dictionaries(a, a).a.tolist() == list(range(5))
        found = match_dictionaries(a, b, at_least=0.0)
        assert (found.similarity < 0.99).all()

    def test_features_get_their_partners_names(self, first):
        match = FeatureMatch(torch.tensor([6]), torch.tensor([1]), torch.ones(1))
        matches = {("mlp", 0): match, ("mlp", 1): match}
        renamed = rename_features(first.nodes, matches, unmatched_from=100)
        assert [node.id for node in renamed] == [T0, "mlp0.6@1", "mlp1.102@1", OUT]
        assert [node.activation for node in renamed] == [n.activation for n in first.nodes]

    def test_refusals(self, first):
        with pytest.raises(ValueError, match=r"no match for the dictionary of mlp0\.1@1"):
            rename_features(first.nodes, {}, unmatched_from=1)
        with pytest.raises(ValueError, match="got 0 and 1"):
            mutual_nearest(torch.zeros(0, 2), torch.zeros(1, 2), at_least=0.0)
        wide = Transcoder(torch.zeros(16, 3), torch.zeros(3, 17), torch.zeros(3), torch.zeros(17))
        with pytest.raises(ValueError, match="got widths 16 to 16 and 16 to 17"):
            match_dictionaries(transcoder(3, 0), wide)
        tall = Transcoder(torch.zeros(17, 3), torch.zeros(3, 16), torch.zeros(3), torch.zeros(16))
        with pytest.raises(ValueError, match="got widths 17 to 16 and 16 to 17"):
            match_dictionaries(tall, wide)
        bare = replace(transcoder(3, 0), convention=Convention(norm="bare"))
        with pytest.raises(ValueError, match="in one way, got 'gain and bias' and 'bare'"):
            match_dictionaries(transcoder(3, 0), bare)


class TestProfiles:
    def test_by_hand(self, make_graph):
        """Half of the output is f1.2, which is f0.1, which is t0 and t1; half is t1."""
        graph = make_graph(
            "t0 t1 b0 f0.1 f1.2 o.logit",
            {
                ("t0", "f0.1"): 1.0,
                ("t1", "f0.1"): -1.0,
                ("f0.1", "f1.2"): 2.0,
                ("f1.2", "o.logit"): 3.0,
                ("t1", "o.logit"): 2.0,
                ("b0", "o.logit"): 1.0,
            },
        )
        tokens = graph.metadata.tokens
        total = 1 / 2 + 1 / 2 + 1 / 2 + 1 / 2  # f1.2, f0.1, b0 and t1 by itself, tokens below f0.1
        assert influence_profile(graph, n_depths=3) == pytest.approx(
            {
                ("bias", 0, ""): 1 / 6 / total,
                ("feature", 0, tokens[1]): 1 / 2 / total,
                ("feature", 1, tokens[1]): 1 / 2 / total,
                ("token", -1, tokens[0]): 1 / 4 / total,
                ("token", -1, tokens[1]): (1 / 4 + 1 / 3) / total,
            }
        )
        one = influence_profile(graph, n_depths=1)
        assert one["feature", 0, tokens[1]] == pytest.approx(1 / total)
        fine = influence_profile(graph, n_depths=6)
        assert ("feature", 2, tokens[1]) in fine
        assert ("token", -1, tokens[0]) in fine

    def test_outputs_are_left_out(self, make_graph):
        graph = make_graph("t0 o.a o.b", {("t0", "o.a"): 1.0, ("o.a", "o.b"): 1.0})
        found = influence_profile(graph)
        assert list(found) == [("token", -1, graph.metadata.tokens[0])]

    def test_profiles_add_up_to_one_whatever_the_depths(self, random_graph):
        graph = random_graph(1)
        for n_depths in (1, 2, 5):
            assert sum(influence_profile(graph, n_depths=n_depths).values()) == pytest.approx(1.0)
        assert float(node_influence(graph).sum()) > 1

    def test_overlap_of_profiles(self):
        a = {("token", -1, "x"): 0.75, ("feature", 0, "x"): 0.25}
        b = {("token", -1, "x"): 0.5, ("feature", 0, "y"): 0.5}
        assert profile_overlap(a, b) == profile_overlap(b, a) == 0.5
        assert profile_overlap(a, a) == 1.0
        assert profile_overlap(a, {}) == 0.0

    def test_refusals(self, first, make_graph):
        with pytest.raises(ValueError, match="at least one group of layers, got 0"):
            influence_profile(first, n_depths=0)
        with pytest.raises(ValueError, match="no node reaches an output"):
            influence_profile(make_graph("t0 f0.1 o.logit", {("t0", "f0.1"): 1.0}))


def test_tables_of_nodes_line_up(first, second):
    lined = line_up([first, second])
    assert isinstance(lined.nodes, NodeTable)
    for graph, rows in zip((first, second), lined.node_rows, strict=True):
        assert [lined.nodes[row].id for row in rows.tolist()] == [n.id for n in graph.nodes]
    for graph, rows, values in zip(
        (first, second), lined.edge_rows, lined.attribution, strict=True
    ):
        assert torch.equal(values[rows], graph.edge_attribution)
    assert lined.has_node.sum(1).tolist() == [4, 5]
    assert lined.has_edge.sum(1).tolist() == [4, 5]
