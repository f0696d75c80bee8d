"""Virtual weights along single paths equal what the frozen model passes along them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attribution.invariant.routes import Head
from attribution.invariant.weights import virtual_weights
from circuits import FrozenState, Site, SplicedModel
from tests import models
from tests.attribution.test_closed_form import (
    DEC_0,
    ENC_1,
    GAIN_1,
    GAIN_2,
    W_O,
    W_V,
    centred,
    hand_spliced,
)
from tests.models import TOKENS

WITHOUT_POST_NORMS = tuple(a for a in models.ARCHITECTURES if a != "gemma2")
Q, K = 5, 2  # a query and an earlier key


def pair(architecture: str, *places: str) -> SplicedModel:
    """The model with a random dictionary at each place."""
    dictionaries = {}
    for seed, place in enumerate(places):
        site = place.rpartition(".")[0]
        made = models.transcoder(seed=seed) if site == "mlp" else models.sae(site, seed=seed)
        dictionaries[place] = made
    return SplicedModel(models.subject(architecture, torch.float64), dictionaries)


def moved(
    spliced: SplicedModel,
    state: FrozenState,
    target: str,
    source: str,
    feature: int,
    at: int,
    head: Head | None,
) -> Tensor:
    """How far the target's pre-activations at Q move when a source feature at `at` grows by 1.

    In the model with its denominators held, MLPs that write what they wrote, and every attention
    pattern 0 but that of `head`. Shares no formula with virtual weights.
    """
    model = spliced.model
    write, reader = spliced.write_site(source), spliced.placements[spliced.write_site(target)]
    step = torch.zeros_like(state.values[write])
    step[0, at] = spliced.placements[write].dictionary.W_dec[feature]

    def hold(site: Site, factor: Tensor | float = 1.0) -> Callable[[Tensor], Tensor]:
        return lambda _: state.values[site] * factor

    edits: dict[Site, Callable[[Tensor], Tensor]] = {s: hold(s) for s in model.scale_sites()}
    for layer in range(model.n_layers):
        edits[Site("mlp_raw_out", layer)] = hold(Site("mlp_raw_out", layer))
        on = torch.zeros(model.n_heads, 1, 1, dtype=torch.float64)
        if head is not None and head[0] == layer:
            on[head[1]] = 1.0
        edits[Site("pattern", layer)] = hold(Site("pattern", layer), on)
    before = edits.get(write, lambda value: value)

    def read(edits: dict[Site, Callable[[Tensor], Tensor]]) -> Tensor:
        _, values = model.run(TOKENS[None], edits=edits, capture=[reader.read])
        return values[reader.read][0, Q] @ reader.dictionary.W_enc

    return read({**edits, write: lambda value: before(value) + step}) - read(edits)


def denominator(spliced: SplicedModel, state: FrozenState, target: str) -> Tensor:
    read = spliced.placements[spliced.write_site(target)].read
    scale = Site("ln2_scale", read.layer)
    return state.values[scale][0, Q, 0] if read.kind == "mlp_in" else torch.tensor(1.0).double()


def close(got: Tensor, want: Tensor) -> bool:
    assert want.abs().max() > 1e-3
    return bool((got - want).abs().max() < 1e-10 * want.abs().max())


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ("mlp.2", "mlp.0"),
        ("mlp.1", "mlp.0"),
        ("mlp.0", "resid_pre.0"),
        ("mlp.2", "resid_post.0"),
        ("resid_post.1", "mlp.1"),
        ("resid_post.2", "attn_out.0"),
        ("mlp.2", "attn_out.0"),
        ("resid_pre.2", "mlp_out.0"),
    ],
)
@pytest.mark.parametrize("architecture", WITHOUT_POST_NORMS)
def test_a_direct_weight_is_what_the_stream_alone_carries(
    architecture: str, target: str, source: str
):
    spliced = pair(architecture, target, source)
    state = spliced.state(TOKENS[None])
    weights = virtual_weights(spliced, target, source)
    for feature in (0, 7):
        want = moved(spliced, state, target, source, feature, Q, None)
        assert close(weights[:, feature] / denominator(spliced, state, target), want)


@pytest.mark.parametrize(
    ("target", "source", "layer"),
    [
        ("mlp.2", "mlp.0", 1),
        ("mlp.2", "mlp.0", 2),
        ("mlp.1", "mlp.0", 1),
        ("mlp.1", "resid_pre.0", 0),
        ("mlp.2", "resid_post.0", 1),
        ("resid_post.1", "attn_out.0", 1),
        ("resid_pre.2", "mlp_out.0", 1),
        ("attn_out.1", "mlp.0", 1),
        ("attn_out.2", "attn_out.0", 2),
    ],
)
@pytest.mark.parametrize("architecture", WITHOUT_POST_NORMS)
def test_a_weight_through_a_head_is_what_that_head_alone_carries(
    architecture: str, target: str, source: str, layer: int
):
    spliced = pair(architecture, target, source)
    if spliced.model.parallel and target == f"mlp.{layer}":
        with pytest.raises(ValueError, match="does not write below what mlp"):
            virtual_weights(spliced, target, source, head=(layer, 0))
        return
    state = spliced.state(TOKENS[None])
    sigma_k = state.values[Site("ln1_scale", layer)][0, K, 0]
    for head in range(spliced.model.n_heads):
        weights = virtual_weights(spliced, target, source, head=(layer, head))
        a = state.values[Site("pattern", layer)][0, head, Q, K]
        want = moved(spliced, state, target, source, 3, K, (layer, head))
        got = weights[:, 3] * a / sigma_k / denominator(spliced, state, target)
        assert close(got, want), head


def test_an_sae_on_gemma_s_sublayer_output_writes_after_the_post_norm():
    """So a direct weights-only path starts there, though none starts at a transcoder."""
    for source in ("attn_out.0", "mlp_out.0"):
        spliced = pair("gemma2", "mlp.2", source)
        state = spliced.state(TOKENS[None])
        want = moved(spliced, state, "mlp.2", source, 4, Q, None)
        got = virtual_weights(spliced, "mlp.2", source)[:, 4]
        assert close(got / denominator(spliced, state, "mlp.2"), want)


def test_heads_by_hand():
    """`(centred(d) * gain_1) W_V^h W_O^h centred(gain_2 * e)` with two numbers a head."""
    weights = [virtual_weights(hand_spliced(), "mlp.1", "mlp.0", head=(1, h)) for h in (0, 1)]
    for head in (0, 1):
        part = slice(2 * head, 2 * head + 2)
        ov = W_V[:, part] @ W_O[part]
        want = centred(GAIN_2 * ENC_1.T) @ (centred(DEC_0) * GAIN_1 @ ov).T
        assert torch.allclose(weights[head], want.double())
        assert want.abs().max() > 1


@pytest.mark.parametrize("head", [None, (1, 2)])
def test_chosen_features_are_rows_and_columns(head: Head | None):
    spliced = pair("llama_gqa", "mlp.2", "mlp.0")
    every = virtual_weights(spliced, "mlp.2", "mlp.0", head=head)
    some = virtual_weights(
        spliced, "mlp.2", "mlp.0", head=head, target_features=[9, 0], source_features=[3, 3, 39]
    )
    assert every.shape == (40, 40)
    assert torch.allclose(some, every[[9, 0]][:, [3, 3, 39]], rtol=1e-12, atol=1e-14)
    none = virtual_weights(spliced, "mlp.2", "mlp.0", head=head, target_features=[])
    assert none.shape == (0, 40)


@pytest.mark.parametrize(
    ("places", "target", "source", "head", "message"),
    [
        (("mlp.2", "mlp.0"), "mlp.2", "mlp.0", (0, 0), "mlp.0 does not write below what head 0.0"),
        (("mlp.1", "mlp.0"), "mlp.1", "mlp.0", (2, 1), "head 2.1 does not write below what mlp.1"),
        (("mlp.2", "mlp.0"), "mlp.0", "mlp.2", (1, 0), "head 1.0 does not write below what mlp.0"),
        (("mlp.2", "mlp.0"), "mlp.2", "mlp.0", (3, 0), r"layer in \[0, 3\) .* got \(3, 0\)"),
        (("mlp.2", "mlp.0"), "mlp.2", "mlp.0", (1, 4), r"head in \[0, 4\), got \(1, 4\)"),
        (("mlp.2", "mlp.0"), "mlp.2", "mlp.0", (-1, 0), "want a head"),
        (("mlp.2", "attn_out.1"), "mlp.2", "attn_out.1", (1, 0), "attn_out.1 does not write below"),
        (("attn_out.2", "mlp.0"), "attn_out.2", "mlp.0", (1, 0), "reads the heads of layer 2, got"),
        (("mlp_out.2", "mlp.0"), "mlp_out.2", "mlp.0", (1, 0), "reads a sublayer's output"),
        (
            ("mlp.2", "attn_out.1", "mlp.0"),
            "mlp.2",
            "mlp.0",
            (1, 0),
            "the SAE at attn_out.1 replaces what head 1.0 writes",
        ),
        (
            ("mlp.2", "resid_post.0", "mlp.0"),
            "mlp.2",
            "mlp.0",
            (1, 0),
            "resid_post0 replaces the residual stream between mlp.0 and mlp.2",
        ),
        (
            ("mlp.2", "resid_post.1", "mlp.0"),
            "mlp.2",
            "mlp.0",
            (1, 0),
            "resid_post1 replaces the residual stream",
        ),
        (
            ("resid_post.2", "resid_post.1", "resid_post.0"),
            "resid_post.2",
            "resid_post.0",
            None,
            "resid_post1 replaces the residual stream",
        ),
    ],
)
def test_paths_that_do_not_exist_are_refused(
    places: tuple[str, ...], target: str, source: str, head: Head | None, message: str
):
    with pytest.raises(ValueError, match=message):
        virtual_weights(pair("gpt2", *places), target, source, head=head)


@pytest.mark.parametrize(
    ("places", "target", "source", "head"),
    [
        (("mlp.2", "attn_out.2", "mlp.0"), "mlp.2", "mlp.0", (1, 0)),
        (("mlp.2", "attn_out.1", "mlp.0"), "attn_out.1", "mlp.0", (1, 0)),
        (("mlp.2", "resid_post.2", "mlp.0"), "mlp.2", "mlp.0", (1, 0)),
        (("resid_pre.0", "mlp.0", "mlp.1"), "mlp.1", "mlp.0", None),
        (("resid_post.1", "mlp.2", "mlp.0"), "resid_post.1", "mlp.0", (1, 0)),
    ],
)
def test_dictionaries_off_the_path_do_not_cut_it(
    places: tuple[str, ...], target: str, source: str, head: Head | None
):
    whole = virtual_weights(pair("gpt2", *places), target, source, head=head)
    assert whole.abs().max() > 0


@pytest.mark.parametrize(
    ("target", "source"), [("resid_post.2", "attn_out.0"), ("attn_out.1", "mlp_out.0")]
)
def test_a_post_norm_after_a_head_leaves_no_weights_only_path(target: str, source: str):
    spliced = pair("gemma2", target, source)
    with pytest.raises(ValueError, match=r"normalises what head 1.0 writes, with an input-dep"):
        virtual_weights(spliced, target, source, head=(1, 0))
    with pytest.raises(ValueError, match=r"normalises what mlp.0 writes"):
        virtual_weights(pair("gemma2", "mlp.2", "mlp.0"), "mlp.2", "mlp.0")


@pytest.mark.parametrize("which", ["target_features", "source_features"])
@pytest.mark.parametrize("feature", [-1, 40])
def test_features_must_exist(which: str, feature: int):
    spliced = pair("gpt2", "mlp.2", "mlp.0")
    with pytest.raises(ValueError, match=rf"feature must be in \[0, 40\), got {feature}"):
        virtual_weights(spliced, "mlp.2", "mlp.0", **{which: [0, feature]})
