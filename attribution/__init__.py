"""What explains: the frozen linear pass, edges and their factors, influence, attention scores, and
what weights alone say: virtual weights, de-embedding, pullbacks, logit attribution.

Names load on first use, so that `import attribution` is free.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attribution.agreement import Agreement, measure_agreement
    from attribution.attention import attention_contrast, attention_row, attention_score, score_at
    from attribution.attention_held import hold_attention
    from attribution.attention_results import AttentionContrast, AttentionRow, AttentionScore
    from attribution.attention_weights import (
        FeaturePairs,
        qk_virtual_weights,
        top_qk_virtual_weights,
    )
    from attribution.causal import CausalCheck, ablations, check_predictions, sample_ablations
    from attribution.deembedding import deembed, deembed_feature, deembed_feature_through_head
    from attribution.edges import EdgeBlock, Edges
    from attribution.engine import attribute, attribute_batch
    from attribution.expected import ExpectedAttribution, expected_attribution
    from attribution.extended import deembed_feature_extended, extended_embedding, standardise_rows
    from attribution.factors import EdgeFactors, PathFactors, PathSplit, factorise, split_by_path
    from attribution.influence import absolute_influence, leaf_sources, signed_influence
    from attribution.logits import direct_logit_attribution, promoted_and_suppressed
    from attribution.nodes import Node, NodeTable
    from attribution.null import Significance, isotropic_significance, matched_significance
    from attribution.paths import Path, TopPaths, top_paths
    from attribution.pullbacks import pullback, pullback_on_prompt, top_pullback
    from attribution.strongest import TopSources, WeightPairs, top_sources, top_virtual_weights
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
    "Agreement": "agreement",
    "AttentionContrast": "attention_results",
    "AttentionRow": "attention_results",
    "AttentionScore": "attention_results",
    "CausalCheck": "causal",
    "DirectionTarget": "targets",
    "EdgeBlock": "edges",
    "EdgeFactors": "factors",
    "Edges": "edges",
    "ExpectedAttribution": "expected",
    "FeaturePairs": "attention_weights",
    "FeatureTarget": "targets",
    "LogitDifference": "targets",
    "Node": "nodes",
    "NodeTable": "nodes",
    "Path": "paths",
    "PathFactors": "factors",
    "PathSplit": "factors",
    "ProbabilityDifference": "targets",
    "Significance": "null",
    "Target": "targets",
    "TopLogits": "targets",
    "TopPaths": "paths",
    "TopSources": "strongest",
    "Trace": "trace",
    "WeightPairs": "strongest",
    "ablations": "causal",
    "absolute_influence": "influence",
    "attention_contrast": "attention",
    "attention_row": "attention",
    "attention_score": "attention",
    "attribute": "engine",
    "attribute_batch": "engine",
    "check_predictions": "causal",
    "deembed": "deembedding",
    "deembed_feature": "deembedding",
    "deembed_feature_extended": "extended",
    "deembed_feature_through_head": "deembedding",
    "direct_logit_attribution": "logits",
    "expected_attribution": "expected",
    "extended_embedding": "extended",
    "factorise": "factors",
    "hold_attention": "attention_held",
    "isotropic_significance": "null",
    "leaf_sources": "influence",
    "matched_significance": "null",
    "measure_agreement": "agreement",
    "promoted_and_suppressed": "logits",
    "pullback": "pullbacks",
    "pullback_on_prompt": "pullbacks",
    "qk_virtual_weights": "attention_weights",
    "sample_ablations": "causal",
    "score_at": "attention",
    "signed_influence": "influence",
    "split_by_path": "factors",
    "standardise_rows": "extended",
    "top_paths": "paths",
    "top_pullback": "pullbacks",
    "top_qk_virtual_weights": "attention_weights",
    "top_sources": "strongest",
    "top_virtual_weights": "strongest",
    "virtual_weights": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'attribution' has no attribute {name!r}")
    return getattr(importlib.import_module(f"attribution.{_HOME[name]}"), name)
