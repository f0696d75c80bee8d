"""What explains: the frozen linear pass, edges, virtual weights, de-embedding, logit attribution.

Names load on first use, so that `import attribution` is free.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attribution.deembedding import deembed, deembed_feature
    from attribution.engine import attribute
    from attribution.logits import direct_logit_attribution, promoted_and_suppressed
    from attribution.nodes import Node, NodeTable
    from attribution.targets import (
        DirectionTarget,
        FeatureTarget,
        LogitDifference,
        ProbabilityDifference,
        Target,
        TopLogits,
    )
    from attribution.trace import Trace
    from attribution.weights import virtual_weights

__all__ = [
    "DirectionTarget",
    "FeatureTarget",
    "LogitDifference",
    "Node",
    "NodeTable",
    "ProbabilityDifference",
    "Target",
    "TopLogits",
    "Trace",
    "attribute",
    "deembed",
    "deembed_feature",
    "direct_logit_attribution",
    "promoted_and_suppressed",
    "virtual_weights",
]

_HOME = {
    "DirectionTarget": "targets",
    "FeatureTarget": "targets",
    "LogitDifference": "targets",
    "Node": "nodes",
    "NodeTable": "nodes",
    "ProbabilityDifference": "targets",
    "Target": "targets",
    "TopLogits": "targets",
    "Trace": "trace",
    "attribute": "engine",
    "deembed": "deembedding",
    "deembed_feature": "deembedding",
    "direct_logit_attribution": "logits",
    "promoted_and_suppressed": "logits",
    "virtual_weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'attribution' has no attribute {name!r}")
    return getattr(importlib.import_module(f"attribution.{_HOME[name]}"), name)
