"""The spliced model: dictionaries put into a transformer as replacement layers.

Three modes (design, section 2.2): `replace` lets the reconstruction go on (except where
dictionaries are not trained and the true value goes on: at BOS, and at the first position if the
convention leaves it out), `exact` adds the error back so that logits are the original's, `frozen`
also holds attention patterns, norm denominators and unreplaced MLPs at one prompt, so that
everything between dictionaries is affine.

What goes on at an MLP's output is the sum of what all features that write there write: those of its
own transcoder, and of cross-layer transcoders in the layers below.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.dictionaries import (
    SAE,
    CrossLayerTranscoder,
    Dictionary,
    Transcoder,
    check_cross_layer,
)
from circuits.dictionary_set import DictionarySet
from circuits.folding import fold_convention
from circuits.interventions import Intervention, intervene
from circuits.plausibility import UNCHECKED, try_out
from circuits.sites import Site
from circuits.subject import Edit, SubjectModel

__all__ = [
    "FrozenState",
    "HeldMode",
    "Mode",
    "Placement",
    "SplicedModel",
    "SplicedRun",
    "canonical",
    "site_name",
]

Mode = Literal["replace", "exact", "frozen"]
HeldMode = Literal["exact", "replace"]
"""What a held state is of: the model as it is, or as it runs on reconstructions."""


def site_name(site: Site) -> str:
    """What a place is called in node tables: `mlp` for an MLP's raw output, else the kind.

    A dictionary is called by what it is (`Placement.site`): a transcoder that writes `mlp_out` is
    `mlp`, an SAE there is `mlp_out`.
    """
    return "mlp" if site.kind == "mlp_raw_out" else site.kind


@dataclass(frozen=True)
class Placement:
    """One dictionary in its place."""

    dictionary: Dictionary
    read: Site
    write: Site

    @property
    def site(self) -> str:
        """Its place in node tables and keys: `mlp` for a transcoder, else the kind of site."""
        return "mlp" if isinstance(self.dictionary, Transcoder) else self.write.kind

    @property
    def name(self) -> str:
        """`SITE.LAYER`, as in keys: `mlp.2`, `resid_post.0`."""
        return f"{self.site}.{self.write.layer}"


@dataclass(frozen=True)
class SplicedRun:
    """What one forward pass of a spliced model gave; dictionaries are keyed by their write site."""

    logits: Float[Tensor, "batch pos d_vocab"]
    pre_activations: dict[Site, Float[Tensor, "batch pos feature"]]
    activations: dict[Site, Float[Tensor, "batch pos feature"]]


@dataclass(frozen=True)
class FrozenState:
    """Everything held at some prompts: the original model's value at every site, the features of
    the dictionaries, and their errors (what each missed).
    """

    tokens: Int[Tensor, "batch pos"]
    logits: Float[Tensor, "batch pos d_vocab"]
    values: dict[Site, Tensor]
    activations: dict[Site, Float[Tensor, "batch pos feature"]]
    errors: dict[Site, Float[Tensor, "batch pos d_model"]]
    arriving: dict[Site, Float[Tensor, "batch pos d_model"]] = field(default_factory=dict)
    """Where an SAE replaced what it read: the value before it. `values` has what went on."""

    def read(self, site: Site) -> Float[Tensor, "batch pos d_model"]:
        """What a dictionary at `site` reads."""
        return self.arriving.get(site, self.values[site])

    @property
    def n_pos(self) -> int:
        return self.tokens.shape[1]

    def select(self, prompt: int) -> "FrozenState":
        """The state of one of the prompts."""
        one = slice(prompt, prompt + 1)

        def of(tensors: dict[Site, Tensor]) -> dict[Site, Tensor]:
            return {site: tensor[one] for site, tensor in tensors.items()}

        return FrozenState(
            self.tokens[one],
            self.logits[one],
            of(self.values),
            of(self.activations),
            of(self.errors),
            of(self.arriving),
        )


class SplicedModel:
    """A subject model with dictionaries in some of its layers.

    Args:
        model: the subject model.
        dictionaries: keyed by layer (`2`), by name (`"mlp.2"`, `"resid_post.0"`) or by `Site`.
        check: whether dictionaries that come from files (`load_dictionaries`) are tried on a few
            paragraphs, and refused if they do not fit the model as they are declared. What fitted
            is remembered in the cache folder. Without, a warning says so.

    Raises:
        ImplausibleDictionaryError: if a dictionary does not fit the model as it is declared.
        ValueError: if a key names no place, widths disagree, two dictionaries claim one place, or
            cross-layer transcoders are not a whole (`check_cross_layer`).
    """

    def __init__(
        self,
        model: SubjectModel,
        dictionaries: Mapping[int, Dictionary]
        | Mapping[str, Dictionary]
        | Mapping[Site, Dictionary],
        *,
        check: bool = True,
    ) -> None:
        self.model = model
        self.placements: dict[Site, Placement] = {}
        if isinstance(dictionaries, DictionarySet):
            if check:
                try_out(model, dictionaries)
            else:
                warnings.warn(UNCHECKED, stacklevel=2)
        for key, dictionary in dictionaries.items():
            placement = self._place(key, dictionary)
            self._check_free(placement)
            self.placements[placement.write] = placement
        found = ((write.layer, p.dictionary) for write, p in self.placements.items())
        check_cross_layer({i: d for i, d in found if isinstance(d, CrossLayerTranscoder)})

    def _place(self, key: int | str | Site, dictionary: Dictionary) -> Placement:
        model, layer = self.model, _layer_of(key, dictionary)
        if not 0 <= layer < model.n_layers:
            raise ValueError(
                f"{model.name!r} has layers 0 to {model.n_layers - 1}, got a dictionary for {key!r}"
            )
        if (dictionary.d_in, dictionary.d_out) != (model.d_model, model.d_model):
            raise ValueError(
                f"the dictionary for {key!r} reads width {dictionary.d_in} and writes width "
                f"{dictionary.d_out}, but {model.name!r} has d_model {model.d_model}; "
                "was it made for another model?"
            )
        if not isinstance(dictionary, Transcoder | SAE):
            raise ValueError(
                f"want a Transcoder or an SAE for {key!r}, got {type(dictionary).__name__}"
            )
        folded = fold_convention(dictionary, model.norm("ln2", layer))
        placed = folded.to(dtype=model.dtype, device=model.device)
        assert isinstance(placed, Transcoder | SAE)
        read, write = canonical(placed.read_site(layer)), canonical(placed.write_site(layer))
        if read.kind == "resid_mid" and model.parallel:
            raise ValueError(
                f"the transcoder for {key!r} reads the residual stream between attention and MLP "
                f"(convention norm 'none'), but blocks of {model.name!r} run both in parallel and "
                "have no such place; was it made for another model?"
            )
        if isinstance(placed, Transcoder) and model.norm("ln2_post", layer) is None:
            write = Site("mlp_raw_out", layer)  # the same value, under one name
        return Placement(placed, read, write)

    def _check_free(self, new: Placement) -> None:
        """Refuse a second dictionary at one place, or on one MLP's output."""
        if new.write in self.placements and new.name == self.placements[new.write].name:
            raise ValueError(f"two dictionaries at {new.write}; give one a place")
        layer = new.write.layer
        outputs = (Site("mlp_raw_out", layer), Site("mlp_out", layer))
        for write in outputs if new.write in outputs else ():
            if write in self.placements:
                same = self.placements[write].site == new.site
                pair = "two transcoders" if same else "a transcoder and an SAE"
                raise ValueError(f"layer {layer} has {pair} on its MLP's output; keep one")

    def mlp_site(self, layer: int) -> Site:
        """Where the MLP of `layer` is replaced by a transcoder, else where it is held."""
        behind = Site("mlp_out", layer)
        if behind in self.placements and self.placements[behind].site == "mlp":
            return behind
        return Site("mlp_raw_out", layer)

    def held_mlps(self) -> list[Site]:
        """Outputs of the MLPs that no transcoder replaces, lowest first."""
        sites = (self.mlp_site(layer) for layer in range(self.model.n_layers))
        return [site for site in sites if site not in self.placements]

    def left_out(self, write: Site, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Where the dictionary placed at `write` was not trained, so that it is never relied on.

        At BOS, and at the first position if its convention leaves that out.
        """
        untrained = tokens == self.model.bos_token
        if self.placements[write].dictionary.convention.first_position == "left out":
            untrained[:, :1] = True
        return untrained

    def write_site(self, site: Site | str) -> Site:
        """The placement that `site` names (`mlp.2` or a Site).

        Raises:
            ValueError: if no dictionary is there.
        """
        for write, placement in self.placements.items():
            if isinstance(site, Site):
                found = write == canonical(site)
            else:
                found = placement.name == _canonical_name(site)
            if found:
                return write
        names = ", ".join(placement.name for placement in self.placements.values())
        raise ValueError(f"no dictionary at {site!r}; there are {names or 'none'}")

    def writers(self, site: Site) -> list[tuple[Site, int]]:
        """Whose features write at the write site `site`: where they are placed, lowest first, and
        which slot of their decoder goes here. The last is the dictionary of `site` itself.
        """
        if not isinstance(self.placements[site].dictionary, CrossLayerTranscoder):
            return [(site, 0)]
        below = [w for w, p in self.placements.items() if _crosses(p) and w.layer <= site.layer]
        return [(w, site.layer - w.layer) for w in sorted(below, key=lambda w: w.layer)]

    def reconstruct(
        self,
        write: Site,
        activations: Mapping[Site, Float[Tensor, "*batch _"]],
        x: Float[Tensor, "*batch d_model"],
    ) -> Float[Tensor, "*batch d_model"]:
        """What the dictionaries make of the value at `write`, without any error.

            sum over writers of a W_dec[:, slot], + b_dec (+ x W_skip) of the dictionary placed here

        Args:
            write: the write site of a placement.
            activations: of all dictionaries that write there.
            x: what the dictionary placed there reads.
        """
        *below, (own, _) = self.writers(write)
        y = self.placements[own].dictionary.decode(activations[own], x)
        for lower, slot in below:
            y = y + activations[lower] @ self.placements[lower].dictionary.decoder(slot)
        return y

    def state(self, tokens: Int[Tensor, "batch pos"], mode: HeldMode = "exact") -> FrozenState:
        """Run the model once and keep everything that `frozen` mode holds.

        Args:
            tokens: token ids.
            mode: `exact` keeps the original model; `replace` the model as it runs on
                reconstructions, whose errors are zero except where the true value goes on.

        Raises:
            ValueError: if there is no such mode.
        """
        if mode not in ("exact", "replace"):
            raise ValueError(f"a state is held in mode 'exact' or 'replace', got {mode!r}")
        model = self.model
        scales = model.scale_sites()
        blocks = [site for layer in range(model.n_layers) for site in model.block_sites(layer)]
        sites = [Site("embed"), *blocks, *scales, Site("unembed_in")]
        # A fresh tensor at every denominator makes each norm compute in the model's own dtype.
        edits: dict[Site, Edit] = {s: torch.clone for s in scales}
        arriving: dict[Site, Tensor] = {}
        if mode == "replace":
            edits |= self._splice(tokens, mode, {}, None, False, {}, arriving)
        logits, values = model.run(tokens, edits=edits, capture=sites)
        inputs = {w: arriving.get(p.read, values[p.read]) for w, p in self.placements.items()}
        activations = {w: self.placements[w].dictionary.encode(x) for w, x in inputs.items()}
        errors = {w: values[w] - self.reconstruct(w, activations, x) for w, x in inputs.items()}
        arriving = {site: x for site, x in arriving.items() if site in self.placements}
        return FrozenState(tokens, logits, values, activations, errors, arriving)

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        mode: Mode = "exact",
        *,
        interventions: Iterable[Intervention] = (),
        state: FrozenState | None = None,
        hold_features: bool = False,
    ) -> SplicedRun:
        """One forward pass through the spliced model.

        Args:
            tokens: token ids.
            mode: see the module.
            interventions: changes of feature activations. In `exact` mode only the *change* of the
                features is added to the true output, so errors stay as they are.
            state: for `frozen`: what is held; None holds this very prompt.
            hold_features: for `frozen`: features keep their activations at `state` save for the
                interventions, so that only direct effects remain.

        Raises:
            ValueError: if `state` or `hold_features` is given in another mode, if `state` holds
                prompts of another shape, or if an intervention names no feature.
        """
        if mode != "frozen" and (state is not None or hold_features):
            raise ValueError(f"state and hold_features belong to mode 'frozen', got mode {mode!r}")
        if mode == "frozen" and state is None:
            state = self.state(tokens)
        if state is not None and state.tokens.shape != tokens.shape:
            raise ValueError(
                f"the held state is of tokens {tuple(state.tokens.shape)} [batch, pos], got tokens "
                f"{tuple(tokens.shape)}; hold a state of the same shape"
            )
        changes: dict[Site, list[Intervention]] = {write: [] for write in self.placements}
        for change in interventions:
            changes[self.write_site(change.site)].append(change)
        edits: dict[Site, Edit] = {} if state is None else self._held(state)
        seen: dict[Site, tuple[Tensor, Tensor]] = {}
        edits |= self._splice(tokens, mode, changes, state, hold_features, seen, {})
        logits, _ = self.model.run(tokens, edits=edits)
        return SplicedRun(
            logits,
            {write: z for write, (z, _) in seen.items()},
            {write: a for write, (_, a) in seen.items()},
        )

    def _splice(
        self,
        tokens: Int[Tensor, "batch pos"],
        mode: Mode,
        changes: Mapping[Site, list[Intervention]],
        state: FrozenState | None,
        hold_features: bool,
        seen: dict[Site, tuple[Tensor, Tensor]],
        inputs: dict[Site, Tensor],
    ) -> dict[Site, Edit]:
        """Edits that run the dictionaries; what they read is put into `inputs`, and what they make
        of it into `seen`.
        """
        edits: dict[Site, Edit] = {}
        used: dict[Site, Tensor] = {}
        moved: dict[Site, Tensor] = {}

        def remember(read: Site) -> Edit:
            return lambda x: inputs.setdefault(read, x)

        def with_changes(write: Site, y: Tensor) -> Tensor:
            """A true value plus what changed features add to it."""
            for writer, slot in self.writers(write):
                if writer in moved:
                    y = y + moved[writer] @ self.placements[writer].dictionary.decoder(slot)
            return y

        def splice(write: Site) -> Edit:
            placement, mine = self.placements[write], changes.get(write, [])
            dictionary, left_out = placement.dictionary, self.left_out(write, tokens)

            def edit(y: Tensor) -> Tensor:
                x = inputs.setdefault(placement.read, y)
                z = dictionary.pre_activations(x)
                a = dictionary.activate(z)
                base = state.activations[write] if state is not None and hold_features else a
                used[write] = new = intervene(base, mine) if mine else base
                seen[write] = (z, new)
                if mine:
                    moved[write] = new - a
                if mode == "exact":
                    return with_changes(write, y)
                out = self.reconstruct(write, used, x)
                if state is not None:
                    return out + state.errors[write]
                return torch.where(left_out[..., None], with_changes(write, y), out)

            return edit

        for write, placement in self.placements.items():
            if placement.read != write:
                edits[placement.read] = remember(placement.read)
            edits[write] = splice(write)
        return edits

    def _held(self, state: FrozenState) -> dict[Site, Edit]:
        """Edits that hold patterns, denominators and unreplaced MLPs at `state`."""

        def hold(site: Site) -> Edit:
            return lambda _: state.values[site].clone()

        patterns = [Site("pattern", layer) for layer in range(self.model.n_layers)]
        sites = [*self.model.scale_sites(), *patterns, *self.held_mlps()]
        return {site: hold(site) for site in sites}


def canonical(site: Site) -> Site:
    """The residual stream between two blocks has one name: `resid_post` of the lower one."""
    if site.kind == "resid_pre" and site.layer > 0:
        return Site("resid_post", site.layer - 1)
    return site


def _crosses(placement: Placement) -> bool:
    return isinstance(placement.dictionary, CrossLayerTranscoder)


def _layer_of(key: int | str | Site, dictionary: Dictionary) -> int:
    """The layer a key names; a key that also names a site must name the dictionary's own."""
    if isinstance(key, int):
        return key
    own = "mlp" if isinstance(dictionary, Transcoder) else getattr(dictionary, "site", None)
    if isinstance(key, Site):
        kind, layer = site_name(key), key.layer
        if isinstance(dictionary, Transcoder) and key == dictionary.write_site(layer):
            kind = "mlp"
    else:
        kind, layer = _split(key)
    if kind != own:
        raise ValueError(f"a dictionary of site {own!r} was given for {key!r}; use {own}.{layer}")
    return layer


def _canonical_name(name: str) -> str:
    kind, layer = _split(name)
    site = canonical(Site(kind, layer))  # type: ignore[arg-type]
    return f"{site.kind}.{site.layer}"


def _split(key: str) -> tuple[str, int]:
    site, _, layer = key.rpartition(".")
    if not site or not layer.isdigit():
        raise ValueError(f"dictionary keys look like 'mlp.2' or 2, got {key!r}")
    return site, int(layer)
