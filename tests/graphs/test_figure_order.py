"""Fewer crossings: the count by hand, barycentres by hand, and sweeps that never make it worse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.figure_order import barycentres, count_crossings, untangle
from graphs.figure_place import place_shown
from graphs.figure_select import select_shown
from graphs.layout import Layout


def edges(*ends: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(ends, dtype=float)


def test_crossings_by_hand():
    rising, falling = (0.0, 0.0, 1.0, 1.0), (1.0, 0.0, 0.0, 1.0)
    assert count_crossings(edges(rising, falling)) == 1
    assert count_crossings(edges(rising, (0.0, 1.0, 1.0, 2.0))) == 0
    assert count_crossings(edges(rising, (0.0, 0.0, 0.0, 1.0))) == 0  # they share an end
    assert count_crossings(edges(rising, (3.0, 0.0, 2.0, 1.0))) == 0  # only their lines cross
    assert count_crossings(edges(rising, falling, (0.0, 0.4, 1.0, 0.4))) == 3
    assert count_crossings(np.zeros((0, 4))) == 0


def test_crossings_are_counted_across_chunks():
    n = 700
    fan = [(float(i), 0.0, float(n - i), 1.0) for i in range(n)]
    assert count_crossings(edges(*fan)) == n * (n - 1) // 2


def test_barycentres_weigh_neighbours_on_both_sides():
    x = np.array([0.0, 10.0, 4.0, 7.0])
    pull = barycentres(x, np.array([0, 2]), np.array([2, 1]), np.array([1.0, 3.0]))
    np.testing.assert_allclose(pull, [4.0, 4.0, 7.5, 7.0])


def line_up(order: np.ndarray) -> Layout:
    """Nodes 0 to 2 below, 3 to 5 above, each row from left to right by falling order."""
    x = np.zeros(6)
    for row in (np.arange(3), np.arange(3, 6)):
        x[row[np.argsort(-order[row], kind="stable")]] = [0.0, 1.0, 2.0]
    return Layout(tuple(x), (0.0,) * 3 + (1.0,) * 3, {}, {}, 3.0, 2.0)


SOURCE, TARGET = np.array([0, 1, 2]), np.array([5, 4, 3])


def crossings(order: np.ndarray) -> int:
    layout = line_up(order)
    x, y = np.array(layout.x), np.array(layout.y)
    ends = np.stack([x[SOURCE], y[SOURCE], x[TARGET], y[TARGET]], axis=-1)
    return count_crossings(ends)


def untangled(movable: list[bool], n_sweeps: int = 8) -> np.ndarray:
    return untangle(
        line_up,
        np.zeros(6),
        movable=np.array(movable),
        source=SOURCE,
        target=TARGET,
        strength=np.ones(3),
        n_sweeps=n_sweeps,
    )


def test_a_twisted_row_is_untwisted():
    assert crossings(np.zeros(6)) == 3
    assert crossings(untangled([False] * 3 + [True] * 3)) == 0


def test_what_may_not_move_stays():
    np.testing.assert_array_equal(untangled([False] * 6), np.zeros(6))
    np.testing.assert_array_equal(untangled([True] * 6, n_sweeps=0), np.zeros(6))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_sweeps_never_add_crossings(random_graph, seed: int):
    shown = select_shown(random_graph(seed, n_features=24), 1000, 1000)
    source, target = shown.graph.edge_source.numpy(), shown.graph.edge_target.numpy()
    counts = []
    for n_sweeps in (0, 8):
        layout = place_shown(shown, {}, 100.0, 100.0, n_sweeps=n_sweeps)
        x, y = np.array(layout.x), np.array(layout.y)
        counts.append(
            count_crossings(np.stack([x[source], y[source], x[target], y[target]], axis=-1))
        )
    assert counts[1] <= counts[0]


def test_a_layout_is_the_same_every_time(random_graph):
    shown = select_shown(random_graph(3, n_features=40), 1000, 1000)
    one, two = (place_shown(shown, {}, 100.0, 100.0) for _ in range(2))
    assert one == two
    assert one.x != pytest.approx(place_shown(shown, {}, 100.0, 100.0, n_sweeps=0).x)
