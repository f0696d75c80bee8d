"""dictionary_learning: every class as its own code computes it, places, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from circuits.conventions import Convention
from circuits.formats.dictionary_learning import FORMAT
from circuits.formats.entry import Given

FIXTURES = Path(__file__).parent.parent / "fixtures" / "dictionary_learning"
EXPECTED = load_file(FIXTURES / "expected.safetensors")
CLASSES = {
    "standard": ("relu", "b_dec"),
    "april": ("relu", "nothing"),
    "gated": ("jumprelu", "b_dec"),
    "topk": ("topk", "b_dec"),
    "batch_topk": ("jumprelu", "b_dec"),
    "jumprelu": ("jumprelu", "nothing"),
    "matryoshka": ("jumprelu", "b_dec"),
}
D, F = 6, 10


def write(
    folder: Path,
    source: str = "standard",
    *,
    trainer: dict[str, Any] | None = None,
    buffer: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
) -> Path:
    """A copy of a fixture with some of its facts changed; None takes one away."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((FIXTURES / source / "config.json").read_text())
    state = torch.load(FIXTURES / source / "ae.pt", weights_only=True)
    for part, changes in ((config["trainer"], trainer), (config["buffer"], buffer)):
        part.update(changes or {})
    state.update(tensors or {})
    config["trainer"] = {n: v for n, v in config["trainer"].items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({n: v for n, v in state.items() if v is not None}, folder / "ae.pt")
    return folder


@pytest.mark.parametrize("name", CLASSES)
def test_what_the_library_computes(name: str):
    (entry,) = FORMAT.open(FIXTURES / name, Given())
    activation, subtracted = CLASSES[name]
    dictionary = entry.read()
    x = EXPECTED["x"]
    assert (entry.name, entry.kind, entry.d_in, entry.d_out) == ("resid_post.3", "sae", D, D)
    assert entry.model == "EleutherAI/pythia-70m-deduped"
    assert entry.convention == dictionary.convention == Convention(subtracted=subtracted)
    assert (dictionary.activation, dictionary.k) == (activation, 3 if name == "topk" else None)
    assert (dictionary.encode(x) - EXPECTED[f"{name}.a"]).abs().max() < 1e-5
    assert (dictionary(x) - EXPECTED[f"{name}.y"]).abs().max() < 1e-5
    assert 0 < (EXPECTED[f"{name}.a"] > 0).float().mean() < 1


@pytest.mark.parametrize("name", CLASSES)
def test_rows_are_those_of_the_whole(name: str):
    (entry,) = FORMAT.open(FIXTURES / name / "ae.pt", Given())
    rows, whole = [7, 0, 7], entry.read()
    part = entry.read_rows(rows)
    assert torch.equal(part.encoder, whole.W_enc.T[rows])
    assert torch.equal(part.decoder, whole.W_dec[rows])
    assert torch.allclose(part.b_enc, whole.b_enc[rows], rtol=0, atol=1e-6)
    if whole.threshold is None:
        assert part.threshold is None
    else:
        assert part.threshold is not None
        assert torch.equal(part.threshold, whole.threshold[rows])
    with pytest.raises(ValueError, match="has features 0 to 9, got 10"):
        entry.read_rows([10])


def test_a_gate_at_exactly_zero_and_a_negative_one_stay_shut(tmp_path: Path):
    """At u = -gate_bias the gate is shut, whatever the magnitude; powers of 2, so exactly."""
    one = torch.zeros(F)
    state = {
        "encoder.weight": torch.eye(F, D),
        "decoder.weight": torch.eye(D, F),
        "decoder_bias": torch.zeros(D),
        "r_mag": one,
        "gate_bias": one - 2,
        "mag_bias": one + torch.tensor([0.0, 4, -4, 2, 1, 0, 0, 0, 0, 0]),
    }
    (entry,) = FORMAT.open(write(tmp_path / "g", "gated", tensors=state), Given())
    u = torch.tensor([[2.0] * D, [2.5] * D, [-1.0] * D, [4.0] * D])
    wide = torch.nn.functional.pad(u, (0, F - D))
    want = (wide + state["gate_bias"] > 0) * (wide + state["mag_bias"]).clamp_min(0)
    assert torch.equal(entry.read().encode(u), want)
    assert want[0].sum() == 0
    assert want[1, 2] == 0


def test_a_decoder_that_is_not_of_norm_1_is_taken_as_it_is(tmp_path: Path):
    state = torch.load(FIXTURES / "standard" / "ae.pt", weights_only=True)
    tripled = {"decoder.weight": 3 * state["decoder.weight"]}
    (entry,) = FORMAT.open(write(tmp_path / "a", tensors=tripled), Given())
    assert torch.equal(entry.read().W_dec, 3 * state["decoder.weight"].T)


@pytest.mark.parametrize(
    ("trainer", "buffer", "place"),
    [
        ({}, {}, "resid_post.3"),
        ({"submodule_name": "resid_pre_layer_3"}, {}, "resid_pre.3"),
        ({"submodule_name": "resid_layer3"}, {}, "resid_post.3"),
        ({"submodule_name": "mlp_out_layer_3"}, {}, "mlp_out.3"),
        ({"submodule_name": "mlp"}, {"io": "in_and_out"}, "mlp.3"),
        ({"submodule_name": "attn_out"}, {}, "attn_out.3"),
        ({"submodule_name": "gpt_neox.layers.3"}, {"io": "in"}, "resid_pre.3"),
        ({"submodule_name": "model.layers.3.mlp"}, {"io": "in_and_out"}, "mlp.3"),
        ({"submodule_name": "transformer.h.3.attn"}, {}, "attn_out.3"),
        ({"submodule_name": "model.layers.3", "layer": None}, {}, "resid_post.3"),
    ],
)
def test_places(tmp_path: Path, trainer: dict, buffer: dict, place: str):
    (entry,) = FORMAT.open(write(tmp_path, trainer=trainer, buffer=buffer), Given())
    assert entry.name == place
    assert entry.kind == ("transcoder" if place.startswith("mlp.") else "sae")
    if entry.kind == "transcoder":
        assert (entry.convention.norm, entry.convention.output) == (
            "gain and bias",
            "before post-norm",
        )


@pytest.mark.parametrize(
    ("trainer", "buffer"),
    [
        ({"submodule_name": "resid_post_layer_3"}, {"io": "in_and_out"}),
        ({"submodule_name": "resid_pre_layer_3"}, {"io": "in"}),
        ({"submodule_name": "model.layers.3.mlp"}, {"io": "in"}),
        ({"submodule_name": "model.layers.3.mlp.act_fn"}, {}),
        ({"submodule_name": "lm_head"}, {}),
        ({"submodule_name": "mlp", "layer": None}, {}),
        ({"submodule_name": "mlp", "layer": "3"}, {}),
        ({}, {"io": "sideways"}),
        ({}, {"io": ["out"]}),
    ],
)
def test_places_that_are_none_are_refused(tmp_path: Path, trainer: dict, buffer: dict):
    folder = write(tmp_path, trainer=trainer, buffer=buffer)
    with pytest.raises(ValueError, match=r"config.json: submodule_name .* name no place"):
        FORMAT.open(folder, Given())
    (entry,) = FORMAT.open(folder, Given(site="attn_out", layer=7))
    assert entry.name == "attn_out.7"


def test_layers_that_disagree_are_refused(tmp_path: Path):
    folder = write(tmp_path, trainer={"layer": 4})
    with pytest.raises(ValueError, match=r"says layer 4, but its submodule is 'resid_post_layer_3"):
        FORMAT.open(folder, Given())


def test_folder_names_say_what_configs_do_not(tmp_path: Path):
    none = {"submodule_name": None}
    for layer, site in ((2, "attn_out"), (1, "resid_post")):
        name = tmp_path / f"{site}_layer_{layer}" / "trainer_0"
        write(name, trainer={**none, "layer": layer})
    found = FORMAT.open(tmp_path, Given())
    assert [entry.name for entry in found] == ["resid_post.1", "attn_out.2"]
    found = FORMAT.open(tmp_path, Given(layers=frozenset([2])))
    assert [entry.name for entry in found] == ["attn_out.2"]
    with pytest.raises(ValueError, match="holds 2 dictionaries; give the path of one"):
        FORMAT.open(tmp_path, Given(layer=2))


def test_several_trainers_of_one_place_are_named(tmp_path: Path):
    for i in (0, 1):
        write(tmp_path / f"trainer_{i}")
    with pytest.raises(ValueError, match=r"resid_post\.3: .*trainer_0.ae\.pt and .*trainer_1"):
        FORMAT.open(tmp_path, Given())
    (entry,) = FORMAT.open(tmp_path / "trainer_1", Given())
    assert entry.path == tmp_path / "trainer_1" / "ae.pt"


def test_the_callers_convention_decides_what_is_folded():
    (entry,) = FORMAT.open(FIXTURES / "standard", Given(convention=Convention(bos="none")))
    state = torch.load(FIXTURES / "standard" / "ae.pt", weights_only=True)
    assert torch.equal(entry.read().b_enc, state["encoder.bias"])
    (entry,) = FORMAT.open(
        FIXTURES / "standard", Given(convention=Convention(subtracted="own vector"))
    )
    with pytest.raises(ValueError, match="'own vector' subtracted from the input, but the file"):
        entry.read()


@pytest.mark.parametrize(
    ("source", "trainer", "tensors", "message"),
    [
        ("topk", {"dict_class": None}, {}, "are of AutoEncoderTopK or BatchTopKSAE; want one of"),
        ("topk", {"dict_class": "GatedAutoEncoder"}, {}, "dict_class is 'GatedAutoEncoder', but"),
        ("gated", {"dict_class": "AutoEncoder"}, {}, "are of GatedAutoEncoder; want one of"),
        ("standard", {}, {"surprise": torch.zeros(1)}, "of no class known here"),
        ("standard", {}, {"bias": None}, "of no class known here"),
        ("standard", {"dict_size": F + 1}, {}, r"ae.pt: .* must have shape .* got "),
        ("standard", {"activation_dim": None}, {}, "activation_dim must be a positive whole"),
        ("topk", {"k": 4}, {}, "the same in ae.pt, got 4 and 3"),
        ("topk", {"k": F + 1}, {"k": torch.tensor(F + 1)}, "k must be at most the 10 features"),
        ("topk", {"k": -3}, {}, "k must be a positive whole number, got -3"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, source: str, trainer: dict, tensors: dict, message: str
):
    folder = write(tmp_path, source, trainer=trainer, tensors=tensors)
    with pytest.raises(ValueError, match=message):
        FORMAT.open(folder, Given())


@pytest.mark.parametrize("source", ["batch_topk", "matryoshka"])
@pytest.mark.parametrize("threshold", [None, torch.tensor(-1.0)])
def test_a_batch_topk_without_its_threshold_is_refused(
    tmp_path: Path, source: str, threshold: torch.Tensor | None
):
    folder = write(tmp_path, source, tensors={"threshold": threshold})
    (entry,) = FORMAT.open(folder, Given())
    with pytest.raises(ValueError, match="has no threshold yet"):
        entry.read()


def test_an_old_topk_without_k_and_threshold_in_its_weights(tmp_path: Path):
    folder = write(tmp_path, "topk", tensors={"k": None, "threshold": None})
    (entry,) = FORMAT.open(folder, Given())
    assert entry.read().k == 3


def test_recognised():
    assert FORMAT.recognises(FIXTURES)
    assert FORMAT.recognises(FIXTURES / "gated" / "ae.pt")
    assert not FORMAT.recognises(FIXTURES / "gated" / "config.json")
    assert not FORMAT.recognises(FIXTURES / "nowhere")
    with pytest.raises(ValueError, match=r"holds no ae\.pt"):
        FORMAT.open(FIXTURES / "nowhere", Given())
