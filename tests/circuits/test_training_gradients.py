"""Hand-written gradients against autograd in float64, straight-through ones against formulas."""

import pytest
import torch
from torch import Tensor

from circuits.activations import topk
from circuits.training import jumprelu as jumprelu_module
from circuits.training.jumprelu import jumprelu_step
from circuits.training.topk import topk_step

N_TOKENS, D_IN, D_OUT, N_FEATURES = 60, 5, 4, 20


def _problem(seed: int, *, skip: bool) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    p = {
        "W_enc": normal(N_FEATURES, D_IN),
        "W_dec": normal(N_FEATURES, D_OUT),
        "b_enc": normal(N_FEATURES),
        "b_dec": normal(D_OUT),
    }
    if skip:
        p["W_skip"] = normal(D_IN, D_OUT)
    return p, normal(N_TOKENS, D_IN), normal(N_TOKENS, D_OUT)


def _leaves(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone().requires_grad_() for name, tensor in p.items()}


def _assert_same(got: dict[str, Tensor], leaves: dict[str, Tensor]) -> None:
    assert got.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        torch.testing.assert_close(got[name], leaf.grad, rtol=1e-10, atol=1e-12, msg=name)


def _output(q: dict[str, Tensor], a: Tensor, x: Tensor) -> Tensor:
    y = a @ q["W_dec"] + q["b_dec"]
    return y + x @ q["W_skip"] if "W_skip" in q else y


@pytest.mark.parametrize("skip", [False, True])
def test_topk_gradients_equal_autograd(skip: bool) -> None:
    p, x, y = _problem(0, skip=skip)
    step = topk_step(
        p, x, y, k=3, dead=torch.tensor([], dtype=torch.long), aux_k=2, aux_coefficient=1.0
    )
    q = _leaves(p)
    a = topk(x @ q["W_enc"].T + q["b_enc"], 3)
    loss = (_output(q, a, x) - y).square().sum(1).mean()
    loss.backward()
    _assert_same(step.gradients, q)
    assert step.loss == pytest.approx(loss.item() / D_OUT, rel=1e-12)
    assert step.l0 == pytest.approx((a > 0).sum().item() / N_TOKENS)
    assert torch.equal(step.fired, (a > 0).any(0))


@pytest.mark.parametrize("aux_k", [2, 50])
def test_auxk_gradients_equal_autograd_and_reach_the_encoder(aux_k: int) -> None:
    p, x, y = _problem(1, skip=False)
    dead = torch.tensor([1, 4, 7, 19])
    step = topk_step(p, x, y, k=3, dead=dead, aux_k=aux_k, aux_coefficient=0.5)
    q = _leaves(p)
    z = x @ q["W_enc"].T + q["b_enc"]
    error = y - _output(q, topk(z, 3), x)
    aux = (topk(z[:, dead], min(aux_k, 4)) @ q["W_dec"][dead] - error.detach()).square().sum(1)
    loss = error.square().sum(1).mean() + 0.5 * min(4 / aux_k, 1) * aux.mean()
    loss.backward()
    _assert_same(step.gradients, q)
    plain = topk_step(p, x, y, k=3, dead=dead, aux_k=aux_k, aux_coefficient=0.0)
    moved = (step.gradients["W_enc"] - plain.gradients["W_enc"]).norm(dim=1)
    assert (moved[dead] > 0).any()
    assert moved[[i for i in range(N_FEATURES) if i not in dead.tolist()]].max() == 0
    assert torch.equal(step.gradients["b_dec"], plain.gradients["b_dec"])


@pytest.mark.parametrize("share", [0.0, 2.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("skip", [False, True])
def test_jumprelu_gradients_equal_the_formulas(
    monkeypatch: pytest.MonkeyPatch, share: float, skip: bool
) -> None:
    monkeypatch.setattr(jumprelu_module, "_DENSE_SHARE", share)
    p, x, y = _problem(2, skip=skip)
    t = (
        torch.rand(N_FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        + 0.5
    )
    width, weight, target = 0.4, 0.7, 2.0
    step = jumprelu_step(
        {**p, "threshold": t}, x, y, target_l0=target, l0_weight=weight, bandwidth=width
    )
    q = _leaves(p)
    z = x @ q["W_enc"].T + q["b_enc"]
    gate = (z > t).double().detach()
    a = z * gate
    a.retain_grad()
    error = _output(q, a, x) - y
    error.square().sum(1).mean().backward()
    assert a.grad is not None
    kernel = ((z.detach() - t).abs() < width / 2).double()
    assert kernel[gate == 0].sum() > 0, "the window must reach below the threshold"
    l0 = gate.sum().item() / N_TOKENS
    gate_slope = 2 * weight * (l0 / target - 1) / target / N_TOKENS
    wanted = (a.grad * -(t / width) * kernel + gate_slope * -(1 / width) * kernel).sum(0)
    torch.testing.assert_close(step.gradients.pop("threshold"), wanted, rtol=1e-10, atol=1e-12)
    _assert_same(step.gradients, q)
    assert step.l0 == pytest.approx(l0)
    assert step.loss == pytest.approx(error.square().mean().item(), rel=1e-12)
    assert torch.equal(step.fired, (gate > 0).any(0))


def test_threshold_gradient_is_the_slope_of_the_smoothed_l0() -> None:
    """Without reconstruction error the estimate is d/dt of the penalty on kernel-averaged L0."""
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
    step = jumprelu_step(p, x, x, target_l0=target, l0_weight=weight, bandwidth=width)
    normal = torch.distributions.Normal(0.0, 1.0)

    def tail(at: float) -> float:
        return 1 - normal.cdf(torch.tensor(at)).item()

    density = (tail(t - width / 2) - tail(t + width / 2)) / width
    wanted = 2 * weight * (tail(t) / target - 1) / target * -density
    assert step.gradients["threshold"].item() == pytest.approx(wanted, rel=0.02)
