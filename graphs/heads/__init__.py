"""Circuits of whole heads and MLPs, on any model and without dictionaries.

The baseline of the field: edges from everything that writes to the residual stream to everything
that reads it, scored by attribution (EAP, EAP-IG), run with the rest patched, searched by ACDC.
"""

from graphs.heads.acdc import acdc_heads
from graphs.heads.attribution import edge_attribution
from graphs.heads.edges import HeadEdges
from graphs.heads.metrics import logit_difference, mean_kl
from graphs.heads.running import EdgeRunner, run_edges

__all__ = [
    "EdgeRunner",
    "HeadEdges",
    "acdc_heads",
    "edge_attribution",
    "logit_difference",
    "mean_kl",
    "run_edges",
]
