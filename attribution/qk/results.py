"""What QK attribution gives: one score, two scores side by side, one row of scores.

Input-dependent; every number is a sum of products of an input-dependent factor and an
input-invariant one.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.nodes import NodeTable
from attribution.qk.held import softcapped
from attribution.qk.tables import PairBlock, SourcePair, rank_pairs

__all__ = ["AttentionContrast", "AttentionRow", "AttentionScore"]


@dataclass(frozen=True, eq=False)
class AttentionScore:
    """One score of one head, and the pairs of sources that add up to it.

        pairs[s, t] = query_factors[s] * key_factors[t] * invariant[s, t]

    Attributes:
        layer, head, query, key: which score; positions count from 0.
        score: scaled, before any softcap, before the softmax.
        capped_score: after the softcap (Gemma 2): what the softmax compares.
        model_score: the same as the model itself computed it.
        pattern: the probability.
        softcap: as in `QueryKey`.
        query_sources: what adds up to the residual stream at the query, and the constant of the
            queries (`bias.query`: their bias, and what the norm's bias gives).
        key_sources: likewise at the key.
        query_factors: of a feature its activation, of anything else 1, over the denominators of
            the norms on its way (a post-norm's, `ln1`'s, the query norm's).
        key_factors: likewise.
        invariant: `scale * d_s W_Q R W_K^T d_t`, with the gain of `ln1` folded in and R the
            rotation by the offset. Between features, tokens, positions and constants it is weights
            alone (save constants under a post-norm, whose denominator stays in their vector); for
            an error, a held MLP or a head, whose vector was made by this prompt, it is the same
            form of that vector.
    """

    layer: int
    head: int
    query: int
    key: int
    score: float
    capped_score: float
    model_score: float
    pattern: float
    softcap: float
    query_sources: NodeTable
    key_sources: NodeTable
    query_factors: Float[Tensor, " query_source"]
    key_factors: Float[Tensor, " key_source"]
    invariant: Float[Tensor, "query_source key_source"]

    @property
    def input_dependent(self) -> Float[Tensor, "query_source key_source"]:
        """The factor of each pair that this prompt decides."""
        return self.query_factors[:, None] * self.key_factors

    @property
    def pairs(self) -> Float[Tensor, "query_source key_source"]:
        """What each pair gives to the score."""
        return self.input_dependent * self.invariant

    def conservation_error(self) -> float:
        """How far the pairs are from adding up, relative to the score or the largest pair.

        The larger of two gaps: of their sum to the score, and of its softcap to the model's own.
        """
        pairs = self.pairs.double()
        capped = softcapped(pairs.sum(), self.softcap)
        gap = max(abs(float(pairs.sum()) - self.score), abs(float(capped) - self.model_score))
        return gap / max(abs(self.score), float(pairs.abs().max()), 1e-30)

    def block(self) -> PairBlock:
        """The pairs with the names of their sources, for `rank_pairs`."""
        queries, keys = ([n.id for n in table] for table in (self.query_sources, self.key_sources))
        return PairBlock(queries, keys, self.input_dependent, self.invariant)

    def table(self, top: int = 20) -> list[SourcePair]:
        """The strongest pairs and one row for the rest; the values add up to `score`."""
        return rank_pairs([self.block()], self.score, top)


@dataclass(frozen=True, eq=False)
class AttentionContrast:
    """Why a head looks from one query at `here` more, or less, than at `there`.

    Attributes:
        here: the score of one key.
        there: the score of the other key, for the same head and query.
    """

    here: AttentionScore
    there: AttentionScore

    @property
    def difference(self) -> float:
        """`here.score - there.score`, before any softcap: what the table adds up to."""
        return self.here.score - self.there.score

    @property
    def log_ratio(self) -> float:
        """`log A[q, here] - log A[q, there]`: the difference after the softcap.

        The softmax divides both by one number. Without a softcap it is `difference`.
        """
        return self.here.capped_score - self.there.capped_score

    def table(self, top: int = 20) -> list[SourcePair]:
        """The strongest pairs of both keys and one row for the rest; they add up to `difference`.

        Pairs of `there` count with the opposite sign (in their input-dependent factor). The
        position in a key source's id says whose pair it is.
        """
        there = self.there.block()
        minus = PairBlock(there.queries, there.keys, -there.input_dependent, there.input_invariant)
        return rank_pairs([self.here.block(), minus], self.difference, top)


@dataclass(frozen=True, eq=False)
class AttentionRow:
    """All the scores of one head at one query, summed over the sources on one side.

    Attributes:
        layer, head, query: which row.
        keys: the positions that the mask leaves.
        scores: scaled, before any softcap.
        pattern: the probabilities.
        query_sources: as in `AttentionScore`.
        by_query_source: what each source at the query gives to each score (all key sources
            together); columns add up to the scores.
        key_sources: of each key, its sources.
        by_key_source: of each key, what each of its sources gives to its score (all query sources
            together); each adds up to that score.
    """

    layer: int
    head: int
    query: int
    keys: Int[Tensor, " key"]
    scores: Float[Tensor, " key"]
    pattern: Float[Tensor, " key"]
    query_sources: NodeTable
    by_query_source: Float[Tensor, "query_source key"]
    key_sources: tuple[NodeTable, ...]
    by_key_source: tuple[Float[Tensor, " _"], ...]

    def conservation_error(self) -> float:
        """The largest gap between a score and either of its sums, relative to score or term."""
        by_key = torch.stack([values.double().sum() for values in self.by_key_source])
        largest = torch.stack([values.double().abs().max() for values in self.by_key_source])
        scores, by_query = self.scores.double(), self.by_query_source.double()
        gap = torch.maximum((by_key - scores).abs(), (by_query.sum(0) - scores).abs())
        size = torch.maximum(scores.abs(), torch.minimum(largest, by_query.abs().amax(0)))
        return float((gap / size.clamp_min(1e-30)).max())
