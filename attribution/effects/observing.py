"""Reading every target of a trace in a run of its model: frozen, frozen with live features, real.

Outputs are read as attribution reads them: what arrives at a site, before any SAE there, and behind
a transcoder, which stands for the MLP.
Input-dependent.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attribution.targets import Readout
from attribution.trace import Trace
from circuits.interventions import Intervention
from circuits.sites import Site
from circuits.spliced import FrozenState, SplicedModel, SplicedRun, canonical
from circuits.starts import Start
from circuits.subject import Edit, SubjectModel

__all__ = ["OBSERVATIONS", "ListeningModel", "Observation", "Observer", "listen", "read"]

Observation = Literal["frozen", "live", "real"]
"""In the frozen model with features held, in it with features live, with nothing frozen."""
OBSERVATIONS: tuple[Observation, ...] = ("frozen", "live", "real")


class ListeningModel(SubjectModel):
    """A view of a subject model that remembers what arrived at some sites in its last run.

    Args:
        model: the model, whose weights are shared.
        sites: where to listen.
        behind: at which of them to hear what an edit there lets go on, not what arrived.
    """

    def __init__(
        self, model: SubjectModel, sites: Iterable[Site], behind: Iterable[Site] = ()
    ) -> None:
        self.__dict__.update(vars(model))
        self._sites = frozenset(canonical(site) for site in sites)
        self._behind = frozenset(behind)
        self._arrived: dict[Site, Tensor] = {}

    def arrived(self, site: Site) -> Float[Tensor, "batch pos d_model"]:
        """What arrived at `site` in the last run (or went on, at sites `behind` edits)."""
        return self._arrived[canonical(site)]

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        edits: Mapping[Site, Edit] | None = None,
        capture: Iterable[Site] = (),
        start: Start | None = None,
        replaced: Iterable[int] = (),
    ) -> tuple[Float[Tensor, "batch read_pos d_vocab"], dict[Site, Tensor]]:
        """As `SubjectModel.run`."""
        edits = dict(edits or {})
        heard = {site: partial(self._hear, site, edits.get(site)) for site in self._sites}
        return super().run(
            tokens, edits=edits | heard, capture=capture, start=start, replaced=replaced
        )

    def _hear(self, site: Site, edit: Edit | None, value: Tensor) -> Tensor:
        new = value if edit is None else edit(value)
        self._arrived[site] = new if site in self._behind else value
        return new


def listen(spliced: SplicedModel, sites: Iterable[Site]) -> tuple[SplicedModel, ListeningModel]:
    """The same spliced model over a listening model, and that model."""
    heard = copy(spliced)
    transcoded = {site for site, p in spliced.placements.items() if p.read != site}
    heard.model = model = ListeningModel(spliced.model, sites, transcoded)
    return heard, model


def read(readout: Readout, values: Float[Tensor, "batch pos d_model"], dtype: torch.dtype) -> float:
    """The value of a readout, from what arrived at its site, in `dtype`."""
    at = values[0, readout.pos].to(dtype)
    return float(at @ readout.vector.to(dtype) + readout.constant)


class Observer:
    """Values of all targets of a trace: outputs where they are read, features before activation.

    Args:
        spliced: the model of the trace.
        state: what is held, at the prompt of the trace.
        trace: the trace.
        outputs: what its outputs read, in their order.
    """

    def __init__(
        self,
        spliced: SplicedModel,
        state: FrozenState,
        trace: Trace,
        outputs: Sequence[Readout],
    ) -> None:
        self._spliced, self._model = listen(spliced, {r.site for r in outputs})
        self._state, self._trace = state, trace
        rows = trace.targets.where(kind="output")
        self._outputs = list(zip(rows, outputs, strict=True))
        self._features: dict[Site, list[tuple[int, int, int]]] = defaultdict(list)
        for row in trace.targets.where(kind="feature"):
            node = trace.targets[row]
            write = spliced.write_site(f"{node.site}.{node.layer}")
            self._features[write].append((row, node.pos, node.feature))

    def observe(
        self, how: Observation, interventions: Sequence[Intervention] = ()
    ) -> Float[Tensor, " target"]:
        """One run under `interventions`, all at once."""
        run = self._run(how, interventions)
        values = torch.zeros_like(self._trace.target_values)
        for row, readout in self._outputs:
            values[row] = read(readout, self._model.arrived(readout.site), values.dtype)
        for write, places in self._features.items():
            rows, positions, features = map(list, zip(*places, strict=True))
            seen = run.pre_activations[write][0, positions, features]
            values[rows] = seen.to(values.dtype)
        return values

    def _run(self, how: Observation, interventions: Sequence[Intervention]) -> SplicedRun:
        tokens, state = self._state.tokens, self._state
        if how == "real":
            return self._spliced.run(tokens, self._trace.mode, interventions=interventions)
        hold = how == "frozen"
        return self._spliced.run(
            tokens, "frozen", interventions=interventions, state=state, hold_features=hold
        )
