"""One dictionary in training: parameters, optimiser state and firing counts."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.conventions import NATIVE
from circuits.dictionaries import SAE, Dictionary, Transcoder
from circuits.training.architectures import Architecture, architecture_of
from circuits.training.config import DictionaryConfig
from circuits.training.initial import initial_parameters
from circuits.training.places import CROSS_LAYER
from circuits.training.processes import ALONE, Processes
from circuits.training.scaling import Scaling, fit_scaling, fold
from circuits.training.step import Moment, Parameters, Step, Workspace

__all__ = ["Learner", "learning_rate"]

_INITIAL_TOKENS = 8192
_BETAS = (0.9, 0.999)
_MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq"}


def learning_rate(step: int, n_steps: int, *, peak: float, warmup: float, decay: float) -> float:
    """Linear warm-up, a plateau, then linear decay towards 0 after the last step.

    Example:
        >>> [learning_rate(i, 4, peak=1.0, warmup=0.5, decay=0.5) for i in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    rising = (step + 1) / max(1.0, warmup * n_steps)
    falling = (n_steps - step) / max(1.0, decay * n_steps)
    return peak * min(1.0, rising, falling)


def _clip(gradients: list[Tensor], largest: float) -> None:
    """Shrink the gradients of a step to the norm `largest` if theirs, taken together, is larger."""
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if norm > largest:
        for gradient in gradients:
            gradient.mul_(largest / norm)


def _of_whole_batch(step: Step, processes: Processes) -> Step:
    """The step of a batch from those that every process took on its share; gradients in place."""
    if processes.size == 1:
        return step
    fired = step.fired.to(torch.float32)
    numbers = torch.cat([fired.new_tensor([step.loss, step.l0]), fired])
    processes.average([*step.gradients.values(), numbers])
    loss, l0 = numbers[:2].tolist()
    return replace(step, loss=loss, l0=l0, fired=numbers[2:] > 0)


def _tied(site: str) -> bool:
    """Whether the dictionaries of a kind of site are SAEs, whose target is their input."""
    return site not in ("mlp", CROSS_LAYER)


class Learner:
    """A dictionary that learns from batches of raw activations.

    Args:
        config: settings of the dictionary.
        parameters: for scaled data.
        memory: what its architecture keeps besides them.
        scaling: between raw and scaled data.
        site: `mlp` for a transcoder, else where the SAE sits (see also `CrossLayerLearner`).
        work: buffers shared with other learners.
        processes: that learn together, each from its share of a batch.
    """

    def __init__(
        self,
        config: DictionaryConfig,
        parameters: Parameters,
        memory: dict[str, Tensor],
        scaling: Scaling,
        site: str,
        *,
        work: Workspace | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.parameters, self.memory, self.scaling = parameters, memory, scaling
        self.site, self.config, self._processes = site, config, processes
        self._work = work or Workspace()
        self._architecture = self._architecture_of(config, parameters)
        self._leaves = {name: torch.nn.Parameter(t) for name, t in parameters.items()}
        self._adam = torch.optim.Adam(
            list(self._leaves.values()), lr=config.lr, betas=_BETAS, fused=True
        )
        for leaf in self._leaves.values():
            self._adam.state[leaf] = {
                "step": torch.zeros((), dtype=torch.float32, device=leaf.device),
                "exp_avg": torch.zeros_like(leaf),
                "exp_avg_sq": torch.zeros_like(leaf),
            }
        self._silent = torch.zeros_like(parameters["b_enc"], dtype=torch.int64)

    @classmethod
    def start(
        cls,
        config: DictionaryConfig,
        site: str,
        x: Float[Tensor, "token ..."],
        y: Float[Tensor, "token ..."],
        *,
        seed: int,
        work: Workspace | None = None,
        processes: Processes = ALONE,
    ) -> "Learner":
        """A dictionary at its first step, scaled to the raw activations `x` and `y`."""
        scaling = cls._scaling(x, y, site)
        parameters = cls._initial(config, site, x, y, seed)
        few = scaling.inputs(x[:_INITIAL_TOKENS].flatten(1).float())
        memory: dict[str, Tensor] = {}
        cls._architecture_of(config, parameters).begin(parameters, memory, few)
        return cls(config, parameters, memory, scaling, site, work=work, processes=processes)

    @classmethod
    def _scaling(
        cls, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"], site: str
    ) -> Scaling:
        return fit_scaling(x, y, tied=_tied(site))

    @classmethod
    def _initial(
        cls,
        config: DictionaryConfig,
        site: str,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        seed: int,
    ) -> Parameters:
        return initial_parameters(
            x, y.shape[1], config.n_features, tied=_tied(site), skip=config.skip, seed=seed
        )

    @classmethod
    def _architecture_of(cls, config: DictionaryConfig, p: Parameters) -> Architecture:
        return architecture_of(config, len(p["b_dec"]))

    @property
    def dead(self) -> Int[Tensor, " dead"]:
        """Features that have been silent for `dead_after_tokens`."""
        return (self._silent >= self.config.dead_after_tokens).nonzero().flatten()

    def learn(
        self,
        inputs: Float[Tensor, "token d_in"],
        targets: Float[Tensor, "token d_out"],
        step: int,
    ) -> Step:
        """Take optimiser step number `step` (from 0) on one batch of raw activations.

        With several processes these are this one's share, and what comes back is of all of them.
        """
        c = self.config
        scaled = self._work.take("x", *inputs.shape, like=self._silent, dtype=torch.float32)
        x = y = self.scaling.inputs(inputs, out=scaled)
        if not _tied(self.site):
            scaled = self._work.take("y", *targets.shape, like=self._silent, dtype=torch.float32)
            y = self.scaling.targets(targets, out=scaled)
        moment = Moment(
            dead=self.dead,
            ramp=min(1.0, (step + 1) / max(1.0, c.penalty_warmup * c.n_steps)),
            work=self._work,
            encode_dtype=torch.bfloat16 if c.encode_dtype == "bfloat16" else None,
            mean=self._processes.mean,
        )
        result = self._architecture.step(self.parameters, self.memory, x, y, moment)
        result = _of_whole_batch(result, self._processes)
        self._silent.add_(len(x) * self._processes.size).masked_fill_(result.fired, 0)
        self._descend(result.gradients, step)
        self._architecture.constrain(self.parameters)
        return result

    def _descend(self, gradients: Parameters, step: int) -> None:
        """One Adam step, with gradients clipped to the configured norm."""
        c = self.config
        rate = learning_rate(step, c.n_steps, peak=c.lr, warmup=c.warmup, decay=c.decay)
        self._adam.param_groups[0]["lr"] = rate
        for name, leaf in self._leaves.items():
            leaf.grad = gradients[name]
            self._adam.state[leaf]["step"].fill_(step)
        if c.clip_norm is not None:
            _clip(list(gradients.values()), c.clip_norm)
        self._adam.step()
        self._adam.zero_grad()

    def agree(self) -> None:
        """Take over the state of the first process, where there are several."""
        self._processes.spread([(0, tensor) for tensor in self.state().values()])

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as named tensors."""
        moments = {
            f"{short}.{name}": self._adam.state[leaf][key]
            for name, leaf in self._leaves.items()
            for short, key in _MOMENTS.items()
        }
        memory = {f"memory.{name}": tensor for name, tensor in self.memory.items()}
        scaling = {f"scaling.{name}": tensor for name, tensor in vars(self.scaling).items()}
        return {**self.parameters, **moments, **memory, **scaling, "silent": self._silent}

    @classmethod
    def from_state(
        cls,
        config: DictionaryConfig,
        site: str,
        state: Mapping[str, Tensor],
        *,
        work: Workspace | None = None,
        processes: Processes = ALONE,
    ) -> "Learner":
        """The learner that wrote `state`."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}

        parameters = {n: t for n, t in state.items() if "." not in n and n != "silent"}
        scaling = Scaling(**under("scaling."))
        learner = cls(
            config, parameters, under("memory."), scaling, site, work=work, processes=processes
        )
        for short, key in _MOMENTS.items():
            for name, moment in under(f"{short}.").items():
                learner._adam.state[learner._leaves[name]][key] = moment
        learner._silent = state["silent"]
        return learner

    def dictionaries(self) -> list[Dictionary]:
        """What this has learned, one dictionary a layer."""
        return [self.dictionary()]

    def dictionary(self) -> Dictionary:
        """The dictionary as it stands, for raw activations."""
        finished = self._architecture.finish(self.parameters, self.memory)
        tensors = fold(finished.parameters, self.scaling)
        if finished.threshold is not None:
            tensors["threshold"] = finished.threshold.clone()
        activation, k = finished.activation, finished.k
        if self.site == "mlp":
            return Transcoder(**tensors, activation=activation, k=k, convention=NATIVE)
        return SAE(**tensors, activation=activation, k=k, convention=NATIVE, site=self.site)
