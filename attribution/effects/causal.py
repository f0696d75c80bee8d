"""The causal check: what edges predict of an intervention against what the model then does.

Input-dependent: one prompt, several forward passes an intervention.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attribution.effects.agreement import Agreement, measure_agreement
from attribution.effects.flow import push
from attribution.effects.influence import Nodes, linear_flow, rows_of
from attribution.effects.observing import OBSERVATIONS, Observation, Observer, read
from attribution.nodes import NodeTable
from attribution.targets import Readout, Target, TopLogits
from attribution.trace import Trace
from circuits.interventions import Intervention, intervene
from circuits.spliced import FrozenState, SplicedModel

__all__ = [
    "CausalCheck",
    "Prediction",
    "ablations",
    "check_predictions",
    "relative_changes",
    "sample_ablations",
]

Prediction = Literal["direct", "total"]


@dataclass(frozen=True, eq=False)
class CausalCheck:
    """Changes of every target under each intervention, predicted and observed.

    Attributes:
        interventions: the rows; each was made alone.
        targets: the columns, those of the trace.
        direct: predicted along edges: `sum over s of E[t, s] (new_s - a_s) / a_s`.
        frozen: observed in the frozen model with all other features held; `direct` is exact there.
        total: predicted over all paths: `direct` with signed influence for `E`.
        live: observed in the frozen model with features live; `total` is exact there as long as no
            feature turns on or off.
        real: observed with nothing frozen, in the mode of the trace (`exact`: the real model).
        sizes: of each target: the largest of its value and the edges into it.
    """

    interventions: tuple[Intervention, ...]
    targets: NodeTable
    direct: Float[Tensor, "intervention target"]
    frozen: Float[Tensor, "intervention target"]
    total: Float[Tensor, "intervention target"]
    live: Float[Tensor, "intervention target"]
    real: Float[Tensor, "intervention target"]
    sizes: Float[Tensor, " target"]

    def max_frozen_error(self) -> float:
        """The largest gap of `direct` to `frozen`, over the largest effect of its intervention.

        Effects are differences of two runs, so in float32 those of 1e-3 of the values are known to
        about 1e-4 of themselves: see `max_frozen_error_of_values`, or use a float64 model.
        """
        gap, effect = (self.direct - self.frozen).abs(), self.direct.abs()
        resolution = torch.finfo(gap.dtype).eps * self.sizes.max()
        return float((gap.amax(1) / effect.amax(1).clamp_min(float(resolution))).max())

    def max_frozen_error_of_values(self) -> float:
        """The largest gap of `direct` to `frozen`, over the size of its target."""
        return float(((self.direct - self.frozen).abs() / self.sizes.clamp_min(1e-30)).max())

    def agreement(
        self,
        target: int | str,
        predicted: Prediction = "total",
        observed: Observation = "real",
    ) -> Agreement:
        """Predictions against observations over all interventions, for one target.

        Raises:
            ValueError: if there is no such target, or one side is the same in all interventions.
        """
        (column,) = rows_of(self.targets, [target])
        return measure_agreement(
            getattr(self, predicted)[:, column], getattr(self, observed)[:, column]
        )


def check_predictions(
    spliced: SplicedModel,
    trace: Trace,
    interventions: Sequence[Intervention],
    target: Target | Sequence[Target] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> CausalCheck:
    """Make each intervention alone, in the frozen and in the real model, and compare.

    Three forward passes an intervention; rows of features are observed as pre-activations, outputs
    where they are read (before any final softcap).

    Args:
        spliced: the model of the trace.
        trace: with `target` as outputs, and a row for every feature that shall pass effects on.
        interventions: on features of the trace (active ones), at any positions.
        target: what the trace was made with.
        progress: called with (interventions done, interventions in all).

    Raises:
        ValueError: if there is no intervention, one changes an inactive feature (it has no edges),
            or the outputs of the trace are not those of `target`.
    """
    if not interventions:
        raise ValueError("nothing to check: give at least one intervention")
    with torch.no_grad():
        state = spliced.state(trace.tokens[None], trace.mode)
        outputs = _readouts(spliced, state, trace, target)
        changes = torch.stack([relative_changes(spliced, state, trace, i) for i in interventions])
        observer = Observer(spliced, state, trace, outputs)
        base = {how: observer.observe(how) for how in OBSERVATIONS}
        seen: dict[Observation, list[Tensor]] = {how: [] for how in OBSERVATIONS}
        for done, change in enumerate(interventions, 1):
            for how in OBSERVATIONS:
                seen[how].append(observer.observe(how, [change]) - base[how])
            if progress is not None:
                progress(done, len(interventions))
    return CausalCheck(
        tuple(interventions),
        trace.targets,
        direct=trace.blocks.right(changes.T).T,
        total=push(linear_flow(trace), changes.T).T,
        frozen=torch.stack(seen["frozen"]),
        live=torch.stack(seen["live"]),
        real=torch.stack(seen["real"]),
        sizes=trace.blocks.row_maxima().maximum(trace.target_values.abs()),
    )


def relative_changes(
    spliced: SplicedModel, state: FrozenState, trace: Trace, change: Intervention
) -> Float[Tensor, " source"]:
    """`(new - a) / a` of every source under an intervention; 0 where nothing changes.

    Raises:
        ValueError: if a feature that is not a source of the trace would change.
    """
    write = spliced.write_site(change.site)
    before = state.activations[write]
    moved = (intervene(before, [change]) - before)[0, :, change.feature]
    relative = trace.target_values.new_zeros(len(trace.sources))
    where = {"kind": "feature", "site": spliced.placements[write].site, "layer": write.layer}
    columns = trace.sources.where(**where, feature=change.feature)
    for column in columns:
        pos = trace.sources[column].pos
        relative[column] = moved[pos] / before[0, pos, change.feature]
        moved[pos] = 0.0
    if moved.any():
        raise ValueError(
            f"feature {change.feature} of {write} is not active at positions "
            f"{moved.nonzero()[:, 0].tolist()}, so that no edge says what it does there; "
            "intervene on features that are sources of the trace"
        )
    return relative


def ablations(trace: Trace, sources: Nodes) -> list[Intervention]:
    """One ablation a feature at its position.

    Args:
        trace: the trace.
        sources: features, as rows of `trace.sources` or ids.

    Raises:
        ValueError: if a node does not exist or is no feature.
    """
    nodes = [trace.sources[i] for i in rows_of(trace.sources, sources)]
    other = [node.id for node in nodes if node.kind != "feature"]
    if other:
        raise ValueError(f"only features can be ablated here, got {', '.join(other[:3])}")
    return [Intervention(f"{n.site}.{n.layer}", n.feature, positions=[n.pos]) for n in nodes]


def sample_ablations(trace: Trace, n: int, seed: int = 0) -> list[Intervention]:
    """Ablations of `n` features of the trace, drawn alike and without repeats.

    The same seed and trace give the same list, in the order of the sources.

    Raises:
        ValueError: if the trace has fewer features.
    """
    features = trace.sources.where(kind="feature")
    if not 1 <= n <= len(features):
        raise ValueError(f"n must be in [1, {len(features)}] (the features of the trace), got {n}")
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(features), generator=generator)[:n].sort().values
    return ablations(trace, [features[i] for i in drawn.tolist()])


def _readouts(
    spliced: SplicedModel,
    state: FrozenState,
    trace: Trace,
    target: Target | Sequence[Target] | None,
) -> list[Readout]:
    """What the outputs of the trace read, in their order."""
    wanted = [TopLogits()] if target is None else target
    wanted = list(wanted) if isinstance(wanted, Sequence) else [wanted]
    readouts = [readout for t in wanted for readout in t.readouts(spliced, state)]
    rows = trace.targets.where(kind="output")
    want = trace.target_values[rows]
    values = [read(r, state.read(r.site), want.dtype) for r in readouts]
    got = want.new_tensor(values)
    if len(got) != len(want) or not torch.allclose(got, want, rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"the outputs of the trace have the values {want.tolist()}, those of the given target "
            f"{values}; give the target, the model and the dictionaries the trace was made with"
        )
    return readouts
