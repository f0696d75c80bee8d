"""The proof of a circuit on prompts that did not choose it."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attribution.nodes import Node
from graphs.proof.estimates import (
    check_span,
    mean_estimate,
    resampling,
    share_estimate,
)
from graphs.proof.knockouts import (
    greedy_knockouts,
    knockout_gaps,
    knockouts_by_class,
    random_knockouts,
)
from graphs.proof.minimality import removal_harms
from graphs.proof.records import Proof
from graphs.proof.summaries import summarise_gaps, summarise_harms
from graphs.proof.trial import Trial

__all__ = ["check_disjoint", "prove"]


def check_disjoint(
    choosing: Int[Tensor, "chosen chosen_pos"], proving: Int[Tensor, "prompt pos"]
) -> None:
    """Refuse a proof on prompts that chose the circuit.

    Raises:
        ValueError: if a prompt is in both.
    """
    used = {tuple(row) for row in choosing.tolist()}
    both = [i for i, row in enumerate(proving.tolist()) if tuple(row) in used]
    if both:
        raise ValueError(
            f"prompts that prove must not be prompts that chose, but {len(both)} of "
            f"{len(proving)} are (the first in row {both[0]}); draw others"
        )


def prove(
    trial: Trial,
    nodes: Sequence[Node],
    kept: Bool[Tensor, " node"],
    *,
    choosing: Int[Tensor, "chosen chosen_pos"],
    metric_name: str,
    n_random: int = 16,
    n_greedy: int = 4,
    n_candidates: int = 8,
    n_contexts: int = 3,
    threshold: float = 0.01,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Proof:
    """Test a circuit on the live model: faithfulness, completeness, necessity, minimality, KL.

    A circuit that holds the tokens by which clean and corrupted prompts differ is necessary by
    construction: without them nothing else differs. Completeness and necessity of its features
    need a trial whose component leaves tokens out.

    The cost is 3 + 2 (n_random + classes + n_greedy (n_candidates + 1)) + (n_contexts + 1) (size +
    1) runs of one circuit on all prompts.

    Args:
        trial: the choices, and the prompts that prove.
        nodes: any node table.
        kept: which of `nodes` are the circuit.
        choosing: the prompts that chose the circuit.
        metric_name: the metric and its unit.
        n_random: random knockouts K.
        n_greedy: units in the greedy K.
        n_candidates: units tried a step of it.
        n_contexts: random K in which each unit's harm is measured, beside none.
        threshold: harm that counts, as a share of m(M) - m(empty).
        n_resamples: bootstrap resamples of the prompts.
        seed: of knockouts and resampling.

    Raises:
        ValueError: if a prompt both chose and proves, no unit of the circuit can be ablated on
            these prompts, or the ablation does not change the metric for sure.
    """
    check_disjoint(choosing, trial.tokens)
    circuit, n_idle = trial.circuit(nodes, kept)
    if not bool(circuit.any()):
        raise ValueError(
            f"of the circuit's {int(kept.sum())} nodes none can be ablated on these prompts; was "
            "it found on prompts with other positions?"
        )
    weights = resampling(len(trial.tokens), n_resamples=n_resamples, seed=seed)
    model = trial.model_metric
    anchors = trial.measure(torch.stack([circuit, torch.zeros_like(circuit), ~circuit]))
    inside, empty, without = anchors.metric
    whole = check_span(model, empty, weights)
    units = trial.units
    searches = {
        "random": random_knockouts(circuit, n=n_random, seed=seed),
        "by class": knockouts_by_class(units, circuit),
        "greedy": greedy_knockouts(
            trial.measure, circuit, n_steps=n_greedy, n_candidates=n_candidates, seed=seed
        ),
    }
    contexts = random_knockouts(circuit, n=n_contexts, seed=seed + 1)
    contexts = torch.cat([torch.zeros_like(circuit)[None], contexts])
    members, harms = removal_harms(trial.measure, circuit, contexts)
    kls = [mean_estimate(kl, weights) for kl in anchors.kl]
    return Proof(
        choices=trial.choices,
        metric_name=metric_name,
        n_prompts=len(model),
        n_resamples=n_resamples,
        seed=seed,
        n_units=len(circuit),
        size=len(members),
        n_idle=n_idle,
        metric_model=mean_estimate(model, weights),
        metric_circuit=mean_estimate(inside, weights),
        metric_empty=mean_estimate(empty, weights),
        metric_without=mean_estimate(without, weights),
        kl_circuit=kls[0],
        kl_empty=kls[1],
        kl_without=kls[2],
        faithfulness=share_estimate(inside - empty, whole, weights),
        completeness=share_estimate(without - empty, whole, weights),
        necessity=share_estimate(model - without, whole, weights),
        knockouts=tuple(
            summarise_gaps(
                search, sets, knockout_gaps(trial.measure, circuit, sets), whole, weights, units
            )
            for search, sets in searches.items()
        ),
        minimality=summarise_harms(
            [units[i] for i in members.tolist()], harms, whole, weights, threshold=threshold
        ),
    )
