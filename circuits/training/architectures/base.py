"""What every architecture has: a start, a step, constraints, and the dictionary it becomes."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.dictionaries import Activation
from circuits.training.entries import Entries
from circuits.training.step import Moment, Parameters, Step

__all__ = [
    "Architecture",
    "Code",
    "FeatureRule",
    "Finished",
    "Memory",
    "active_per_token",
    "affine_gradients",
    "feature_gradients",
    "gradients_of",
    "mean_square",
    "reconstruct",
    "step_by_rule",
    "step_of",
]

Memory = dict[str, Tensor]
"""What an architecture keeps between steps besides its parameters; saved with checkpoints."""


@dataclass(frozen=True)
class Finished:
    """A trained dictionary, still for scaled data.

    Args:
        parameters: `W_enc`, `W_dec`, `b_enc`, `b_dec` and where there is one `W_skip`, no others.
        activation: what the dictionary does with pre-activations.
        threshold: of JumpReLU.
        k: of TopK.
    """

    parameters: Parameters
    activation: Activation
    threshold: Float[Tensor, " feature"] | None = None
    k: int | None = None


@runtime_checkable
class Architecture(Protocol):
    """One way to train a sparse dictionary. Stateless: all that changes is in its arguments."""

    def begin(self, p: Parameters, memory: Memory, x: Float[Tensor, "token d_in"]) -> None:
        """Add this architecture's own parameters and memory; `x` are some scaled inputs."""
        ...

    def step(
        self,
        p: Parameters,
        memory: Memory,
        x: Float[Tensor, "token d_in"],
        y: Float[Tensor, "token d_out"],
        moment: Moment,
    ) -> Step:
        """Gradients of the loss on one batch of scaled data; may update `memory`, not `p`."""
        ...

    def constrain(self, p: Parameters) -> None:
        """Put parameters back where they must be, after an optimiser step."""
        ...

    def finish(self, p: Parameters, memory: Memory) -> Finished:
        """The dictionary as it stands."""
        ...


@dataclass(frozen=True)
class Code:
    """A batch in the features of a dictionary.

    Args:
        z: all pre-activations, in a buffer of the workspace.
        entries: those that matter.
        a: activation of every entry.
    """

    z: Float[Tensor, "token feature"]
    entries: Entries
    a: Tensor


@runtime_checkable
class FeatureRule(Protocol):
    """What an architecture does with features, whatever they write to: to one target, as in
    `step_by_rule`, or to those of several layers side by side.
    """

    def begin(self, p: Parameters, memory: Memory, x: Float[Tensor, "token d_in"]) -> None:
        """As `Architecture.begin`."""
        ...

    def encode(self, p: Parameters, x: Float[Tensor, "token d_in"], moment: Moment) -> Code:
        """Activations of a batch of scaled inputs."""
        ...

    def backward(
        self,
        p: Parameters,
        memory: Memory,
        x: Float[Tensor, "token d_in"],
        code: Code,
        error: Float[Tensor, "token d_out"],
        g_out: Float[Tensor, "token d_out"],
        moment: Moment,
    ) -> Parameters:
        """Gradients of all parameters of the features: all but `b_dec` and `W_skip`.

        Args:
            code: what `encode` gave.
            error: y_hat - y.
            g_out: d loss / d y_hat.
        """
        ...

    def constrain(self, p: Parameters) -> None:
        """As `Architecture.constrain`."""
        ...

    def finish(self, p: Parameters, memory: Memory) -> Finished:
        """As `Architecture.finish`."""
        ...


def step_by_rule(
    rule: FeatureRule,
    p: Parameters,
    memory: Memory,
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    moment: Moment,
) -> Step:
    """The step of a dictionary whose features follow `rule` and write to `y`."""
    code = rule.encode(p, x, moment)
    error = reconstruct(p, x, code.entries, code.a).sub_(y)
    buffer = moment.work.take("g_out", *error.shape, like=error)
    g_out = torch.mul(error, 2 / len(x), out=buffer)
    gradients = rule.backward(p, memory, x, code, error, g_out, moment)
    return step_of(gradients | affine_gradients(p, x, g_out), error, code.entries, code.a)


def reconstruct(
    p: Parameters, x: Float[Tensor, "token d_in"], entries: Entries, a: Tensor
) -> Float[Tensor, "token d_out"]:
    """`a W_dec + b_dec`, plus `x W_skip` where there is a skip."""
    y_hat = entries.decode(a, p["W_dec"]).add_(p["b_dec"])
    return y_hat.addmm_(x, p["W_skip"]) if "W_skip" in p else y_hat


def gradients_of(
    p: Parameters,
    x: Float[Tensor, "token d_in"],
    entries: Entries,
    a: Tensor,
    g_out: Float[Tensor, "token d_out"],
    g_z: Tensor,
) -> Parameters:
    """Gradients of the shared parameters, from those of the output and of the pre-activations.

    Args:
        a: activation of every entry.
        g_out: d loss / d y_hat.
        g_z: d loss / d pre-activation of every entry.
    """
    return feature_gradients(x, entries, a, g_out, g_z) | affine_gradients(p, x, g_out)


def feature_gradients(
    x: Float[Tensor, "token d_in"],
    entries: Entries,
    a: Tensor,
    g_out: Float[Tensor, "token d_out"],
    g_z: Tensor,
) -> Parameters:
    """Those of `W_enc`, `W_dec` and `b_enc`; arguments as for `gradients_of`."""
    g_dec, g_enc = entries.weight_gradients([(a, g_out), (g_z, x)])
    return {"W_enc": g_enc, "W_dec": g_dec, "b_enc": entries.sums(g_z)}


def affine_gradients(
    p: Parameters, x: Float[Tensor, "token d_in"], g_out: Float[Tensor, "token d_out"]
) -> Parameters:
    """Those of `b_dec` and, where there is one, `W_skip`."""
    bias = {"b_dec": g_out.sum(0)}
    return bias | {"W_skip": x.T @ g_out} if "W_skip" in p else bias


def active_per_token(a: Tensor, rows: Float[Tensor, "token _"]) -> float:
    """L0: how many entries of `a` are not 0, over the number of tokens, which are `rows`."""
    return torch.count_nonzero(a).item() / len(rows)


def step_of(
    gradients: Parameters, error: Float[Tensor, "token d_out"], entries: Entries, a: Tensor
) -> Step:
    """The step with its statistics."""
    return Step(gradients, mean_square(error), active_per_token(a, error), entries.fired(a))


def mean_square(error: Float[Tensor, "token d_out"]) -> float:
    """Mean squared error a dimension."""
    return torch.linalg.vector_norm(error).item() ** 2 / error.numel()
