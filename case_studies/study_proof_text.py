"""A proof in words and tables: what each number of it says of the circuit, for the report."""

from case_studies.commands.display import markdown_table
from case_studies.study_proof import ALL_FOUND
from graphs.proof import Estimate, Knockouts, Proof, ProofTable
from graphs.proof.beside import MOST_ACTIVE, RANDOM, TOKENS_ONLY

__all__ = ["percent", "proof_in_words", "proof_numbers", "worst_knockout"]


def percent(number: Estimate) -> str:
    """A share with its interval.

    Example:
        >>> percent(Estimate(value=0.5, low=0.25, high=0.75))
        '50.0% (25.0% to 75.0%)'
    """
    return f"{number.value:.1%} ({number.low:.1%} to {number.high:.1%})"


def worst_knockout(proof: Proof) -> Knockouts:
    """The search whose worst gap is widest."""
    return max(proof.knockouts, key=lambda found: abs(found.worst.value))


def proof_numbers(proof: Proof) -> str:
    """The circuit's own numbers, those that its controls do not have, as a Markdown table."""
    minimality = proof.minimality
    apart = "the same for {} but tokens, which stay clean"
    rows = [
        ("metric of the model", proof.metric_model),
        ("metric with every node ablated", proof.metric_empty),
        ("necessity: share lost with the circuit ablated", proof.necessity),
        (apart.format("all of the circuit"), proof.necessity_features),
        (apart.format("every node"), proof.necessity_all_features),
    ]
    for found in proof.knockouts:
        sets = f"{found.n_sets} {found.search}" if found.search != "by class" else "by class"
        rows.append((f"knockouts ({sets}): mean gap, circuit against model", found.mean))
        rows.append((f"knockouts ({sets}): worst gap", found.worst))
    least = f"at least {minimality.threshold:.0%}"
    rows += [
        (f"minimality: nodes whose removal alone changes {least}", minimality.needed_alone),
        (f"the same, alone or once others are gone ({minimality.n_contexts})", minimality.needed),
        (f"smallest change by one node ({minimality.smallest_node})", minimality.smallest),
        ("KL(model, every node ablated), nats", proof.kl_empty),
        ("KL(model, model without the circuit), nats", proof.kl_without),
    ]
    return markdown_table(
        ("the circuit", "value [95 % interval]"), [(name, str(number)) for name, number in rows]
    )


def proof_in_words(table: ProofTable) -> str:
    """One paragraph a question: faithful, necessary, complete, minimal?"""
    return "\n\n".join(
        (_faithful(table), _necessary(table), _complete(table.circuit), _minimal(table))
    )


def _faithful(table: ProofTable) -> str:
    proof = table.circuit
    random, found = table.control(RANDOM), table.control(ALL_FOUND)
    low, high = random.faithfulness_range
    idle = f" {proof.n_idle} of its features are in use on none of them." if proof.n_idle else ""
    return (
        f"**Is it enough?** With everything else ablated, the circuit keeps "
        f"{percent(proof.faithfulness)} of what ablating every node takes away. "
        f"{random.n_circuits} random circuits of its size keep {random.faithfulness.value:.1%} "
        f"({low:.1%} to {high:.1%} from circuit to circuit), the most active features "
        f"{table.control(MOST_ACTIVE).faithfulness.value:.1%}, its tokens alone "
        f"{table.control(TOKENS_ONLY).faithfulness.value:.1%}. Every node found on the choosing "
        f"prompts together keeps {found.faithfulness.value:.1%}: about the most to be hoped for "
        f"from them. Size counts the nodes that can be ablated on these prompts: {proof.size} of "
        f"the circuit, {proof.n_units} in all.{idle}"
    )


def _necessary(table: ProofTable) -> str:
    proof, tokens = table.circuit, table.control(TOKENS_ONLY)
    own, every = proof.necessity_features.value, proof.necessity_all_features.value
    text = f"**Is it needed?** With the circuit ablated, the model loses {percent(proof.necessity)}"
    if not tokens.size:
        return f"{text}; the tokens stay clean in this proof, or none is in the circuit."
    text += (
        ", but with the circuit's tokens alone ablated it loses "
        f"{1 - tokens.completeness.value:.1%} already: where they are the tokens by which clean "
        "and corrupted prompts differ, that is so by construction, and the completeness of every "
        "circuit that holds them is no finding. "
        "What counts is the rest of the circuit: with the tokens left clean, ablating it loses "
        f"{own:.1%}, while ablating every node but tokens loses {every:.1%}"
    )
    if every > 0 and own < every / 2:
        return (
            f"{text}. So most of what the circuit's features do is done by others where they are "
            "missing: the circuit is one that suffices, not the only one."
        )
    return f"{text}."


def _complete(proof: Proof) -> str:
    found = worst_knockout(proof)
    gap = found.worst
    if gap.low > 0:
        reading = "the circuit does better without them than the model"
    elif gap.high < 0:
        reading = "the model does better without them than the circuit, as others stand in for them"
    else:
        reading = "no sure difference"
    ids = ", ".join(found.worst_nodes[:3])
    n = len(found.worst_nodes)
    nodes = ids if n <= 3 else f"{ids} and {n - 3} more"
    return (
        "**Does it break where the model breaks?** Parts of it are knocked out of the circuit and "
        "of the model: at random, by kind and layer, and greedily (searched on the choosing "
        f"prompts). The widest gap is {gap.value:+.1%} ({gap.low:+.1%} to {gap.high:+.1%}), "
        f"without {nodes}: {reading}."
    )


def _minimal(table: ProofTable) -> str:
    minimality = table.circuit.minimality
    return (
        f"**Does every node matter?** Removed alone, {percent(minimality.needed_alone)} of the "
        f"{table.circuit.size} nodes change the metric by at least {minimality.threshold:.0%} of "
        f"its span; {percent(minimality.needed)} do alone or once a random half of the circuit is "
        f"gone (halves tried: {minimality.n_contexts}). The others do too little to count, or what "
        "others do too."
    )
