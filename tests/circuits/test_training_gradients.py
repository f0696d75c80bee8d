"""Hand-written gradients of every architecture against autograd of its loss, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from circuits.activations import topk
from circuits.training import entries
from circuits.training.architectures import Architecture
from circuits.training.architectures.auxk import AuxK
from circuits.training.architectures.batchtopk import BatchTopK
from circuits.training.architectures.gated import Gated
from circuits.training.architectures.jumprelu import JumpReLU
from circuits.training.architectures.matryoshka import Matryoshka
from circuits.training.architectures.penalties import Penalty, PenaltyKind
from circuits.training.architectures.relu import ReLU
from circuits.training.architectures.tied import Tied
from circuits.training.architectures.topk import TopK
from circuits.training.step import Step
from tests.circuits.training_problems import (
    D_IN,
    D_OUT,
    DEAD,
    N_FEATURES,
    N_TOKENS,
    auxk_loss,
    batchtopk,
    l1,
    leaves,
    moment,
    output,
    pre,
    prefix_loss,
    problem,
    rectangle,
    squared,
)

Q = dict[str, Tensor]
WEIGHT, K, WIDTH = 0.7, 3.0, 0.3


@pytest.fixture(params=[0.0, 2.0], ids=["dense", "sparse"], autouse=True)
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(entries.DENSE_SHARE, "cpu", request.param)


both = pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])


def _penalty(kind: PenaltyKind, *, unit: bool = False) -> Penalty:
    return Penalty(kind, K, WEIGHT, unit_decoder=unit)


def _check(step: Step, q: Q, loss: Tensor, error: Tensor, a: Tensor) -> None:
    """The step's gradients are those of `loss`, and its statistics those of `error` and `a`."""
    loss.backward()
    assert step.gradients.keys() == q.keys()
    for name, leaf in q.items():
        wanted = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(
            step.gradients[name], wanted, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert step.loss == pytest.approx(error.square().mean().item(), rel=1e-12)
    assert step.l0 == pytest.approx((a > 0).sum().item() / N_TOKENS)
    assert torch.equal(step.fired, (a > 0).any(0))


@both
def test_topk(skip: bool) -> None:
    p, x, y = problem(0, skip=skip)
    step = TopK(3, AuxK(2, 1.0)).step(p, {}, x, y, moment())
    q = leaves(p)
    a = topk(pre(q, x), 3)
    error = output(q, a, x) - y
    _check(step, q, squared(error), error, a)


def _batchtopk(aux: AuxK) -> tuple[BatchTopK, dict[str, Tensor]]:
    architecture, memory = BatchTopK(3, aux), {}
    p, x, _ = problem(0, skip=False)
    architecture.begin(p, memory, x)
    return architecture, memory


@both
def test_batchtopk(skip: bool) -> None:
    p, x, y = problem(1, skip=skip)
    architecture, memory = _batchtopk(AuxK(2, 1.0))
    step = architecture.step(p, memory, x, y, moment())
    q = leaves(p)
    a = batchtopk(pre(q, x), 3 * N_TOKENS)
    error = output(q, a, x) - y
    _check(step, q, squared(error), error, a)
    assert step.l0 == 3


@both
@pytest.mark.parametrize("shares", [(1.0,), (0.1, 0.4, 0.5)])
def test_matryoshka(skip: bool, shares: tuple[float, ...]) -> None:
    p, x, y = problem(2, skip=skip)
    whole, memory = _batchtopk(AuxK(2, 1.0))
    step = Matryoshka(whole, shares).step(p, memory, x, y, moment())
    q = leaves(p)
    a = batchtopk(pre(q, x), 3 * N_TOKENS)
    sizes = [round(share * N_FEATURES) for share in shares]
    _check(step, q, prefix_loss(q, a, x, y, sizes), output(q, a, x) - y, a)


@both
@pytest.mark.parametrize("aux_k", [2, 50])
@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_auxk_reaches_the_encoders_of_the_dead_and_nothing_of_the_living(
    name: str, aux_k: int, skip: bool
) -> None:
    p, x, y = problem(3, skip=skip)

    def step_with(coefficient: float) -> Step:
        whole, memory = _batchtopk(AuxK(aux_k, coefficient))
        kinds: dict[str, Architecture] = {
            "topk": TopK(3, whole.aux),
            "batchtopk": whole,
            "matryoshka": Matryoshka(whole, (0.25, 0.75)),
        }
        return kinds[name].step(p, memory, x, y, moment(DEAD))

    step, plain = step_with(0.5), step_with(0.0)
    q = leaves(p)
    z = pre(q, x)
    a = topk(z, 3) if name == "topk" else batchtopk(z, 3 * N_TOKENS)
    error = output(q, a, x) - y
    loss = squared(error)
    if name == "matryoshka":
        loss = prefix_loss(q, a, x, y, [5, 15])
    _check(step, q, loss + auxk_loss(q, z, -error, aux_k, 0.5), error, a)
    living = torch.ones(N_FEATURES, dtype=torch.bool).index_fill(0, DEAD, False)
    for which in ("W_enc", "W_dec", "b_enc"):
        moved = (step.gradients[which] - plain.gradients[which]).abs().reshape(N_FEATURES, -1)
        assert (moved[DEAD].sum(1) > 0).any()
        assert moved[living].max() == 0
    assert torch.equal(step.gradients["b_dec"], plain.gradients["b_dec"])


@both
def test_relu_with_norm_weighted_l1(skip: bool) -> None:
    p, x, y = problem(4, skip=skip)
    step = ReLU(_penalty("l1"), WIDTH, 0.5).step(p, {}, x, y, moment(ramp=0.5))
    q = leaves(p)
    a = pre(q, x).relu()
    error = output(q, a, x) - y
    _check(step, q, squared(error) + 0.5 * WEIGHT * l1(q, a), error, a)


@both
@pytest.mark.parametrize("name", ["relu", "gated"])
def test_a_unit_decoder_has_plain_l1_and_no_gradient_along_its_rows(name: str, skip: bool) -> None:
    p, x, y = problem(5, skip=skip)
    p["W_dec"] = F.normalize(p["W_dec"], dim=1)
    penalty = _penalty("l1", unit=True)
    architecture = ReLU(penalty, WIDTH, 0.5)
    if name == "gated":
        architecture, p = Gated(penalty, 0.5), p | _gate(6)
    step = architecture.step(p, {}, x, y, moment())
    q = leaves(p)
    a, weighed, extra = pre(q, x).relu(), pre(q, x).relu(), torch.tensor(0.0)
    if name == "gated":
        a, weighed, extra = _gated(q, x, y)
    error = output(q, a, x) - y
    loss = squared(error) + extra + WEIGHT * D_OUT**0.5 * weighed.sum(1).mean()
    grad = torch.autograd.grad(loss, q["W_dec"], retain_graph=True)[0]
    along = (grad * p["W_dec"]).sum(1, keepdim=True)
    assert along.abs().max() > 0.1
    torch.testing.assert_close(
        step.gradients["W_dec"], grad - along * p["W_dec"], rtol=1e-10, atol=1e-12
    )
    q["W_dec"].requires_grad_(False)
    step.gradients["W_dec"] = torch.zeros_like(p["W_dec"])
    _check(step, q, loss, error, a)


@both
@pytest.mark.parametrize("kind", ["l0", "l0_target"])
def test_relu_with_a_straight_through_step_of_l0(skip: bool, kind: PenaltyKind) -> None:
    p, x, y = problem(6, skip=skip)
    step = ReLU(_penalty(kind), WIDTH, 0.5).step(p, {}, x, y, moment())
    q = leaves(p)
    z = pre(q, x)
    kernel = rectangle(z / WIDTH).detach() / WIDTH
    assert (kernel * (z < 0)).sum() > 0, "the window must reach below 0"
    l0 = ((z > 0) + kernel * (z - z.detach())).sum(1).mean()
    penalty = WEIGHT * D_OUT * (l0 if kind == "l0" else (l0 / K - 1) ** 2)
    error = output(q, z.relu(), x) - y
    _check(step, q, squared(error) + penalty, error, z.relu())


@both
@pytest.mark.parametrize("kind", ["l0", "l0_target", "l1"])
def test_jumprelu(skip: bool, kind: PenaltyKind) -> None:
    p, x, y = problem(7, skip=skip)
    p["threshold"] = 0.5 + p["b_enc"].abs()
    step = JumpReLU(_penalty(kind), WIDTH, 0.5).step(p, {}, x, y, moment())
    q = leaves(p)
    z, t = pre(q, x), q["threshold"]
    gate = (z > t).double()
    kernel = rectangle((z - t) / WIDTH).detach() / -WIDTH
    assert (kernel * (z < t)).sum() < 0, "the window must reach below the threshold"
    steps = kernel * (t - t.detach())  # 0, with the slope of the gate in the threshold
    a = z * gate + t.detach() * steps
    l0 = (gate + steps).sum(1).mean()
    penalty = {"l1": l1(q, a), "l0": D_OUT * l0, "l0_target": D_OUT * (l0 / K - 1) ** 2}[kind]
    error = output(q, a, x) - y
    _check(step, q, squared(error) + WEIGHT * penalty, error, a)


def _gate(seed: int) -> Q:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, N_FEATURES, generator=generator, dtype=torch.float64)
    return {"b_mag": values[0], "r": 0.3 * values[1]}


def _gated(q: Q, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Activations, what the penalty weighs, and the auxiliary loss."""
    pi = pre(q, x)
    a = (pi > 0) * ((x @ q["W_enc"].T) * q["r"].exp() + q["b_mag"]).relu()
    frozen = {name: tensor.detach() for name, tensor in q.items()}
    return a, pi.relu(), squared(output(frozen, pi.relu(), x) - y)


@both
def test_gated_with_its_auxiliary_decoder_frozen(skip: bool) -> None:
    p, x, y = problem(8, skip=skip)
    p |= _gate(8)
    step = Gated(_penalty("l1"), 0.5).step(p, {}, x, y, moment())
    q = leaves(p)
    a, weighed, auxiliary = _gated(q, x, y)
    error = output(q, a, x) - y
    assert ((weighed > 0) & (a == 0)).any(), "some features must be open with magnitude 0"
    frozen = {"W_dec": q["W_dec"].detach()}
    _check(step, q, squared(error) + auxiliary + WEIGHT * l1(frozen, weighed), error, a)


def test_tied_through_the_normalisation() -> None:
    p, x, _ = problem(9, skip=False, d_out=D_IN)
    p = {"W_enc": p["W_enc"], "b_enc": p["b_enc"], "b_dec": torch.zeros_like(p["b_dec"])}
    step = Tied(ReLU(_penalty("l1", unit=True), WIDTH, 0.5)).step(p, {}, x, x, moment())
    q = leaves(p)
    m = F.normalize(q["W_enc"], dim=1)
    a = (x @ m.T + q["b_enc"]).relu()
    error = a @ m - x
    _check(step, q, squared(error) + WEIGHT * D_IN**0.5 * a.sum(1).mean(), error, a)
    assert step.gradients["b_dec"].abs().max() == 0
