"""Ways to train a sparse dictionary, one file each, one shape of interface."""

from circuits.training.architectures.auxk import AuxK
from circuits.training.architectures.base import Architecture, Finished, Memory
from circuits.training.architectures.batchtopk import BatchTopK
from circuits.training.architectures.gated import Gated
from circuits.training.architectures.jumprelu import JumpReLU
from circuits.training.architectures.matryoshka import Matryoshka
from circuits.training.architectures.penalties import Penalty, PenaltyKind
from circuits.training.architectures.relu import ReLU
from circuits.training.architectures.tied import Tied
from circuits.training.architectures.topk import TopK
from circuits.training.config import DictionaryConfig

__all__ = ["Architecture", "Finished", "Memory", "architecture_of"]

_L0_TARGET_WEIGHT = 0.3


def architecture_of(config: DictionaryConfig, d_out: int) -> Architecture:
    """The architecture that `config` asks for, for targets of width `d_out`.

    Raises:
        ValueError: if it has no such penalty or constraint.
    """
    c = config
    if c.unit_decoder and c.architecture not in ("relu", "gated"):
        raise ValueError(
            f"unit_decoder is for relu and gated, got architecture {c.architecture!r}; leave it out"
        )
    aux = AuxK(c.aux_k or max(1, d_out // 2), c.aux_coefficient)
    start_rate = min(0.5, c.start_rate * c.k / c.n_features)
    match c.architecture:
        case "topk":
            return TopK(c.k, aux)
        case "batchtopk":
            return BatchTopK(c.k, aux)
        case "matryoshka":
            return Matryoshka(BatchTopK(c.k, aux), c.group_shares)
        case "relu":
            return ReLU(_penalty(c, "l1", unit=c.unit_decoder), c.bandwidth, start_rate)
        case "tied":
            return Tied(ReLU(_penalty(c, "l1", unit=True), c.bandwidth, start_rate))
        case "gated":
            return Gated(_penalty(c, "l1", unit=c.unit_decoder), start_rate)
        case "jumprelu":
            return JumpReLU(_penalty(c, "l0_target", unit=False), c.bandwidth, start_rate)


def _penalty(config: DictionaryConfig, usual: PenaltyKind, *, unit: bool) -> Penalty:
    kind = config.penalty or usual
    weight = config.penalty_weight
    if kind == "l0_target" and weight is None:
        weight = _L0_TARGET_WEIGHT
    return Penalty(kind, float(config.k), weight, unit_decoder=unit)
