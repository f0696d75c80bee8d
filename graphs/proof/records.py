"""What a proof says, as records: JSON-able, and one line a number with all choices in it."""

from pydantic import BaseModel, ConfigDict, Field

from graphs.proof.choices import ProofChoices
from graphs.proof.estimates import Estimate

__all__ = ["ControlProof", "Knockouts", "Minimality", "NodeHarm", "Proof", "ProofTable"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Knockouts(_Record):
    """Completeness: gaps F(C without K) - F(M without K) over one search for K.

    Greedy K are searched for large gaps on the prompts that chose the circuit. The worst of several
    K is the one that is worst on the prompts that prove: biased upwards, against the circuit.
    """

    search: str = Field(description="how the K were found")
    n_sets: int
    mean: Estimate = Field(description="mean over K of |gap|, share of m(M) - m(empty)")
    worst: Estimate = Field(description="signed gap of the K where |gap| is largest, share")
    worst_nodes: tuple[str, ...] = Field(description="units of that K")


class NodeHarm(_Record):
    """What removing one unit of the circuit does."""

    node: str
    alone: Estimate = Field(description="metric lost in the circuit, share of m(M) - m(empty)")
    largest: float = Field(description="signed loss of largest size over all K, share")


class Minimality(_Record):
    """Whether every unit of the circuit matters."""

    threshold: float = Field(description="smallest |loss| that counts, share of m(M) - m(empty)")
    n_contexts: int = Field(description="K tried beside the empty one")
    smallest: Estimate = Field(description="loss of the unit whose removal alone changes least")
    smallest_node: str
    needed_alone: Estimate = Field(description="share of units whose |loss| alone counts")
    needed: Estimate = Field(description="share of units whose |loss| counts for some K")
    nodes: tuple[NodeHarm, ...]


class Proof(_Record):
    """One circuit on prompts that did not choose it; means over prompts before any ratio."""

    version: int = 1
    choices: ProofChoices
    metric_name: str
    n_prompts: int
    n_resamples: int
    seed: int
    n_units: int = Field(description="units that patching can change on these prompts")
    size: int = Field(description="those of them in the circuit")
    n_idle: int = Field(description="features of the circuit in use on none of these prompts")
    metric_model: Estimate = Field(description="m(M), the original model")
    metric_circuit: Estimate = Field(description="m(C), everything else ablated")
    metric_empty: Estimate = Field(description="m(empty), every unit ablated")
    metric_without: Estimate = Field(description="m(M without C), the circuit ablated")
    kl_circuit: Estimate = Field(description="KL(M || C), nats")
    kl_empty: Estimate = Field(description="KL(M || empty), nats")
    kl_without: Estimate = Field(description="KL(M || M without C), nats")
    faithfulness: Estimate = Field(description="(m(C) - m(empty)) / (m(M) - m(empty))")
    completeness: Estimate = Field(
        description="(m(M without C) - m(empty)) / (m(M) - m(empty)); low is good"
    )
    necessity: Estimate = Field(
        description="(m(M) - m(M without C)) / (m(M) - m(empty)): what the model loses with C"
    )
    necessity_features: Estimate = Field(
        description="the same with all of C ablated but its tokens, which stay clean"
    )
    necessity_all_features: Estimate = Field(
        description="the same with every unit ablated but tokens: what there is to lose"
    )
    knockouts: tuple[Knockouts, ...]
    minimality: Minimality

    def lines(self) -> list[str]:
        """One line a number, each with the metric, the prompts and all choices."""
        outside, inside = self.choices.on("outside the circuit"), self.choices.on("the circuit")
        both = f"{outside}, and K of it"
        numbers = [
            ("faithfulness", self.faithfulness, outside),
            ("metric of the model", self.metric_model, "nothing ablated"),
            ("metric of the circuit", self.metric_circuit, outside),
            ("metric of the empty circuit", self.metric_empty, outside),
            ("metric without the circuit", self.metric_without, inside),
            ("KL of the circuit", self.kl_circuit, outside),
            ("KL of the empty circuit", self.kl_empty, outside),
            ("KL without the circuit", self.kl_without, inside),
            ("completeness (faithfulness of the complement)", self.completeness, inside),
            ("necessity", self.necessity, inside),
            ("necessity, tokens apart", self.necessity_features, f"{inside}, its tokens apart"),
            (
                "necessity of every unit, tokens apart",
                self.necessity_all_features,
                f"{self.choices.on('everything')}, tokens apart",
            ),
        ]
        for found in self.knockouts:
            numbers.append((f"knockout gap, {found.search}, mean |gap|", found.mean, both))
            numbers.append((f"knockout gap, {found.search}, worst", found.worst, both))
        minimal = self.minimality
        least = f"at least {minimal.threshold:.0%} of m(M) - m(empty)"
        numbers += [
            (f"smallest harm ({minimal.smallest_node})", minimal.smallest, outside),
            (f"units whose removal changes {least}", minimal.needed_alone, outside),
            (f"the same, without some K of {minimal.n_contexts}", minimal.needed, both),
        ]
        tail = f"metric {self.metric_name}; {self.n_prompts} prompts"
        return [f"{name} {value} ({tail}; {choices})" for name, value, choices in numbers]


class ControlProof(_Record):
    """What a proof is laid beside: one circuit, or several of which means are taken."""

    name: str
    n_circuits: int
    size: float = Field(description="mean number of units")
    metric: Estimate
    kl: Estimate
    faithfulness: Estimate = Field(description="of the mean metric over circuits")
    completeness: Estimate = Field(description="of the mean metric over circuits")
    faithfulness_range: tuple[float, float] = Field(description="smallest and largest of one")
    as_faithful: float = Field(description="share of them at least as faithful as the circuit")


class ProofTable(_Record):
    """A circuit's proof next to controls on the same prompts under the same choices."""

    circuit: Proof
    controls: tuple[ControlProof, ...]

    def control(self, name: str) -> ControlProof:
        """The control of that name.

        Raises:
            ValueError: if there is none.
        """
        for found in self.controls:
            if found.name == name:
                return found
        known = ", ".join(repr(c.name) for c in self.controls)
        raise ValueError(f"want a control of this proof, got {name!r}; there are {known}")

    def markdown(self) -> str:
        """A table with one row a circuit, and the choices under it."""
        proof = self.circuit
        own = (proof.faithfulness, proof.completeness, proof.metric_circuit, proof.kl_circuit)
        rows = [("circuit", f"{proof.size}", *own)]
        for c in self.controls:
            cells = (c.faithfulness, c.completeness, c.metric, c.kl)
            rows.append((f"{c.name} ({c.n_circuits})", f"{c.size:g}", *cells))
        head = ("", "size", "faithfulness", "completeness", proof.metric_name, "KL, nats")
        table = [head, ("---",) * len(head), *rows]
        body = "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in table)
        return (
            f"{body}\n\n95 % bootstrap intervals over {proof.n_prompts} prompts; "
            f"{proof.choices}. For completeness the set is the circuit."
        )
