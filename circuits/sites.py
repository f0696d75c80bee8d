"""Places in a transformer that can be read, replaced or frozen, under names of our own."""

from typing import Literal, NamedTuple

__all__ = ["DICTIONARY_SITES", "READ_ONLY", "NormName", "Site", "SiteKind"]

SiteKind = Literal[
    "embed",  # token embedding as it enters the residual stream
    "resid_pre",
    "resid_post",
    "attn_out",  # what attention adds to the residual stream
    "resid_mid",  # between attention and MLP of a sequential block, before the MLP's norm
    "mlp_in",  # what the MLP reads: normalised, with gain and bias
    "mlp_post",  # the MLP's neurons: what its output matrix reads [batch, pos, d_mlp]
    "mlp_raw_out",  # the MLP's output before any post-norm (Gemma)
    "mlp_out",  # what the MLP adds to the residual stream
    "z",  # what each head holds before its output matrix [batch, pos, head, d_head]
    "pattern",  # attention probabilities [batch, head, query, key]
    "attn_scores",  # what the softmax reads [batch, head, query, key]: softcapped and masked
    "rotary_cos",  # tables of the rotation of queries and keys [batch, pos, rotary]
    "rotary_sin",
    "q_norm_scale",  # denominators of query and key norms [batch, head, pos, 1] (Qwen3, Gemma 3)
    "k_norm_scale",
    "ln1_scale",  # norm denominators [batch, pos, 1]
    "ln2_scale",
    "ln1_post_scale",
    "ln2_post_scale",
    "final_scale",
    "unembed_in",  # what the unembedding reads
]
NormName = Literal["ln1", "ln2", "ln1_post", "ln2_post", "final"]


class Site(NamedTuple):
    """One place: a kind and a layer (0 for the three places outside the blocks)."""

    kind: SiteKind
    layer: int = 0

    def __str__(self) -> str:
        return f"{self.kind}{self.layer}"


READ_ONLY: tuple[SiteKind, ...] = ("resid_mid",)
"""Places that are read on one branch, so that a change there would not reach the stream."""
DICTIONARY_SITES: tuple[SiteKind, ...] = ("resid_pre", "resid_post", "attn_out", "mlp_out")
"""Where an SAE may sit; a transcoder's convention says what it reads and writes."""
