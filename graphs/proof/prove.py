"""The proof of a circuit on prompts that did not choose it."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from attribution.nodes import Node
from graphs.controls import tokens_only
from graphs.proof.counting import Progress, counting
from graphs.proof.estimates import check_span, mean_estimate, resampling, share_estimate
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
    choosing: Trial,
    metric_name: str,
    n_random: int = 16,
    n_greedy: int = 4,
    n_candidates: int = 8,
    n_contexts: int = 3,
    threshold: float = 0.01,
    n_resamples: int = 1000,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Proof:
    """Test a circuit on the live model: faithfulness, completeness, necessity, minimality, KL.

    A circuit that holds the tokens by which clean and corrupted prompts differ is necessary by
    construction: without them nothing else differs. So necessity is given for its other units
    alone too, the tokens left clean, beside what the model loses with every unit but the tokens.

    Greedy knockouts are searched on the prompts that chose and measured on those that prove, so
    that their gaps are no luck of the search.

    The cost is 5 + 2 (n_random + classes + n_greedy) + (n_contexts + 1) (size + 1) runs of one
    circuit on the proving prompts, and 2 n_greedy n_candidates on the choosing ones.

    Args:
        trial: the choices, and the prompts that prove.
        nodes: any node table.
        kept: which of `nodes` are the circuit.
        choosing: a trial with the same choices on the prompts that chose the circuit.
        metric_name: the metric and its unit.
        n_random: random knockouts K.
        n_greedy: units in the greedy K.
        n_candidates: units tried a step of it.
        n_contexts: random K in which each unit's harm is measured, beside none.
        threshold: harm that counts, as a share of m(M) - m(empty).
        n_resamples: bootstrap resamples of the prompts.
        seed: of knockouts and resampling.
        progress: told of circuits run and to run.

    Raises:
        ValueError: if a prompt both chose and proves, the two trials differ in choices, no unit of
            the circuit can be ablated on the prompts of either, or the ablation does not change the
            metric for sure.
    """
    check_disjoint(choosing.tokens, trial.tokens)
    _check_choices(choosing, trial)
    circuit, n_idle = _circuit(trial, nodes, kept, "prove")
    chosen, _ = _circuit(choosing, nodes, kept, "chose")
    units = trial.units
    searches = {
        "random": random_knockouts(circuit, n=n_random, seed=seed),
        "by class": knockouts_by_class(units, circuit),
    }
    contexts = random_knockouts(circuit, n=n_contexts, seed=seed + 1)
    contexts = torch.cat([torch.zeros_like(circuit)[None], contexts])
    left = range(int(chosen.sum()), 0, -1)[:n_greedy]
    n_sets = sum(map(len, searches.values())) + len(left)
    total = 5 + 2 * n_sets + len(contexts) * (1 + int(circuit.sum()))
    counted = counting(progress, total + 2 * sum(min(n, n_candidates) for n in left))
    measure = counted(trial.measure)

    features = circuit & ~tokens_only(units, circuit)
    all_tokens = tokens_only(units, torch.ones_like(circuit))
    nothing = torch.zeros_like(circuit)
    anchors = measure(torch.stack([circuit, nothing, ~circuit, ~features, all_tokens]))
    inside, empty, without, without_features, without_any = anchors.metric
    model = trial.model_metric
    weights = resampling(len(model), n_resamples=n_resamples, seed=seed)
    whole = check_span(model, empty, weights)
    found = greedy_knockouts(
        counted(choosing.measure), chosen, n_steps=n_greedy, n_candidates=n_candidates, seed=seed
    )
    searches["greedy"] = trial.carry(choosing, found) & circuit
    members, harms = removal_harms(measure, circuit, contexts)
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
        necessity_features=share_estimate(model - without_features, whole, weights),
        necessity_all_features=share_estimate(model - without_any, whole, weights),
        knockouts=tuple(
            summarise_gaps(
                search, sets, knockout_gaps(measure, circuit, sets), whole, weights, units
            )
            for search, sets in searches.items()
        ),
        minimality=summarise_harms(
            [units[i] for i in members.tolist()], harms, whole, weights, threshold=threshold
        ),
    )


def _check_choices(choosing: Trial, trial: Trial) -> None:
    if choosing.choices != trial.choices:
        raise ValueError(
            f"knockouts are searched as they are measured: want a choosing trial with "
            f"{trial.choices}; got {choosing.choices}"
        )


def _circuit(
    trial: Trial, nodes: Sequence[Node], kept: Bool[Tensor, " node"], what_they_did: str
) -> tuple[Bool[Tensor, " unit"], int]:
    """`trial.circuit`, but not an empty one."""
    circuit, n_idle = trial.circuit(nodes, kept)
    if not bool(circuit.any()):
        raise ValueError(
            f"of the circuit's {int(kept.sum())} nodes none can be ablated on the prompts that "
            f"{what_they_did}; was it found on prompts with other positions?"
        )
    return circuit, n_idle
