"""Controls laid beside a proof: random circuits, active features, tokens, others by name."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attribution.nodes import Node
from graphs.controls import random_circuits, tokens_only
from graphs.most_active import top_active
from graphs.proof.counting import Progress, counting
from graphs.proof.estimates import mean_estimate, resampling, share_estimate
from graphs.proof.records import ControlProof, Proof, ProofTable
from graphs.proof.trial import Measure, Trial

__all__ = ["MOST_ACTIVE", "RANDOM", "TOKENS_ONLY", "beside_controls"]

RANDOM = "random, same size per layer"
MOST_ACTIVE = "most active, same size per layer"
TOKENS_ONLY = "tokens only"


def beside_controls(
    proof: Proof,
    trial: Trial,
    nodes: Sequence[Node],
    kept: Bool[Tensor, " node"],
    *,
    controls: Mapping[str, Bool[Tensor, "circuit node"]] | None = None,
    n_random: int = 20,
    progress: Progress = lambda done, total: None,
) -> ProofTable:
    """Measure controls on the prompts of a proof, under its choices and with its resamples.

    Random circuits are drawn from all that can be ablated, as many in every layer as the circuit
    has, and keep its tokens, as does the control "tokens only"; the most active features take the
    place of the circuit's own.

    Args:
        proof: of the circuit, from `prove` with this trial.
        trial: the choices, and the prompts that prove.
        nodes: any node table.
        kept: which of `nodes` are the circuit.
        controls: further ones by name, each one or several circuits over `nodes`; None for none.
        n_random: random circuits.
        progress: told of circuits run and to run: twice as many as there are, and one.

    Raises:
        ValueError: if `proof` is of another trial or circuit.
    """
    circuit, _ = trial.circuit(nodes, kept)
    _check_same(proof, trial, circuit)
    units = trial.units
    circuits = {
        RANDOM: random_circuits(units, circuit, n=n_random, seed=proof.seed),
        MOST_ACTIVE: top_active(units, circuit)[None],
        TOKENS_ONLY: tokens_only(units, circuit)[None],
    }
    for name, flags in (controls or {}).items():
        circuits[name] = torch.stack([trial.circuit(nodes, row)[0] for row in flags])
    counted = counting(progress, 1 + 2 * sum(map(len, circuits.values())))
    measure = counted(trial.measure)
    empty = measure(torch.zeros_like(circuit)[None]).metric[0]
    found = tuple(
        _control(name, flags, proof, measure, trial.model_metric, empty)
        for name, flags in circuits.items()
    )
    return ProofTable(circuit=proof, controls=found)


def _check_same(proof: Proof, trial: Trial, circuit: Bool[Tensor, " unit"]) -> None:
    given = (trial.choices, len(trial.tokens), len(circuit), int(circuit.sum()))
    proved = (proof.choices, proof.n_prompts, proof.n_units, proof.size)
    if given != proved:
        raise ValueError(
            f"controls must be measured as the circuit was, on {proved[1]} prompts with "
            f"{proved[3]} of {proved[2]} units ({proved[0]}), got {given[1]} with {given[3]} of "
            f"{given[2]} ({given[0]}); give the trial and circuit of the proof"
        )


def _control(
    name: str,
    circuits: Bool[Tensor, "circuit unit"],
    proof: Proof,
    measure: Measure,
    model: Float[Tensor, " prompt"],
    empty: Float[Tensor, " prompt"],
) -> ControlProof:
    """Means over circuits are taken of metrics, on every prompt, before any ratio."""
    weights = resampling(proof.n_prompts, n_resamples=proof.n_resamples, seed=proof.seed)
    whole = model - empty
    outcome, without = measure(circuits), measure(~circuits).metric.mean(0)
    each = (outcome.metric - empty).mean(1) / whole.mean()
    mean: Float[Tensor, " prompt"] = outcome.metric.mean(0)
    return ControlProof(
        name=name,
        n_circuits=len(circuits),
        size=float(circuits.sum(1).double().mean()),
        metric=mean_estimate(mean, weights),
        kl=mean_estimate(outcome.kl.mean(0), weights),
        faithfulness=share_estimate(mean - empty, whole, weights),
        completeness=share_estimate(without - empty, whole, weights),
        faithfulness_range=(float(each.min()), float(each.max())),
        as_faithful=float((each >= proof.faithfulness.value).double().mean()),
    )
