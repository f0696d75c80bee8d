"""Neighbours of features in weight space: many at once, pairs of SAEs, wholes, post-norms."""

import pytest
import torch

from attribution import virtual_weights
from attribution.invariant.null import isotropic_significance
from attribution.invariant.strongest import WeightPairs
from case_studies.dashboard.neighbours import Neighbour, find_neighbours
from case_studies.dashboard.places import in_order, only
from circuits import SplicedModel
from circuits.dictionaries import Transcoder
from tests import cross_layer, models

FEATURES = [7, 0, 31]
TOP = 4


def transcoders(architecture: str = "gpt2") -> SplicedModel:
    made = {f"mlp.{i}": models.transcoder(seed=i) for i in range(models.N_LAYERS)}
    return SplicedModel(models.subject(architecture, torch.float64), made)


def saes(site: str) -> SplicedModel:
    made = {f"{site}.{i}": models.sae(site, seed=i) for i in range(models.N_LAYERS)}
    return SplicedModel(models.subject("gpt2", torch.float64), made)


def assert_strongest(found: list[Neighbour], weights: dict[str, torch.Tensor]) -> None:
    """`weights` by the name of a dictionary; `found` are the largest by size of all of them."""
    every = {f"{k}.{i}": x for k, row in weights.items() for i, x in enumerate(row.tolist())}
    ranked = sorted(every, key=lambda name: -abs(every[name]))[:TOP]
    assert [n.name for n in found] == ranked
    assert [n.weight for n in found] == pytest.approx([every[name] for name in ranked])


def test_many_at_once_are_the_strongest_of_all_layers_below_and_above() -> None:
    model = transcoders()
    found = find_neighbours(model, "mlp.1", FEATURES, TOP)
    for feature, near in zip(FEATURES, found, strict=True):
        below = virtual_weights(model, "mlp.1", "mlp.0", target_features=[feature])[0]
        above = virtual_weights(model, "mlp.2", "mlp.1", source_features=[feature])[:, 0]
        assert_strongest(near["upstream"].strongest, {"mlp.0": below})
        assert_strongest(near["downstream"].strongest, {"mlp.2": above})
    top = find_neighbours(model, "mlp.2", FEATURES, TOP)
    for feature, near in zip(FEATURES, top, strict=True):
        both = {
            name: virtual_weights(model, "mlp.2", name, target_features=[feature])[0]
            for name in ("mlp.0", "mlp.1")
        }
        assert_strongest(near["upstream"].strongest, both)
        assert (near["upstream"].n_looked_at, near["downstream"].n_looked_at) == (
            2 * models.N_FEATURES,
            0,
        )
        assert near["downstream"].strongest == []


@pytest.mark.parametrize("name", ["mlp.0", "mlp.2"])
def test_every_neighbour_has_the_null_of_its_own_pair(name: str) -> None:
    model = transcoders()
    key = "downstream" if name == "mlp.0" else "upstream"
    (near,) = find_neighbours(model, name, [5], TOP)
    for neighbour in near[key].strongest:
        other, index = neighbour.name.rsplit(".", 1)
        ends = (other, name) if name == "mlp.0" else (name, other)
        pair = (int(index), 5) if name == "mlp.0" else (5, int(index))
        pairs = WeightPairs(
            torch.tensor([pair[0]]),
            torch.tensor([pair[1]]),
            torch.tensor([neighbour.weight], dtype=torch.float64),
        )
        null = isotropic_significance(model, *ends, pairs)
        assert (neighbour.z, neighbour.p) == pytest.approx((float(null.z), float(null.p)))


def test_a_batch_is_its_features_one_by_one() -> None:
    model = transcoders("llama_gqa")
    together = find_neighbours(model, "mlp.1", FEATURES, TOP)
    for feature, near in zip(FEATURES, together, strict=True):
        (alone,) = find_neighbours(model, "mlp.1", [feature], TOP)
        for key in ("upstream", "downstream"):
            found, expected = near[key].strongest, alone[key].strongest
            assert [n.name for n in found] == [n.name for n in expected]
            for a, b in zip(found, expected, strict=True):
                assert (a.weight, a.z, a.p) == pytest.approx((b.weight, b.z, b.p))


def test_saes_are_taken_in_pairs() -> None:
    (near,) = find_neighbours(saes("resid_post"), "resid_post.2", [3], TOP)
    weights = {
        name: virtual_weights(
            only(saes("resid_post"), (name, "resid_post.2")),
            "resid_post.2",
            name,
            target_features=[3],
        )[0]
        for name in ("resid_post.0", "resid_post.1")
    }
    assert_strongest(near["upstream"].strongest, weights)
    assert near["upstream"].obstacles == ()


def test_residual_streams_read_before_a_block_have_the_names_of_node_tables() -> None:
    model = saes("resid_pre")
    assert [p.name for p in in_order(model)] == ["resid_pre.0", "resid_post.0", "resid_post.1"]
    kept = only(model, ["resid_post.0", "resid_post.1"])
    assert [p.name for p in in_order(kept)] == ["resid_post.0", "resid_post.1"]
    (near,) = find_neighbours(model, "resid_post.0", [3], models.N_FEATURES)
    assert {n.name.rsplit(".", 1)[0] for n in near["upstream"].strongest} == {"resid_pre.0"}
    assert {n.name.rsplit(".", 1)[0] for n in near["downstream"].strongest} == {"resid_post.1"}


def test_a_cross_layer_feature_has_neighbours_by_all_that_it_writes_below_them() -> None:
    model = cross_layer.spliced("gpt2")
    (found,) = find_neighbours(model, "mlp.1", [2], 3)
    above = virtual_weights(model, "mlp.2", "mlp.1", source_features=[2])[:, 0]
    best = int(above.abs().argmax())
    assert found["downstream"].strongest[0].name == f"mlp.2.{best}"
    assert found["downstream"].strongest[0].weight == pytest.approx(above[best].item())
    below = virtual_weights(model, "mlp.1", "mlp.0", target_features=[2])[0]
    assert found["upstream"].strongest[0].weight == pytest.approx(
        below[below.abs().argmax()].item()
    )
    assert torch.isfinite(torch.tensor([near.p for near in found["upstream"].strongest])).all()


def test_what_a_post_norm_lies_behind_is_left_out_and_named() -> None:
    (near,) = find_neighbours(transcoders("gemma2"), "mlp.1", [2], 3)
    for key, layer in (("upstream", 0), ("downstream", 1)):
        (why,) = near[key].obstacles
        assert f"normalises what mlp.{layer} writes, with an input-dependent denominator" in why
        assert (near[key].strongest, near[key].n_looked_at) == ([], 0)


def test_a_dictionary_narrower_than_what_is_asked_for_gives_all_it_has() -> None:
    made: dict[str, Transcoder] = {f"mlp.{i}": models.transcoder(seed=i) for i in range(2)}
    model = SplicedModel(models.subject("gpt2", torch.float64), made)
    (near,) = find_neighbours(model, "mlp.1", [0], 10 * models.N_FEATURES)
    assert len(near["upstream"].strongest) == models.N_FEATURES
