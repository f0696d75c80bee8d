"""Straight-through gradients against the losses they stand for, and what they must not see."""

import pytest
import torch
from torch import Tensor

from circuits.training.architectures.jumprelu import JumpReLU
from circuits.training.architectures.penalties import Penalty
from circuits.training.architectures.relu import ReLU
from tests.circuits.training_problems import moment, output, pre

_NORMAL = torch.distributions.Normal(0.0, 1.0)


def _problem(n: int, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Three features of two inputs, with targets that they half explain."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    p = {
        "W_enc": torch.tensor([[1.0, 0.3], [-0.4, 0.9], [0.6, -0.8]], dtype=torch.float64),
        "W_dec": torch.tensor([[0.8, 0.1], [-0.2, 1.1], [0.5, -0.3]], dtype=torch.float64),
        "b_enc": torch.tensor([0.1, -0.2, 0.0], dtype=torch.float64),
        "b_dec": torch.tensor([0.05, 0.1], dtype=torch.float64),
        "threshold": torch.tensor([0.6, 0.5, 0.7], dtype=torch.float64),
    }
    return p, x, x + 0.3 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def _terms(p: dict[str, Tensor], x: Tensor, y: Tensor, weight: float) -> Tensor:
    """The discontinuous loss of every token, with d_out = 2 as the unit of L0."""
    z = pre(p, x)
    gate = (z > p["threshold"]).double()
    return (output(p, z * gate, x) - y).square().sum(1) + 2 * weight * gate.sum(1)


@pytest.mark.parametrize("width", [0.2, 0.05])
@pytest.mark.parametrize("feature", [0, 1, 2])
def test_threshold_steps_are_slopes_of_the_expected_loss(width: float, feature: int) -> None:
    """Within four standard errors, and a bias that shrinks with the window (B8)."""
    n, weight = 400_000, 0.3
    p, x, y = _problem(n, seed=feature)
    p["threshold"] = p["threshold"].clone()
    architecture = JumpReLU(Penalty("l0", 1.0, weight), width, 0.5)
    got = architecture.step(p, {}, x, y, moment()).gradients["threshold"][feature].item()
    sides = []
    for sign in (1, -1):
        moved = p | {"threshold": p["threshold"].clone()}
        moved["threshold"][feature] += sign * width / 2
        sides.append(_terms(moved, x, y, weight))
    differences = (sides[0] - sides[1]) / width
    error = differences.std().item() / n**0.5
    assert abs(differences.mean().item()) > 20 * error * (width / 0.2) ** 0.5
    assert abs(got - differences.mean().item()) < 4 * error + 2 * width**2


def test_the_step_of_l0_is_the_slope_of_the_smoothed_count_and_sees_both_halves() -> None:
    """Without reconstruction error; a step on activations would lose the half below (1.6, 2)."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(200_000, 1, generator=generator, dtype=torch.float64)
    t, width, weight, target = 0.8, 0.2, 1.0, 0.05
    p = {
        "W_enc": torch.ones(1, 1, dtype=torch.float64),
        "W_dec": torch.zeros(1, 1, dtype=torch.float64),
        "b_enc": torch.zeros(1, dtype=torch.float64),
        "b_dec": torch.zeros(1, dtype=torch.float64),
        "threshold": torch.tensor([t], dtype=torch.float64),
    }
    architecture = JumpReLU(Penalty("l0_target", target, weight), width, 0.5)
    step = architecture.step(p, {}, x, x, moment())

    def tail(at: float) -> float:
        return 1 - _NORMAL.cdf(torch.tensor(at)).item()

    density = (tail(t - width / 2) - tail(t + width / 2)) / width
    wanted = 2 * weight * (tail(t) / target - 1) / target * -density
    assert step.gradients["threshold"].item() == pytest.approx(wanted, rel=0.02)
    below = torch.tensor([[t - 0.4 * width], [t - 0.6 * width]], dtype=torch.float64)
    l0 = JumpReLU(Penalty("l0", 1.0, weight), width, 0.5).step(p, {}, below, below, moment())
    assert l0.gradients["threshold"].item() == pytest.approx(-weight / width / 2)
    assert l0.l0 == 0


def test_the_step_of_l0_in_a_relu_is_the_slope_of_its_expected_count() -> None:
    n, width, weight, b = 400_000, 0.1, 0.7, -0.5
    x = torch.randn(n, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    p = {
        "W_enc": torch.ones(1, 1, dtype=torch.float64),
        "W_dec": torch.zeros(1, 1, dtype=torch.float64),
        "b_enc": torch.tensor([b], dtype=torch.float64),
        "b_dec": torch.zeros(1, dtype=torch.float64),
    }
    step = ReLU(Penalty("l0", 1.0, weight), width, 0.5).step(p, {}, x, x, moment())
    density = _NORMAL.log_prob(torch.tensor(b)).exp().item()  # of z = 0
    assert step.gradients["b_enc"].item() == pytest.approx(weight * density, rel=0.02)
    assert step.gradients["W_enc"].item() == pytest.approx(weight * density * -b, rel=0.05)


@pytest.mark.parametrize("share", [0.0, 2.0], ids=["dense", "sparse"])
def test_rectified_zeros_are_never_in_the_window(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A threshold below w / 2 puts 0 into the window; what is inactive there is not at 0."""
    from circuits.training import entries

    monkeypatch.setitem(entries.DENSE_SHARE, "cpu", share)
    p, x, y = _problem(200, seed=9)
    p["b_enc"] = p["b_enc"] - 100
    p["threshold"] = torch.full_like(p["threshold"], 0.1)
    jumping = JumpReLU(Penalty("l0", 1.0, 1.0), 0.4, 0.5).step(p, {}, x, y, moment())
    assert jumping.gradients["threshold"].abs().max() == 0
    q = {name: tensor for name, tensor in p.items() if name != "threshold"}
    rectified = ReLU(Penalty("l0", 1.0, 1.0), 0.4, 0.5).step(q, {}, x, y, moment())
    assert rectified.gradients["b_enc"].abs().max() == 0


def test_the_l0_penalty_moves_thresholds_and_nothing_else_of_a_jumprelu() -> None:
    p, x, y = _problem(500, seed=11)
    without, with_it = (
        JumpReLU(Penalty("l0", 1.0, weight), 0.3, 0.5).step(p, {}, x, y, moment()).gradients
        for weight in (0.0, 0.9)
    )
    assert (without["threshold"] - with_it["threshold"]).abs().min() > 0.01
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(without[name], with_it[name])


def test_thresholds_stay_above_half_the_window() -> None:
    p = {"threshold": torch.tensor([-1.0, 0.1, 0.3])}
    JumpReLU(Penalty("l0", 1.0, 1.0), 0.4, 0.5).constrain(p)
    torch.testing.assert_close(p["threshold"], torch.tensor([0.2, 0.2, 0.3]))
