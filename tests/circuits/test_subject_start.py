"""Passes that begin at a layer: the rest of the whole pass, bit for bit, nothing left behind."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from circuits import Site, SubjectModel
from tests import models
from tests.models import ARCHITECTURES, D_MODEL, N_LAYERS, TOKENS

BATCH = torch.stack([TOKENS, TOKENS.flip(0)])
TUPLES = ("gptj", "gpt_neo")
"""Architectures whose blocks give tuples."""
WINDOWS = ("gemma2_windows", "gemma3")


def _config(architecture: str) -> Any:
    grouped: dict[str, Any] = models._GROUPED
    shape: dict[str, Any] = models._SHAPE
    match architecture:
        case "gemma2_windows":
            return transformers.Gemma2Config(head_dim=12, sliding_window=3, **grouped)
        case "gemma3":
            kinds = ["sliding_attention", "full_attention", "sliding_attention"]
            return transformers.Gemma3TextConfig(
                head_dim=12, sliding_window=3, layer_types=kinds, **grouped
            )
        case "qwen3":
            return transformers.Qwen3Config(**grouped)
        case "gptj":
            return transformers.GPTJConfig(rotary_dim=4, **shape)
        case _:
            layers: dict[str, Any] = {"num_hidden_layers": 6, "num_layers": 6, "num_heads": 4}
            kinds = [[["global", "local"], 3]]
            return transformers.GPTNeoConfig(
                **{**shape, **layers}, attention_types=kinds, window_size=3
            )


def _subject(architecture: str, dtype: torch.dtype) -> SubjectModel:
    if architecture in ARCHITECTURES:
        return models.subject(architecture, dtype)
    config = _config(architecture)
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf: Any = transformers.AutoModelForCausalLM.from_config(config)
    return SubjectModel.from_transformers(hf.to(dtype), None, architecture)


def _entries(model: SubjectModel, **settings: Any) -> dict[int, Tensor]:
    """The stream that enters each block in a whole pass."""
    sites = [Site("resid_pre", layer) for layer in range(model.n_layers)]
    _, seen = model.run(BATCH, capture=sites, **settings)
    return {site.layer: seen[site] for site in sites}


def _calls(model: SubjectModel) -> tuple[list[int], list[Any]]:
    """Layers whose attention runs from now on, in order, and the handles that listen."""
    ran: list[int] = []

    def note(layer: int) -> Any:
        return lambda *_: ran.append(layer)

    blocks = enumerate(model._bridge.blocks)
    return ran, [block.attn.register_forward_hook(note(layer)) for layer, block in blocks]


@pytest.mark.parametrize("dtype", models.DTYPES)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *WINDOWS, "qwen3", *TUPLES])
def test_the_rest_of_a_pass_is_the_whole_pass_bit_for_bit(architecture: str, dtype: torch.dtype):
    model = _subject(architecture, dtype)
    entries = _entries(model)
    last = model.n_layers - 1
    watched = [Site("resid_mid", last) if not model.parallel else Site("mlp_in", last)]
    watched += [Site("attn_out", last), Site("pattern", last), Site("final_scale")]
    whole, seen = model.run(BATCH, capture=watched)
    for layer, stream in entries.items():
        logits, found = model.run(BATCH, capture=watched, start=(layer, stream))
        assert torch.equal(logits, whole), layer
        assert all(torch.equal(found[site], seen[site]) for site in watched), layer
    assert model._outputs()[0] == (architecture in TUPLES)


@pytest.mark.parametrize("architecture", ["gpt2", "neox_parallel", "gemma2", "gpt_neo"])
def test_blocks_below_are_not_run(architecture: str):
    model = _subject(architecture, torch.float32)
    entries = _entries(model)
    model._outputs()
    ran, handles = _calls(model)
    model.run(BATCH, start=(2, entries[2]))
    for handle in handles:
        handle.remove()
    assert ran == list(range(2, model.n_layers))


@pytest.mark.parametrize("architecture", ["gpt2", "llama_gqa", "neox_parallel", "gemma2"])
def test_what_enters_is_what_counts(architecture: str):
    """Not the tokens: with the stream of other tokens the answer is theirs."""
    model = models.subject(architecture, torch.float64)
    whole, _ = model.run(BATCH)
    entries = _entries(model)
    logits, _ = model.run(torch.zeros_like(BATCH), start=(1, entries[1]))
    assert torch.equal(logits, whole)
    push = torch.linspace(-1.0, 1.0, D_MODEL, dtype=torch.float64)
    moved, _ = model.run(BATCH, start=(1, entries[1] + push))
    want, _ = model.run(BATCH, edits={Site("resid_pre", 1): lambda x: x + push})
    assert torch.equal(moved, want)
    assert not torch.allclose(moved, whole)


def test_edits_and_captures_from_the_layer_on_do_what_they_do_in_a_whole_pass():
    model = models.subject("llama_gqa", torch.float64)
    edits = {
        Site("resid_pre", 1): lambda x: 2.0 * x,
        Site("attn_out", 2): lambda x: x + 1.0,
        Site("unembed_in"): lambda x: x[:, -1:],
        Site("final_scale"): lambda x: 1.5 * x,
    }
    sites = [Site("resid_pre", 1), Site("resid_post", 2), Site("unembed_in")]
    whole, seen = model.run(BATCH, edits=edits, capture=sites)
    logits, found = model.run(BATCH, edits=edits, capture=sites, start=(1, _entries(model)[1]))
    assert logits.shape == (2, 1, models.D_VOCAB)
    assert torch.equal(logits, whole)
    assert all(torch.equal(found[site], seen[site]) for site in sites)


def test_the_stream_is_not_changed_and_gradients_reach_it():
    model = models.subject("gpt2", torch.float64)
    stream = _entries(model)[1].requires_grad_(True)
    before = stream.detach().clone()
    logits, _ = model.run(BATCH, edits={Site("resid_pre", 1): torch.clone}, start=(1, stream))
    (got,) = torch.autograd.grad(logits[:, -1, 3].sum(), stream)
    whole = before.clone().requires_grad_(True)
    logits, _ = model.run(BATCH, edits={Site("resid_pre", 1): lambda _: whole})
    (want,) = torch.autograd.grad(logits[:, -1, 3].sum(), whole)
    assert torch.equal(got, want)
    assert got.abs().max() > 0
    assert torch.equal(stream.detach(), before)


def test_layer_zero_begins_behind_the_embedding():
    model = models.subject("gpt2")
    entries = _entries(model)
    logits, _ = model.run(BATCH.flip(0), start=(0, entries[0]))
    assert torch.equal(logits, model.run(BATCH)[0])


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neo"])
def test_nothing_is_left_behind_even_by_an_error(architecture: str):
    model = _subject(architecture, torch.float32)
    base, _ = model.run(BATCH)
    entries = _entries(model)

    def explode(_: Tensor) -> Tensor:
        raise RuntimeError("inside an edit")

    with pytest.raises(RuntimeError, match="inside an edit"):
        model.run(BATCH, edits={Site("mlp_out", 2): explode}, start=(2, entries[2]))
    assert torch.equal(model.run(BATCH)[0], base)
    assert not any("forward" in vars(block) for block in model._bridge.blocks)


@pytest.mark.parametrize("layer", [-1, N_LAYERS])
def test_layers_that_are_not_there(layer: int):
    model = models.subject("gpt2")
    with pytest.raises(ValueError, match=f"begins at a layer from 0 to 2, got {layer}"):
        model.run(BATCH, start=(layer, torch.zeros(*BATCH.shape, D_MODEL)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(1, 7), (2, 6)])
def test_streams_of_other_tokens_shapes(shape: tuple[int, int]):
    message = (
        rf"layer 1 must have one vector a token, for tokens \(2, 7\).*\({shape[0]}, {shape[1]}"
    )
    with pytest.raises(ValueError, match=message):
        models.subject("gpt2").run(BATCH, start=(1, torch.zeros(*shape, D_MODEL)))


@pytest.mark.parametrize(
    ("edited", "captured", "names"),
    [
        (Site("embed"), None, "embed0"),
        (Site("resid_post", 0), None, "resid_post0"),
        (None, Site("mlp_out", 1), "mlp_out1"),
        (Site("attn_out", 1), Site("embed"), "embed0, attn_out1"),
    ],
)
def test_places_that_the_pass_does_not_come_by(edited: Any, captured: Any, names: str):
    edits = {} if edited is None else {edited: torch.clone}
    capture = [] if captured is None else [captured]
    message = rf"begins at layer 2 does not come by {names}; begin lower, or edit .*resid_pre2"
    with pytest.raises(ValueError, match=message):
        models.subject("gpt2").run(
            BATCH, edits=edits, capture=capture, start=(2, torch.zeros(*BATCH.shape, D_MODEL))
        )


# --- MLPs that are not run ----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *WINDOWS, "qwen3", *TUPLES])
@pytest.mark.parametrize("kind", ["mlp_raw_out", "mlp_out"])
def test_an_mlp_that_is_replaced_need_not_run(architecture: str, kind: Any):
    model = _subject(architecture, torch.float32)
    generator = torch.Generator().manual_seed(0)
    new = torch.randn(*BATCH.shape, D_MODEL, generator=generator)
    edits = {Site(kind, layer): lambda _: new for layer in (0, 2)}
    last = model.n_layers - 1
    sites = [Site("mlp_in", 0), Site("mlp_out", 0), Site("mlp_raw_out", 1), Site("attn_out", last)]
    whole, seen = model.run(BATCH, edits=edits, capture=sites)
    ran: list[int] = []

    def note(layer: int) -> Any:
        return lambda *_: ran.append(layer)

    mlps = [block.mlp.original_component for block in model._bridge.blocks]
    assert model._outputs()[1] == set(range(model.n_layers))
    handles = [
        next(mlp.children()).register_forward_hook(note(layer)) for layer, mlp in enumerate(mlps)
    ]
    logits, found = model.run(BATCH, edits=edits, capture=sites, replaced=[0, 2])
    for handle in handles:
        handle.remove()
    assert torch.equal(logits, whole)
    assert all(torch.equal(found[site], seen[site]) for site in sites)
    assert ran == [layer for layer in range(model.n_layers) if layer not in (0, 2)]
    assert torch.equal(model.run(BATCH, edits=edits)[0], whole)
    assert not torch.allclose(model.run(BATCH)[0], whole)


def test_a_forward_that_a_module_has_of_its_own_is_put_back():
    """Libraries that place weights on devices set one on the module."""
    model = SubjectModel.from_transformers(models.hf_model("gpt2"), None, "own")
    mlp = model._bridge.blocks[1].mlp.original_component
    usual, calls = mlp.forward, []

    def forward(x: Tensor) -> Tensor:
        calls.append(1)
        return usual(x)

    vars(mlp)["forward"] = forward
    edits = {Site("mlp_out", 1): torch.zeros_like}
    whole, _ = model.run(BATCH, edits=edits)
    n_calls = len(calls)
    model._outputs()
    calls.clear()
    assert torch.equal(model.run(BATCH, edits=edits, replaced=[1])[0], whole)
    assert not calls
    assert vars(mlp)["forward"] is forward
    model.run(BATCH)
    assert len(calls) == n_calls == 1


def test_mlps_that_are_wanted():
    model = models.subject("gpt2")
    with pytest.raises(ValueError, match=r"no edit replaces .* of layers \[1\]; edit mlp_raw_out"):
        model.run(BATCH, edits={Site("mlp_out", 0): torch.zeros_like}, replaced=[0, 1])
    with pytest.raises(ValueError, match="mlp_post0 are inside MLPs that are not run"):
        model.run(
            BATCH,
            edits={Site("mlp_out", 0): torch.zeros_like},
            capture=[Site("mlp_post", 0), Site("mlp_post", 1)],
            replaced=[0],
        )
