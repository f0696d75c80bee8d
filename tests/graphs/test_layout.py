"""Places in the circuit figure: nothing overlaps, everything is where its layer and token say."""

import pytest

from attribution.nodes import Node
from graphs.layout import BIAS_COLUMN, Band, place_nodes

N_LAYERS, N_POS = 3, 4


def feature(layer: int, pos: int, index: int, site: str = "mlp") -> Node:
    return Node(kind="feature", layer=layer, site=site, pos=pos, feature=index)


def token(pos: int) -> Node:
    return Node(kind="token", layer=-1, site="embed", pos=pos)


OUTPUT = Node(kind="output", layer=N_LAYERS, site="logit", pos=N_POS - 1)


def place(nodes, labels=None, order=None, **sizes: float):
    return place_nodes(
        nodes,
        n_layers=N_LAYERS,
        column_widths=[40.0] * N_POS,
        labels=labels or {},
        order=order or [0.0] * len(nodes),
        min_width=sizes.get("min_width", 0.0),
        min_height=sizes.get("min_height", 0.0),
    )


def test_tokens_go_across_and_layers_up():
    nodes = [token(0), feature(0, 1, 0), feature(2, 1, 0), feature(2, 3, 0), OUTPUT]
    layout = place(nodes)
    assert layout.y[0] < layout.y[1] < layout.y[2] == layout.y[3] < layout.y[4]
    assert layout.x[0] < layout.x[1] == layout.x[2] < layout.x[3] == layout.x[4]


def test_sites_of_a_layer_are_ordered_as_the_model_runs():
    sites = ["resid_post", "mlp", "attn_out", "resid_pre", "resid_mid"]
    layout = place([feature(1, 0, 0, site) for site in sites])
    ranked = sorted(sites, key=lambda site: layout.y[sites.index(site)])
    assert ranked == ["resid_pre", "attn_out", "resid_mid", "mlp", "resid_post"]
    assert list(layout.bands) == sorted(layout.bands, key=lambda band: layout.bands[band].start)


def test_layers_without_nodes_keep_a_band():
    layout = place([feature(0, 0, 0), OUTPUT])
    assert {band.layer for band in layout.bands} == {-1, 0, 1, 2, 3}
    assert Band(1, "") in layout.bands


def test_thirty_nodes_in_a_cell_stay_apart_and_inside():
    nodes = [feature(1, 2, i) for i in range(30)] + [feature(1, 1, 0), OUTPUT]
    layout = place(nodes, labels={0: "a label of 20 chars", 3: "another"})
    column, band = layout.columns[2], layout.bands[Band(1, "mlp")]
    for i in range(30):
        assert column.start + 8 < layout.x[i] < column.stop - 8
        assert band.start + 8 < layout.y[i] < band.stop - 8
        for j in range(i):
            far = max(abs(layout.x[i] - layout.x[j]), abs(layout.y[i] - layout.y[j]))
            assert far > 19.5


def test_a_label_has_its_line_to_itself():
    nodes = [feature(1, 2, i) for i in range(9)]
    label = "label of a node"
    layout = place(nodes, labels={4: label})
    assert sum(y == layout.y[4] for y in layout.y) == 1
    assert layout.x[4] + 5.5 * len(label) < layout.columns[2].stop


def test_the_strongest_come_first_and_ties_keep_their_order():
    nodes = [feature(1, 0, i) for i in range(3)]
    layout = place(nodes, order=[0.1, 0.5, 0.1])
    places = [(-y, x) for x, y in zip(layout.x, layout.y, strict=True)]
    assert sorted(range(3), key=places.__getitem__) == [1, 0, 2]


def test_biases_have_the_leftmost_column_and_their_layers_band():
    bias = Node(kind="bias", layer=1, site="ln2", pos=-1)
    layout = place([bias, feature(1, 0, 0), token(0)])
    assert next(iter(layout.columns)) == BIAS_COLUMN
    assert layout.x[0] < layout.x[1]
    assert layout.y[0] == layout.y[1]
    assert BIAS_COLUMN not in place([token(0)]).columns


def test_small_figures_are_stretched():
    layout = place([token(0), OUTPUT], min_width=900.0, min_height=500.0)
    assert layout.width == pytest.approx(900.0)
    assert layout.height == pytest.approx(500.0)
