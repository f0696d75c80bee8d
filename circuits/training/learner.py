"""One dictionary in training: parameters, optimiser state and firing counts."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.dictionaries import SAE, Dictionary, Transcoder
from circuits.training.config import TrainingConfig
from circuits.training.initial import fire_at_rate, initial_parameters
from circuits.training.jumprelu import jumprelu_step
from circuits.training.scaling import Scaling, fit_scaling, fold
from circuits.training.step import Parameters, Step
from circuits.training.topk import topk_step

__all__ = ["Learner", "learning_rate"]

_START_RATE = 4
"""JumpReLU starts with this many times the wanted features a token."""
_INITIAL_TOKENS = 8192
_BETAS = (0.9, 0.999)


def learning_rate(step: int, n_steps: int, *, peak: float, warmup: float, decay: float) -> float:
    """Linear warm-up, a plateau, then linear decay towards 0 after the last step.

    Example:
        >>> [learning_rate(i, 4, peak=1.0, warmup=0.5, decay=0.5) for i in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    rising = (step + 1) / max(1.0, warmup * n_steps)
    falling = (n_steps - step) / max(1.0, decay * n_steps)
    return peak * min(1.0, rising, falling)


class Learner:
    """A dictionary that learns from batches of raw activations.

    Args:
        config: settings of the run.
        parameters: for scaled data.
        scaling: between raw and scaled data.
        site: `mlp` for a transcoder, else where the SAE sits.
    """

    def __init__(
        self, config: TrainingConfig, parameters: Parameters, scaling: Scaling, site: str
    ) -> None:
        self.parameters, self.scaling, self.site = parameters, scaling, site
        self._config = config
        d_out = parameters["b_dec"].shape[0]
        self._aux_k = config.aux_k or max(1, d_out // 2)
        self._moments = {
            f"{moment}.{name}": torch.zeros_like(tensor)
            for name, tensor in parameters.items()
            for moment in ("first", "second")
        }
        self._silent = torch.zeros_like(parameters["b_enc"], dtype=torch.int64)

    @classmethod
    def start(
        cls,
        config: TrainingConfig,
        site: str,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        *,
        seed: int,
    ) -> "Learner":
        """A dictionary at its first step, scaled to the raw activations `x` and `y`."""
        tied = site != "mlp"
        scaling = fit_scaling(x, y, tied=tied)
        few_x = scaling.inputs(x[:_INITIAL_TOKENS])
        few_y = scaling.targets(y[:_INITIAL_TOKENS])
        parameters = initial_parameters(
            few_x, few_y, config.n_features, tied=tied, skip=config.skip, seed=seed
        )
        if config.activation == "jumprelu":
            rate = min(0.5, _START_RATE * config.k / config.n_features)
            fire_at_rate(parameters, few_x, rate=rate, threshold=config.bandwidth)
            parameters["threshold"] = torch.full_like(parameters["b_enc"], config.bandwidth)
        return cls(config, parameters, scaling, site)

    @property
    def dead(self) -> Int[Tensor, " dead"]:
        """Features that have been silent for `dead_after_tokens`."""
        return (self._silent >= self._config.dead_after_tokens).nonzero().flatten()

    def learn(
        self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"], step: int
    ) -> Step:
        """Take optimiser step number `step` (from 0) on one batch of raw activations."""
        x, y = self.scaling.inputs(x.float()), self.scaling.targets(y.float())
        result = self._gradients(x, y, step)
        self._silent += len(x)
        self._silent[result.fired] = 0
        self._adam(result.gradients, step)
        if "threshold" in self.parameters:
            self.parameters["threshold"].clamp_min_(self._config.bandwidth / 2)
        return result

    def _gradients(self, x: Tensor, y: Tensor, step: int) -> Step:
        c = self._config
        if c.activation == "topk":
            return topk_step(
                self.parameters,
                x,
                y,
                k=c.k,
                dead=self.dead,
                aux_k=self._aux_k,
                aux_coefficient=c.aux_coefficient,
            )
        ramp = min(1.0, (step + 1) / max(1.0, c.l0_warmup * c.n_steps))
        return jumprelu_step(
            self.parameters,
            x,
            y,
            target_l0=float(c.k),
            l0_weight=c.l0_coefficient * y.shape[1] * ramp,
            bandwidth=c.bandwidth,
        )

    def _adam(self, gradients: Parameters, step: int) -> None:
        c = self._config
        rate = learning_rate(step, c.n_steps, peak=c.lr, warmup=c.warmup, decay=c.decay)
        names = list(self.parameters)
        # The function behind torch.optim.Adam(fused=True), without an optimiser's own state: what
        # a resumed run needs is all in `state`.
        torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
            [self.parameters[name] for name in names],
            [gradients[name] for name in names],
            [self._moments[f"first.{name}"] for name in names],
            [self._moments[f"second.{name}"] for name in names],
            [],
            [torch.tensor(float(step + 1), device=self._silent.device) for _ in names],
            lr=rate,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as named tensors."""
        scaling = {f"scaling.{name}": tensor for name, tensor in vars(self.scaling).items()}
        return {**self.parameters, **self._moments, **scaling, "silent": self._silent}

    @classmethod
    def from_state(
        cls, config: TrainingConfig, site: str, state: Mapping[str, Tensor]
    ) -> "Learner":
        """The learner that wrote `state`."""
        names = ("x_mean", "x_scale", "y_mean", "y_scale")
        scaling = Scaling(*(state[f"scaling.{name}"] for name in names))
        parameters = {n: t for n, t in state.items() if "." not in n and n != "silent"}
        learner = cls(config, parameters, scaling, site)
        learner._moments = {name: state[name] for name in learner._moments}
        learner._silent = state["silent"]
        return learner

    def dictionary(self) -> Dictionary:
        """The dictionary as it stands, for raw activations."""
        c = self._config
        tensors = fold(self.parameters, self.scaling)
        if c.activation == "jumprelu":
            tensors["threshold"] = self.parameters["threshold"].clone()
        k = c.k if c.activation == "topk" else None
        if self.site == "mlp":
            return Transcoder(**tensors, activation=c.activation, k=k)
        return SAE(**tensors, activation=c.activation, k=k, site=self.site)
