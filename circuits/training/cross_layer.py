"""Cross-layer transcoders in training: all layers of a run as one learner."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.conventions import NATIVE
from circuits.dictionaries import CrossLayerTranscoder, Dictionary
from circuits.training.architectures import Architecture, architecture_of
from circuits.training.architectures.base import FeatureRule
from circuits.training.architectures.cross_layer import CrossLayer, pack, unpack
from circuits.training.config import DictionaryConfig
from circuits.training.initial import initial_parameters
from circuits.training.learner import Learner
from circuits.training.places import CROSS_LAYER
from circuits.training.scaling import Scaling, fit_scaling, fold
from circuits.training.step import Parameters, Step

__all__ = ["CrossLayerLearner", "fold_layers", "learner_class"]


class CrossLayerLearner(Learner):
    """A cross-layer transcoder that learns from the activations of all its layers.

    Batches are [token, layer, d]. Each layer's target is scaled by a number of its own, so that
    the loss of a step is the mean of the layers' FVU; its L0 is a mean over layers too.
    """

    @classmethod
    def _scaling(
        cls, x: Float[Tensor, "token layer d"], y: Float[Tensor, "token layer d"], site: str
    ) -> Scaling:
        each = [fit_scaling(x[:, i], y[:, i], tied=False) for i in range(x.shape[1])]
        return Scaling(**{name: _joined(each, name) for name in vars(each[0])})

    @classmethod
    def _initial(
        cls,
        config: DictionaryConfig,
        site: str,
        x: Float[Tensor, "token layer d"],
        y: Float[Tensor, "token layer d"],
        seed: int,
    ) -> Parameters:
        n_layers, d = y.shape[1:]
        parts = []
        for i in range(n_layers):
            part = initial_parameters(
                x[:, i], d, config.n_features, tied=False, skip=config.skip, seed=seed + i
            )
            W_dec = part["W_dec"].new_zeros(config.n_features, (n_layers - i) * d)
            parts.append(part | {"W_dec": W_dec})
        return pack(parts)

    @classmethod
    def _architecture_of(cls, config: DictionaryConfig, p: Parameters) -> Architecture:
        rule = architecture_of(config, p["W_enc"].shape[1])
        if not isinstance(rule, FeatureRule):
            raise ValueError(
                "cross-layer transcoders train with the architecture topk or jumprelu, got "
                f"{config.architecture!r}"
            )
        return CrossLayer(rule)

    def learn(
        self,
        inputs: Float[Tensor, "token layer d"],
        targets: Float[Tensor, "token layer d"],
        step: int,
    ) -> Step:
        """As `Learner.learn`."""
        return super().learn(inputs.flatten(1), targets.flatten(1), step)

    def dictionaries(self) -> list[Dictionary]:
        """The transcoders of all layers, from the lowest, for raw activations."""
        finished = self._architecture.finish(self.parameters, self.memory)
        parts = unpack(finished.parameters)
        tensors = fold_layers(parts, self.scaling)
        if finished.threshold is not None:
            for each, threshold in zip(tensors, finished.threshold.chunk(len(parts)), strict=True):
                each["threshold"] = threshold.clone()
        return [
            CrossLayerTranscoder(
                **each, activation=finished.activation, k=finished.k, convention=NATIVE
            )
            for each in tensors
        ]


def _joined(scalings: Sequence[Scaling], name: str) -> Tensor:
    return torch.cat([getattr(scaling, name) for scaling in scalings])


def fold_layers(parts: Sequence[Parameters], scaling: Scaling) -> list[dict[str, Tensor]]:
    """Tensors of a `CrossLayerTranscoder` a layer, that do on raw data what `parts` do on scaled.

    Args:
        parts: each layer's parameters, as `unpack` gives them.
        scaling: of all layers side by side.
    """
    d, folded = len(parts[0]["b_dec"]), []
    for i, part in enumerate(parts):
        own = {name: tensor[i * d : (i + 1) * d] for name, tensor in vars(scaling).items()}
        W_dec = (part["W_dec"].double() / scaling.y_scale[i * d :].double()).float()
        folded.append(
            fold(part | {"W_dec": part["W_dec"][:, :d]}, Scaling(**own))
            | {"W_dec": W_dec.view(len(W_dec), -1, d)}
        )
    return folded


def learner_class(kind: str) -> type[Learner]:
    """What trains dictionaries at a kind of site."""
    return CrossLayerLearner if kind == CROSS_LAYER else Learner
