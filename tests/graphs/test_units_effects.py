"""Gradient scores of neurons and heads, against finite differences and whole patches."""

from collections import Counter

import pytest
import torch

from circuits.sites import Site
from graphs.units import UnitTrial, unit_attribution, unit_integrated
from graphs.units.places import as_parts
from tests import models

CLEAN = torch.tensor([[1, 2, 3, 4], [1, 6, 3, 7]])
CORRUPTED = torch.tensor([[1, 2, 8, 4], [1, 6, 8, 7]])
KINDS = ("heads", "neurons")


def metric(logits):
    return logits[:, 10] - logits[:, 1]


def make(kind):
    model = models.subject("gpt2", torch.float64)  # its norms keep float64
    return UnitTrial.on_prompts(kind, model, CLEAN, CORRUPTED, metric)


def moved(trial, shift):
    """The metric with values at some sites `shift` away from what arrives there."""
    edits = {site: lambda value, s=s: value + s for site, s in shift.items()}
    return metric(trial.model.run(CLEAN, edits=edits)[0][:, -1])


def step(trial, unit, share):
    """A share of the way from a unit's clean value to its corrupted one."""
    whole = trial.other[unit.site] - trial.clean[unit.site]
    alone = torch.zeros_like(whole)
    as_parts(unit.site, alone)[:, unit.pos, unit.row] = as_parts(unit.site, whole)[
        :, unit.pos, unit.row
    ]
    return {unit.site: share * alone}


@pytest.mark.parametrize("kind", KINDS)
def test_attribution_is_the_slope_towards_the_corrupted_value(kind):
    trial = make(kind)
    effects = unit_attribution(trial, trial.units)
    assert effects.shape == (2, len(trial.units))
    h, rows = 1e-5, range(0, len(trial.units), max(1, len(trial.units) // 8))
    for row in rows:
        unit = trial.units[row]
        up, down = (moved(trial, step(trial, unit, share)) for share in (h, -h))
        torch.testing.assert_close(effects[:, row], (up - down) / (2 * h), rtol=1e-5, atol=1e-8)
    assert (effects[:, list(rows)].abs() > 1e-6).any()


@pytest.mark.parametrize("kind", KINDS)
def test_integrated_effects_of_a_site_add_up_to_patching_it(kind):
    trial = make(kind)
    effects = unit_integrated(trial, trial.units, steps=12)
    parts = Counter(unit.part for unit in trial.units)
    assert len(parts) == (3 if kind == "heads" else 2)
    for site in trial.clean:
        whole = {site: trial.other[site] - trial.clean[site]}
        mine = torch.tensor([unit.site == site for unit in trial.units])
        want = moved(trial, whole) - trial.model_metric
        torch.testing.assert_close(effects[:, mine].sum(1), want, rtol=2e-3, atol=2e-4)
        assert want.abs().max() > 1e-3


def test_one_step_is_the_gradient_half_way():
    trial = make("heads")
    site = Site("z", 1)
    whole = trial.other[site] - trial.clean[site]
    row = next(i for i, unit in enumerate(trial.units) if unit.site == site and unit.pos == 3)
    unit, h = trial.units[row], 1e-5
    slopes = [
        moved(trial, {site: 0.5 * whole + sign * step(trial, unit, h)[site]}) for sign in (1, -1)
    ]
    effects = unit_integrated(trial, trial.units, steps=1)
    want = (slopes[0] - slopes[1]) / (2 * h)
    torch.testing.assert_close(effects[:, row], want, rtol=1e-5, atol=1e-8)
    first_order = unit_attribution(trial, trial.units)
    assert (effects[:, row] - first_order[:, row]).abs().max() > 1e-6


def test_units_of_other_prompts_can_be_asked_for():
    trial = make("heads")
    some = [trial.units[5], trial.units[2]]
    effects = unit_attribution(trial, trial.units)
    assert torch.equal(unit_attribution(trial, some), effects[:, [5, 2]])


def test_no_step_is_refused():
    trial = make("heads")
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        unit_integrated(trial, trial.units, steps=0)
