"""Circuits of neurons, or of heads and MLPs, measured like those of features.

The plain counterpart of `graphs.proof.Trial`: the same prompts, the same corrupted values, the same
two ends. All units kept is the model, none the corrupted run, as for features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.sites import Site
from circuits.subject import SubjectModel
from graphs.faithfulness import Metric, kl_to_model
from graphs.proof.trial import Outcome
from graphs.units.places import Unit, UnitKind, differing_units, list_units, unit_sites
from graphs.units.running import run_units, site_values

__all__ = ["UnitTrial"]


@dataclass(frozen=True, eq=False)
class UnitTrial:
    """Circuits as flags over units, everything outside of each at its corrupted value.

    Units are what patching can change: a neuron, head, MLP output or token whose value differs on
    some pair of prompts. The rest is live in every run.
    """

    model: SubjectModel = field(repr=False)
    tokens: Int[Tensor, "prompt pos"] = field(repr=False)
    clean: dict[Site, Tensor] = field(repr=False)
    other: dict[Site, Tensor] = field(repr=False)
    model_logits: Float[Tensor, "prompt d_vocab"] = field(repr=False)
    """The model's logits at the last position of the clean prompts."""
    metric: Metric = field(repr=False)
    units: Sequence[Unit] = field(repr=False)
    """In the order of computation, then by position and row."""
    max_bytes: int

    @classmethod
    def on_prompts(
        cls,
        kind: UnitKind,
        model: SubjectModel,
        clean: Int[Tensor, "prompt pos"],
        corrupted: Int[Tensor, "other pos"],
        metric: Metric,
        *,
        max_bytes: int = 256 * 2**20,
    ) -> "UnitTrial":
        """Hold both sets of prompts.

        Args:
            kind: `neurons` of every MLP, or `heads` of every attention with whole MLP outputs; both
                with the tokens.
            model: the plain model.
            clean: the prompts, all of one length.
            corrupted: their counterparts, row by row.
            metric: of last-position logits, one number a prompt, in the order of `clean`.
            max_bytes: about what the tensors of one call may take; one circuit is run at least.

        Raises:
            ValueError: if the prompts do not line up, nothing differs between them, or the model
                does not show its neurons or heads.
        """
        if clean.shape != corrupted.shape:
            raise ValueError(
                f"clean and corrupted prompts must line up token by token, got shapes "
                f"{tuple(clean.shape)} and {tuple(corrupted.shape)}"
            )
        sites = unit_sites(model, kind)
        logits, values = site_values(model, clean, sites)
        _, other = site_values(model, corrupted, sites)
        units = tuple(list_units(differing_units(values, other)))
        if not units:
            raise ValueError(
                "no unit differs between clean and corrupted prompts; choose a corruption that "
                "changes a token"
            )
        return cls(model, clean, values, other, logits, metric, units, max_bytes)

    @property
    def model_metric(self) -> Float[Tensor, " prompt"]:
        """The model's metric on every prompt."""
        return self.metric(self.model_logits).double().cpu()

    def measure(self, kept: Bool[Tensor, "circuit unit"]) -> Outcome:
        """Run circuits, some at a time, everything outside of each patched.

        Raises:
            ValueError: if there is not one flag a unit.
        """
        if kept.shape[1] != len(self.units):
            raise ValueError(f"want {len(self.units)} flags a circuit, got {kept.shape[1]}")
        size = max(1, self.max_bytes // self._bytes_per_circuit())
        metrics, kls = [], []
        for chunk in kept.split(size):
            logits = run_units(self.model, self.tokens, self.other, self._masks(chunk))
            metrics += [self.metric(rows).double().cpu() for rows in logits]
            kls.append(kl_to_model(self.model_logits.double(), logits.double()).cpu())
        return Outcome(torch.stack(metrics), torch.cat(kls))

    def _masks(
        self, kept: Bool[Tensor, "circuit unit"]
    ) -> dict[Site, Bool[Tensor, "circuit pos part"]]:
        """Flags over all parts of every site; what is no unit stays live."""
        n_pos, masks = self.tokens.shape[1], {}
        for site, columns in self._columns().items():
            n_parts = self.other[site].shape[2] if site.kind in ("z", "mlp_post") else 1
            mask = torch.ones(len(kept), n_pos, n_parts, dtype=torch.bool)
            places = [self.units[i] for i in columns]
            mask[:, [u.pos for u in places], [u.row for u in places]] = kept[:, columns]
            masks[site] = mask
        return masks

    def _columns(self) -> dict[Site, range]:
        """The units of each site, which lie together."""
        starts: dict[Site, int] = {}
        for i, unit in enumerate(self.units):
            starts.setdefault(unit.site, i)
        ends = [*list(starts.values())[1:], len(self.units)]
        return {
            site: range(start, end) for (site, start), end in zip(starts.items(), ends, strict=True)
        }

    def _bytes_per_circuit(self) -> int:
        """The widest layer computed and patched, the stream's copies, masks, and the logits."""
        n_prompts, n_pos = self.tokens.shape
        widest = max(value[0, 0].numel() for value in self.other.values())
        numbers = n_pos * (4 * widest + 8 * self.model.d_model) + 4 * self.model.d_vocab
        n_flags = sum(value[0].numel() for value in self.other.values())
        return n_prompts * numbers * self.model.dtype.itemsize + n_flags
