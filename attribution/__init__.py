"""What explains: the frozen linear pass, edges and their factors, influence, attention scores, and
what weights alone say: virtual weights, de-embedding, pullbacks, logit attribution.

Names load on first use, so that `import attribution` is free.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attribution.edges import EdgeBlock, Edges
    from attribution.effects.agreement import Agreement, measure_agreement
    from attribution.effects.causal import (
        CausalCheck,
        ablations,
        check_predictions,
        sample_ablations,
    )
    from attribution.effects.influence import absolute_influence, leaf_sources, signed_influence
    from attribution.effects.paths import Path, TopPaths, top_paths
    from attribution.engine import attribute, attribute_batch
    from attribution.factors import EdgeFactors, PathFactors, PathSplit, factorise, split_by_path
    from attribution.invariant.deembedding import (
        deembed,
        deembed_feature,
        deembed_feature_through_head,
    )
    from attribution.invariant.expected import ExpectedAttribution, expected_attribution
    from attribution.invariant.extended import (
        deembed_feature_extended,
        extended_embedding,
        standardise_rows,
    )
    from attribution.invariant.logits import direct_logit_attribution, promoted_and_suppressed
    from attribution.invariant.null import (
        Significance,
        isotropic_significance,
        matched_significance,
    )
    from attribution.invariant.pullbacks import pullback, pullback_on_prompt, top_pullback
    from attribution.invariant.strongest import (
        TopSources,
        WeightPairs,
        top_sources,
        top_virtual_weights,
    )
    from attribution.invariant.weights import virtual_weights
    from attribution.nodes import Node, NodeTable
    from attribution.qk.held import hold_attention
    from attribution.qk.results import AttentionContrast, AttentionRow, AttentionScore
    from attribution.qk.scores import attention_contrast, attention_row, attention_score, score_at
    from attribution.qk.weights import FeaturePairs, qk_virtual_weights, top_qk_virtual_weights
    from attribution.targets import (
        DirectionTarget,
        FeatureTarget,
        LogitDifference,
        ProbabilityDifference,
        Target,
        TopLogits,
    )
    from attribution.trace import Trace

__all__ = [
    "Agreement",
    "AttentionContrast",
    "AttentionRow",
    "AttentionScore",
    "CausalCheck",
    "DirectionTarget",
    "EdgeBlock",
    "EdgeFactors",
    "Edges",
    "ExpectedAttribution",
    "FeaturePairs",
    "FeatureTarget",
    "LogitDifference",
    "Node",
    "NodeTable",
    "Path",
    "PathFactors",
    "PathSplit",
    "ProbabilityDifference",
    "Significance",
    "Target",
    "TopLogits",
    "TopPaths",
    "TopSources",
    "Trace",
    "WeightPairs",
    "ablations",
    "absolute_influence",
    "attention_contrast",
    "attention_row",
    "attention_score",
    "attribute",
    "attribute_batch",
    "check_predictions",
    "deembed",
    "deembed_feature",
    "deembed_feature_extended",
    "deembed_feature_through_head",
    "direct_logit_attribution",
    "expected_attribution",
    "extended_embedding",
    "factorise",
    "hold_attention",
    "isotropic_significance",
    "leaf_sources",
    "matched_significance",
    "measure_agreement",
    "promoted_and_suppressed",
    "pullback",
    "pullback_on_prompt",
    "qk_virtual_weights",
    "sample_ablations",
    "score_at",
    "signed_influence",
    "split_by_path",
    "standardise_rows",
    "top_paths",
    "top_pullback",
    "top_qk_virtual_weights",
    "top_sources",
    "top_virtual_weights",
    "virtual_weights",
]

_HOME = {
    "Agreement": "effects.agreement",
    "AttentionContrast": "qk.results",
    "AttentionRow": "qk.results",
    "AttentionScore": "qk.results",
    "CausalCheck": "effects.causal",
    "DirectionTarget": "targets",
    "EdgeBlock": "edges",
    "EdgeFactors": "factors",
    "Edges": "edges",
    "ExpectedAttribution": "invariant.expected",
    "FeaturePairs": "qk.weights",
    "FeatureTarget": "targets",
    "LogitDifference": "targets",
    "Node": "nodes",
    "NodeTable": "nodes",
    "Path": "effects.paths",
    "PathFactors": "factors",
    "PathSplit": "factors",
    "ProbabilityDifference": "targets",
    "Significance": "invariant.null",
    "Target": "targets",
    "TopLogits": "targets",
    "TopPaths": "effects.paths",
    "TopSources": "invariant.strongest",
    "Trace": "trace",
    "WeightPairs": "invariant.strongest",
    "ablations": "effects.causal",
    "absolute_influence": "effects.influence",
    "attention_contrast": "qk.scores",
    "attention_row": "qk.scores",
    "attention_score": "qk.scores",
    "attribute": "engine",
    "attribute_batch": "engine",
    "check_predictions": "effects.causal",
    "deembed": "invariant.deembedding",
    "deembed_feature": "invariant.deembedding",
    "deembed_feature_extended": "invariant.extended",
    "deembed_feature_through_head": "invariant.deembedding",
    "direct_logit_attribution": "invariant.logits",
    "expected_attribution": "invariant.expected",
    "extended_embedding": "invariant.extended",
    "factorise": "factors",
    "hold_attention": "qk.held",
    "isotropic_significance": "invariant.null",
    "leaf_sources": "effects.influence",
    "matched_significance": "invariant.null",
    "measure_agreement": "effects.agreement",
    "promoted_and_suppressed": "invariant.logits",
    "pullback": "invariant.pullbacks",
    "pullback_on_prompt": "invariant.pullbacks",
    "qk_virtual_weights": "qk.weights",
    "sample_ablations": "effects.causal",
    "score_at": "qk.scores",
    "signed_influence": "effects.influence",
    "split_by_path": "factors",
    "standardise_rows": "invariant.extended",
    "top_paths": "effects.paths",
    "top_pullback": "invariant.pullbacks",
    "top_qk_virtual_weights": "qk.weights",
    "top_sources": "invariant.strongest",
    "top_virtual_weights": "invariant.strongest",
    "virtual_weights": "invariant.weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'attribution' has no attribute {name!r}")
    return getattr(importlib.import_module(f"attribution.{_HOME[name]}"), name)
