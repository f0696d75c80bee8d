"""sparsify: as its own code computes it, the old and the new way with `b_dec`, places."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from circuits.conventions import Convention
from circuits.formats.entry import Given
from circuits.formats.module_names import place_of_module
from circuits.formats.sparsify import FORMAT

FIXTURES = Path(__file__).parent.parent / "fixtures" / "sparsify"
EXPECTED = load_file(FIXTURES / "expected.safetensors")
FOLDERS = {
    "saes/layers.3": "resid_post.3",
    "saes/layers.3.mlp": "mlp_out.3",
    "saes/layers.4.self_attn": "attn_out.4",
    "transcoders/h.0.mlp": "mlp.0",
    "transcoders/h.1.mlp": "mlp.1",
}


def copied(folder: Path, source: str, **changes: Any) -> Path:
    """A copy of a fixture with some keys of its config changed; None takes one away."""
    shutil.copytree(FIXTURES / source, folder)
    config = json.loads((folder / "cfg.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("source", "place"), FOLDERS.items())
def test_what_the_library_computes(source: str, place: str):
    (entry,) = FORMAT.open(FIXTURES / source, Given())
    dictionary, x = entry.read(), EXPECTED["x"]
    transcodes = source.startswith("transcoders")
    want = Convention(subtracted="nothing" if transcodes else "b_dec")
    assert (entry.name, entry.kind) == (place, "transcoder" if transcodes else "sae")
    assert (entry.d_in, entry.d_out, entry.n_features) == (6, 6, dictionary.n_features)
    assert entry.convention == dictionary.convention == want
    assert (dictionary.activation, dictionary.k) == ("topk", 3)
    assert (dictionary.W_skip is None) == (source != "transcoders/h.1.mlp")
    assert (dictionary.encode(x) - EXPECTED[f"{source}.a"]).abs().max() < 1e-5
    assert (dictionary(x) - EXPECTED[f"{source}.y"]).abs().max() < 1e-5
    rows = [4, 1, 4]
    part = entry.read_rows(rows)
    assert torch.equal(part.encoder, dictionary.W_enc.T[rows])
    assert torch.equal(part.decoder, dictionary.W_dec[rows])
    assert torch.allclose(part.b_enc, dictionary.b_enc[rows], rtol=0, atol=1e-6)


def test_a_run_opens_in_the_order_of_layers():
    names = [entry.name for entry in FORMAT.open(FIXTURES / "saes", Given())]
    assert names == ["mlp_out.3", "resid_post.3", "attn_out.4"]
    only = FORMAT.open(FIXTURES / "saes", Given(layers=frozenset([4])))
    assert [entry.name for entry in only] == ["attn_out.4"]


@pytest.mark.parametrize("changes", [{"skip_connection": True}, {}])
def test_old_transcoders_subtract_b_dec(tmp_path: Path, changes: dict):
    """Before `transcode` was in `cfg.json`, `b_dec` was subtracted from every input."""
    source = "transcoders/h.1.mlp" if changes else "transcoders/h.0.mlp"
    folder = copied(tmp_path / "run" / "h.1.mlp", source, transcode=None, **changes)
    if not changes:
        run = {"transcode": True, "model": "toy/model"}
        (tmp_path / "run" / "config.json").write_text(json.dumps(run))
    (entry,) = FORMAT.open(tmp_path / "run", Given())
    assert (entry.name, entry.convention.subtracted) == ("mlp.1", "b_dec")
    assert entry.model == ("" if changes else "toy/model")
    tensors = load_file(folder / "sae.safetensors")
    x = EXPECTED["x"]
    z = (x - tensors["b_dec"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"]
    assert torch.allclose(entry.read().pre_activations(x), z, rtol=0, atol=1e-5)


def test_old_saes_say_nothing_and_are_saes(tmp_path: Path):
    copied(tmp_path / "layers.3.mlp", "saes/layers.3.mlp", transcode=None)
    (entry,) = FORMAT.open(tmp_path, Given())
    assert (entry.name, entry.kind) == ("mlp_out.3", "sae")
    (entry,) = FORMAT.open(tmp_path, Given(site="mlp"))
    assert (entry.name, entry.kind) == ("mlp.3", "transcoder")


def test_the_callers_word_counts_before_the_files(tmp_path: Path):
    folder = copied(tmp_path / "mine", "transcoders/h.0.mlp")
    with pytest.raises(ValueError, match="named after 'mine', no place"):
        FORMAT.open(folder, Given())
    convention = Convention(norm="bare", subtracted="b_dec")
    (entry,) = FORMAT.open(folder, Given(site="mlp", layer=9, convention=convention))
    assert entry.name == "mlp.9"
    assert entry.read().convention == convention
    tensors = load_file(folder / "sae.safetensors")
    want = tensors["encoder.bias"] - tensors["encoder.weight"] @ tensors["b_dec"]
    assert torch.allclose(entry.read().b_enc, want, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="holds 2 dictionaries; give the path of one"):
        FORMAT.open(FIXTURES / "transcoders", Given(layer=9))


def test_seeds_of_one_place(tmp_path: Path):
    copied(tmp_path / "h.1.mlp" / "seed0", "transcoders/h.1.mlp")
    (entry,) = FORMAT.open(tmp_path, Given())
    assert entry.name == "mlp.1"
    copied(tmp_path / "h.1.mlp" / "seed7", "transcoders/h.1.mlp")
    with pytest.raises(ValueError, match=r"mlp\.1: .*seed0.* and .*seed7"):
        FORMAT.open(tmp_path, Given())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "groupmax"}, "activation must be 'topk', got 'groupmax'"),
        ({"signed": True}, "signed features keep negative values"),
        ({"signed": 1}, "signed must be true or false, got 1"),
        ({"transcode": "yes"}, "transcode must be true or false, got 'yes'"),
        ({"k": 0}, "k must be a positive whole number, got 0"),
        ({"k": 13}, "k must be at most the 12 features, got 13"),
        ({"k": None}, "k must be a positive whole number, got None"),
        ({"d_in": 7}, r"sae.safetensors: encoder.weight must have shape \(14, 7\), got \(12, 6\)"),
        ({"num_latents": 11}, r"encoder.weight must have shape \(11, 6\), got \(12, 6\)"),
        ({"skip_connection": True}, "sae.safetensors lacks W_skip"),
        ({"expansion_factor": 2.0}, "expansion_factor must be a positive whole number, got 2.0"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path: Path, changes: dict, message: str):
    copied(tmp_path / "layers.3", "saes/layers.3", **changes)
    with pytest.raises(ValueError, match=message):
        FORMAT.open(tmp_path, Given())


@pytest.mark.parametrize("name", ["layers.3", "layers.3.self_attn", "layers.3.mlp.act_fn"])
def test_a_transcoder_of_no_mlp_is_refused(tmp_path: Path, name: str):
    copied(tmp_path / name, "transcoders/h.0.mlp")
    with pytest.raises(ValueError, match=f"named after '{name}', no place"):
        FORMAT.open(tmp_path, Given())


@pytest.mark.parametrize(
    ("name", "reads", "place"),
    [
        ("layers.3", "out", ("resid_post", 3)),
        ("transformer.h.11", "in", ("resid_pre", 11)),
        ("model.layers.0.mlp", "both", ("mlp", 0)),
        ("gpt_neox.layers.2.mlp", "out", ("mlp_out", 2)),
        ("gpt_neox.layers.2.attention", "out", ("attn_out", 2)),
        ("h.2.attn", "out", ("attn_out", 2)),
        ("model.embed_tokens", "out", ("resid_pre", 0)),
        ("model.embed_tokens", "both", None),
        ("h.2.attn", "both", None),
        ("h.2.attn", "in", None),
        ("h.2.mlp", "in", None),
        ("h.2.mlp.c_fc", "out", None),
        ("h.2", "both", None),
        ("h.two", "out", None),
        ("ln_f", "out", None),
    ],
)
def test_places_of_modules(name: str, reads: str, place: tuple[str, int] | None):
    assert place_of_module(name, reads) == place


def test_recognised(tmp_path: Path):
    assert FORMAT.recognises(FIXTURES / "saes")
    assert FORMAT.recognises(FIXTURES / "saes" / "layers.3")
    assert not FORMAT.recognises(FIXTURES / "saes" / "layers.3" / "cfg.json")
    assert not FORMAT.recognises(tmp_path)
    with pytest.raises(ValueError, match=r"holds no folder with cfg.json and sae.safetensors"):
        FORMAT.open(tmp_path, Given())
