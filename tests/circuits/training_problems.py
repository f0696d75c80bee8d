"""Random training problems, and reference losses of every architecture in plain autograd."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from circuits.training.config import DictionaryConfig
from circuits.training.learner import Learner
from circuits.training.step import Moment, Step

N_TOKENS, D_IN, D_OUT, N_FEATURES = 60, 5, 4, 20
NO_DEAD = torch.tensor([], dtype=torch.long)
DEAD = torch.tensor([1, 4, 7, 19])


def problem(
    seed: int, *, skip: bool, d_out: int = D_OUT
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Parameters, inputs and targets in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    p = {
        "W_enc": normal(N_FEATURES, D_IN),
        "W_dec": normal(N_FEATURES, d_out),
        "b_enc": normal(N_FEATURES),
        "b_dec": normal(d_out),
    }
    if skip:
        p["W_skip"] = normal(D_IN, d_out)
    return p, normal(N_TOKENS, D_IN), normal(N_TOKENS, d_out)


def moment(dead: Tensor = NO_DEAD, *, ramp: float = 1.0) -> Moment:
    return Moment(dead=dead, ramp=ramp)


def leaves(p: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone().requires_grad_() for name, tensor in p.items()}


def pre(q: dict[str, Tensor], x: Tensor) -> Tensor:
    return x @ q["W_enc"].T + q["b_enc"]


def output(q: dict[str, Tensor], a: Tensor, x: Tensor) -> Tensor:
    y = a @ q["W_dec"] + q["b_dec"]
    return y + x @ q["W_skip"] if "W_skip" in q else y


def squared(error: Tensor) -> Tensor:
    """Mean over tokens of the squared norm."""
    return error.square().sum(1).mean()


def l1(q: dict[str, Tensor], a: Tensor) -> Tensor:
    """The norm-weighted L1 penalty of weight 1."""
    return (a * q["W_dec"].norm(dim=1)).sum(1).mean() * q["W_dec"].shape[1] ** 0.5


def rectangle(u: Tensor) -> Tensor:
    return (u.abs() < 0.5).to(u.dtype)


def auxk_loss(q: dict[str, Tensor], z: Tensor, error: Tensor, k: int, coefficient: float) -> Tensor:
    """AuxK over `DEAD`; `error` is y - y_hat."""
    few = z[:, DEAD].topk(min(k, len(DEAD)), dim=1)
    a = torch.zeros_like(z[:, DEAD]).scatter(1, few.indices, few.values.relu())
    return coefficient * min(len(DEAD) / k, 1) * squared(a @ q["W_dec"][DEAD] - error.detach())


def batchtopk(z: Tensor, n: int) -> Tensor:
    cut = z.flatten().sort(descending=True).values[n - 1]
    return z.relu() * (z >= cut)


def prefix_loss(
    q: dict[str, Tensor], a: Tensor, x: Tensor, y: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Mean over nested prefixes of the features of the squared error."""
    errors = []
    for stop in accumulate(sizes):
        inside = torch.arange(a.shape[1]) < stop
        errors.append(squared(output(q, a * inside, x) - y))
    return torch.stack(errors).mean()


def sparse_data(n: int, d: int, n_true: int, active: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sums of about `active` of `n_true` directions, and the directions."""
    generator = torch.Generator().manual_seed(seed)
    atoms = F.normalize(torch.randn(n_true, d, generator=generator), dim=1)
    on = torch.rand(n, n_true, generator=generator) < active / n_true
    return (on * (torch.rand(n, n_true, generator=generator) + 0.5)) @ atoms, atoms


def learn(
    config: DictionaryConfig, site: str, x: Tensor, y: Tensor, n_steps: int | None = None
) -> tuple[Learner, list[Step]]:
    """A learner after some steps (all of them unless told) on cyclic batches, and its steps."""
    learner = Learner.start(config, site, x, y, seed=config.seed)
    steps = []
    with torch.no_grad():
        for number in range(config.n_steps if n_steps is None else n_steps):
            rows = torch.arange(config.batch_size) + number * config.batch_size
            steps.append(learner.learn(x[rows % len(x)], y[rows % len(x)], number))
    return learner, steps
