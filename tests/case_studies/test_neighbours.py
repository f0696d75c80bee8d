"""Neighbours of a feature in weight space, for dictionaries that only work as a whole."""

import pytest
import torch

from attribution import virtual_weights
from case_studies.commands.neighbours import find_neighbours
from tests.cross_layer import spliced


def test_a_cross_layer_feature_has_neighbours_by_all_that_it_writes_below_them() -> None:
    model = spliced("gpt2")
    found = find_neighbours(model, "mlp", 1, 2, 3)
    above = virtual_weights(model, "mlp.2", "mlp.1", source_features=[2])[:, 0]
    best = int(above.abs().argmax())
    assert found["downstream"].strongest[0].name == f"mlp.2.{best}"
    assert found["downstream"].strongest[0].weight == pytest.approx(above[best].item())
    below = virtual_weights(model, "mlp.1", "mlp.0", target_features=[2])[0]
    assert found["upstream"].strongest[0].weight == pytest.approx(
        below[below.abs().argmax()].item()
    )
    assert torch.isfinite(torch.tensor([near.p for near in found["upstream"].strongest])).all()
