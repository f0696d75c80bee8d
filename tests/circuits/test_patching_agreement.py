"""Runs that take from another circuit's run what must be the same: against whole runs."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits import Dictionary, Site, SplicedModel
from circuits.agreement import Agreement, HeldRun
from circuits.patching import Keep, NodeValues, hold_patched, patch_values, run_patched
from circuits.spliced import FrozenState
from tests import cross_layer, models, transcoder_places
from tests.models import N_LAYERS, TOKENS
from tests.transcoder_places import norms_in_float64

BATCH = torch.stack([TOKENS, TOKENS.flip(0)])
N_PROMPTS, N_POS = BATCH.shape
SEQUENTIAL = ("none", "transcoders", "skip", "residual", "mixed")


def _spliced(architecture: str, mixture: str) -> SplicedModel:
    if mixture in models.MIXTURES:
        return models.spliced(architecture, mixture, torch.float64)
    if mixture in transcoder_places.MIXTURES:
        return transcoder_places.spliced(architecture, mixture)
    return cross_layer.spliced(architecture, mixture)


def _whole(spliced: SplicedModel, clean: FrozenState, other: NodeValues, keep: Keep) -> Tensor:
    """`run_patched` of one circuit as it is defined: every layer, position and MLP is run."""
    inputs: dict[Site, Tensor] = {}
    used: dict[Site, Tensor] = {}

    def choose(mask: Tensor, kept: Tensor, dropped: Tensor) -> Tensor:
        return torch.where(mask[..., None], kept, dropped)

    def remember(read: Site) -> Any:
        return lambda x: inputs.setdefault(read, x)

    def splice(write: Site, placement: Any) -> Any:
        error = choose(keep.errors[write], clean.errors[write], other.errors[write])
        patched = (clean.activations[write] != 0) & ~keep.features[write]

        def edit(y: Tensor) -> Tensor:
            x = y if placement.read == write else inputs[placement.read]
            live = placement.dictionary.encode(x)
            used[write] = torch.where(patched, other.activations[write], live)
            return spliced.reconstruct(write, used, x) + error

        return edit

    def sublayer(site: Site) -> Any:
        return lambda y: choose(keep.sublayers[site], y, other.sublayers[site])

    assert keep.tokens is not None
    embed = choose(keep.tokens, clean.values[Site("embed")], other.embed)
    edits: dict[Site, Any] = {Site("embed"): lambda _: embed}
    for write, placement in spliced.placements.items():
        if placement.read != write:
            edits[placement.read] = remember(placement.read)
        edits[write] = splice(write, placement)
    edits |= {site: sublayer(site) for site in keep.sublayers}
    return spliced.model.run(clean.tokens, edits=edits)[0][:, -1]


class Circuits:
    """Random circuits that are the same below a layer and before positions."""

    def __init__(self, spliced: SplicedModel, seed: int) -> None:
        self.spliced = spliced
        self.draw = torch.Generator().manual_seed(seed)

    def _flags(self, *shape: int, share: float = 0.6) -> Tensor:
        return torch.rand(*shape, generator=self.draw) < share

    def one(self) -> Keep:
        at = (1, N_POS)
        placed = self.spliced.placements.items()
        return Keep(
            {w: self._flags(*at, p.dictionary.n_features) for w, p in placed},
            {w: self._flags(*at) for w, _ in placed},
            {site: self._flags(*at) for site in self.spliced.held_mlps()},
            self._flags(*at),
        )

    def others(self, base: Keep, layer: int, pos: int, n: int) -> tuple[Keep, set[tuple[int, int]]]:
        """`n` circuits that differ from `base` from `layer` and `pos` on, and where."""
        different: set[tuple[int, int]] = set()

        def vary(flags: Tensor, own: int) -> Tensor:
            flags = flags.repeat(n, *[1] * (flags.ndim - 1))
            if own >= layer:
                flip = self._flags(*flags.shape, share=0.3)
                flip[:, :pos] = False
                flags = flags ^ flip
                where = flip.flatten(2).any(-1) if flip.ndim > 2 else flip
                different.update((own, p) for p in where.any(0).nonzero().flatten().tolist())
            return flags

        assert base.tokens is not None
        keep = Keep(
            {w: vary(flags, w.layer) for w, flags in base.features.items()},
            {w: vary(flags, w.layer) for w, flags in base.errors.items()},
            {site: vary(flags, site.layer) for site, flags in base.sublayers.items()},
            vary(base.tokens, -1),
        )
        return keep, different


def _row(keep: Keep, i: int) -> Keep:
    assert keep.tokens is not None
    parts = (keep.features, keep.errors, keep.sublayers)
    features, errors, sublayers = ({k: v[i : i + 1] for k, v in part.items()} for part in parts)
    return Keep(features, errors, sublayers, keep.tokens[i : i + 1])


def _values(spliced: SplicedModel) -> tuple[FrozenState, NodeValues]:
    return spliced.state(BATCH), patch_values(spliced, spliced.state(BATCH.roll(1, 1)))


def _gap(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


CASES = [
    *(("gpt2", mixture) for mixture in SEQUENTIAL),
    *(("gpt2", mixture) for mixture in ("top", "bottom", "relu_skip", "above_sae")),
    ("neox_parallel", "mixed"),
    ("neox_parallel", "top"),
    ("neox_sequential", "skip"),
    ("llama_gqa", "mixed"),
    ("qwen2", "transcoders"),
    ("gemma2", "each"),
    ("gemma2", "among_saes"),
    ("gemma2", "crossing_among_saes"),
]


@pytest.mark.parametrize(("architecture", "mixture"), CASES)
def test_what_is_taken_from_another_run_changes_no_answer(architecture: str, mixture: str):
    """One run is held; two circuits leave it at some place; one of them is held in turn."""
    spliced = _spliced(architecture, mixture)
    rounds_to_float32 = architecture in ("llama_gqa", "qwen2", "gemma2")
    with norms_in_float64() if rounds_to_float32 else nullcontext(), torch.no_grad():
        clean, other = _values(spliced)
        circuits = Circuits(spliced, seed=len(architecture + mixture))
        base = circuits.one()
        logits, run = hold_patched(spliced, clean, other, base)
        assert _gap(logits[0], _whole(spliced, clean, other, base)) < 1e-9
        for layer, pos in [(-1, 2), (0, 3), (1, 0), (1, 4), (2, 1)]:
            keep, different = circuits.others(base, layer, pos, 2)
            agreement = Agreement.beside(run, different, n_layers=N_LAYERS, n_pos=N_POS)
            got = run_patched(spliced, clean, other, keep, agreement)
            want = [_whole(spliced, clean, other, _row(keep, i)) for i in range(2)]
            assert _gap(got, torch.stack(want)) < 1e-9, (layer, pos)
            base = _row(keep, 1)
            alone, run = hold_patched(spliced, clean, other, base, agreement)
            assert _gap(alone[0], want[1]) < 1e-9, (layer, pos)


def test_circuits_differ_in_these_tests():
    """Else every answer would agree."""
    spliced = _spliced("gpt2", "mixed")
    clean, other = _values(spliced)
    circuits = Circuits(spliced, seed=0)
    base = circuits.one()
    one = run_patched(spliced, clean, other, base)
    assert _gap(one[0], _whole(spliced, clean, other, base)) < 1e-9
    for layer, pos in [(-1, 0), (0, 2), (1, 5), (2, 6)]:
        keep, different = circuits.others(base, layer, pos, 3)
        assert min(own for own, _ in different) == layer
        assert _gap(run_patched(spliced, clean, other, keep), one.expand(3, -1, -1)) > 1e-3


def test_what_agrees_is_counted_by_layer_and_position():
    run = HeldRun({}, {}, {})
    place = {"n_layers": 4, "n_pos": 6}
    found = Agreement.beside(run, [(1, 4), (2, 3), (2, 5), (3, 5)], **place)
    assert (found.first_layer, found.first_pos) == (1, (5, 4, 3, 3))
    found = Agreement.beside(run, [(-1, 2)], **place)
    assert (found.first_layer, found.first_pos) == (0, (2, 2, 2, 2))
    found = Agreement.beside(run, [(0, 0)], **place)
    assert (found.first_layer, found.first_pos) == (0, (0, 0, 0, 0))
    found = Agreement.beside(run, [], **place)
    assert (found.first_layer, found.first_pos) == (3, (5, 5, 5, 5))


def _work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions that each dictionary encodes from now on, call by call."""
    seen: list[int] = []
    encode = Dictionary.encode

    def note(self: Dictionary, x: Tensor) -> Tensor:
        seen.append(x.shape[1])
        return encode(self, x)

    monkeypatch.setattr(Dictionary, "encode", note)
    return seen


def test_what_agrees_is_not_computed_again(monkeypatch: pytest.MonkeyPatch):
    """Nor is an MLP that a transcoder replaces, or any but the last position of the last layer."""
    spliced = _spliced("gpt2", "transcoders")
    clean, other = _values(spliced)
    circuits = Circuits(spliced, seed=0)
    base = circuits.one()
    mlps: list[int] = []
    blocks = spliced.model._bridge.blocks
    handles = [
        block.mlp.original_component.c_fc.register_forward_hook(lambda *_, i=i: mlps.append(i))
        for i, block in enumerate(blocks)
    ]
    spliced.model._outputs()
    mlps.clear()
    seen = _work(monkeypatch)
    _, run = hold_patched(spliced, clean, other, base)
    assert seen == [N_POS, N_POS, 1]
    keep, _ = circuits.others(base, 1, 4, 2)
    for different, want in {
        ((1, 4),): [N_POS - 4, 1],
        ((0, 5),): [N_POS - 5, N_POS - 5, 1],
        ((2, 2),): [1],
        (): [1],
    }.items():
        seen.clear()
        agreement = Agreement.beside(run, different, n_layers=N_LAYERS, n_pos=N_POS)
        run_patched(spliced, clean, other, keep, agreement)
        assert seen == want, different
    for handle in handles:
        handle.remove()
    assert mlps == []


def test_one_circuit_is_held():
    spliced = _spliced("gpt2", "transcoders")
    clean, other = _values(spliced)
    keep, _ = Circuits(spliced, seed=0).others(Circuits(spliced, seed=0).one(), 0, 0, 2)
    with pytest.raises(ValueError, match="want one circuit to hold, got 2"):
        hold_patched(spliced, clean, other, keep)
