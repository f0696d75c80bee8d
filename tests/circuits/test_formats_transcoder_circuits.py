"""The transcoder paper's files: as its own code computes them, hooks, and the later folders."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from circuits.conventions import Convention
from circuits.formats.entry import Given
from circuits.formats.transcoder_circuits import FORMAT

FIXTURES = Path(__file__).parent.parent / "fixtures" / "transcoder_circuits"
EXPECTED = load_file(FIXTURES / "expected.safetensors")
TRAINED: dict[str, Any] = {"centred": True, "bos": "in front", "first_position": "read"}
TRANSCODER = Convention(norm="bare", subtracted="own vector", output="after post-norm", **TRAINED)
D, F = 6, 12


class LanguageModelSAERunnerConfig:
    """What the paper's files pickle, under the name they have there."""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a `.pt` of the paper's layout with some facts of its config changed."""
    module = ModuleType("sae_training.config")
    monkeypatch.setitem(sys.modules, "sae_training", ModuleType("sae_training"))
    monkeypatch.setitem(sys.modules, "sae_training.config", module)
    module.LanguageModelSAERunnerConfig = LanguageModelSAERunnerConfig  # type: ignore[attr-defined]
    monkeypatch.setattr(LanguageModelSAERunnerConfig, "__module__", "sae_training.config")

    def write(name: str = "x.pt", tensors: dict[str, Any] | None = None, **changes: Any) -> Path:
        config = LanguageModelSAERunnerConfig()
        vars(config).update(
            model_name="toy",
            is_transcoder=True,
            hook_point="blocks.3.ln2.hook_normalized",
            out_hook_point="blocks.3.hook_mlp_out",
            hook_point_head_index=None,
            device=torch.device("cpu"),
            dtype=torch.float32,
            d_in=D,
            d_out=D,
            d_sae=F,
        )
        vars(config).update(changes)
        state = {
            "W_enc": torch.randn(D, F),
            "b_enc": torch.randn(F),
            "W_dec": torch.randn(F, D),
            "b_dec": torch.randn(D),
            "b_dec_out": torch.randn(D),
        } | (tensors or {})
        state = {n: t for n, t in state.items() if t is not None}
        torch.save({"cfg": config, "state_dict": state}, tmp_path / name)
        return tmp_path / name

    torch.manual_seed(0)
    return write


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_what_the_papers_code_computes(layer: int):
    entries = FORMAT.open(FIXTURES, Given())
    assert [entry.name for entry in entries] == ["mlp.0", "mlp.1", "resid_pre.2"]
    entry, dictionary, x = entries[layer], entries[layer].read(), EXPECTED["x"]
    sae = Convention(subtracted="b_dec", **TRAINED)
    assert entry.convention == dictionary.convention == (sae if layer == 2 else TRANSCODER)
    assert (entry.model, entry.d_in, entry.d_out, entry.n_features) == ("gpt2-small", D, D, F)
    assert (dictionary.encode(x) - EXPECTED[f"{layer}.a"]).abs().max() < 1e-5
    assert (dictionary(x) - EXPECTED[f"{layer}.y"]).abs().max() < 1e-5
    part = entry.read_rows([5, 0])
    assert torch.equal(part.encoder, dictionary.W_enc.T[[5, 0]])
    assert torch.equal(part.decoder, dictionary.W_dec[[5, 0]])
    assert torch.allclose(part.b_enc, dictionary.b_enc[[5, 0]], rtol=0, atol=1e-6)
    assert part.threshold is None


def test_only_the_layers_asked_for():
    entries = FORMAT.open(FIXTURES, Given(layers=frozenset([1, 2])))
    assert [entry.name for entry in entries] == ["mlp.1", "resid_pre.2"]
    with pytest.raises(ValueError, match="holds 3 dictionaries; give the path of one"):
        FORMAT.open(FIXTURES, Given(layer=1))


def test_recognised(file: Any, tmp_path: Path):
    assert FORMAT.recognises(FIXTURES)
    assert FORMAT.recognises(file())
    assert not FORMAT.recognises(FIXTURES / "expected.safetensors")
    sparsity = next(FIXTURES.glob("*_log_feature_sparsity.pt"))
    assert not FORMAT.recognises(sparsity)
    assert not FORMAT.recognises(FIXTURES.parent / "dictionary_learning" / "topk" / "ae.pt")
    (tmp_path / "empty").mkdir()
    assert not FORMAT.recognises(tmp_path / "empty")
    with pytest.raises(ValueError, match="holds neither"):
        FORMAT.open(tmp_path / "empty", Given())


def test_a_wider_output(file: Any):
    wide = {"W_dec": torch.randn(F, 9), "b_dec_out": torch.randn(9)}
    (entry,) = FORMAT.open(file(d_out=9, tensors=wide), Given())
    assert (entry.d_in, entry.d_out) == (D, 9)
    dictionary = entry.read()
    assert torch.equal(dictionary.b_dec, wide["b_dec_out"])


@pytest.mark.parametrize(
    ("hook", "norm"),
    [("ln2.hook_normalized", "bare"), ("hook_resid_mid", "none"), ("hook_mlp_in", "none")],
)
def test_what_a_transcoder_reads(file: Any, hook: str, norm: Any):
    (entry,) = FORMAT.open(file(hook_point=f"blocks.3.{hook}"), Given())
    assert entry.convention == TRANSCODER.model_copy(update={"norm": norm})


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
def test_where_an_sae_sits(file: Any, site: str):
    options = {
        "is_transcoder": False,
        "hook_point": f"blocks.10.hook_{site}",
        "out_hook_point": None,
    }
    path = file(tensors={"b_dec_out": None}, d_out=None, **options)
    (entry,) = FORMAT.open(path, Given())
    assert (entry.name, entry.kind) == (f"{site}.10", "sae")
    (entry,) = FORMAT.open(path, Given(site="mlp_out", layer=4))
    assert entry.name == "mlp_out.4"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_hook_point": "blocks.4.hook_mlp_out"}, "reads layer 3 and writes layer 4"),
        ({"out_hook_point": "blocks.3.hook_resid_post"}, "x.pt: a transcoder from 'ln2.hook_norm"),
        ({"hook_point": "blocks.3.hook_resid_post"}, "x.pt: a transcoder from 'hook_resid_post'"),
        ({"hook_point": "hook_embed"}, "x.pt: hook 'hook_embed' is not of the form"),
        ({"out_hook_point": None}, "x.pt: hook 'None' is not of the form"),
        (
            {"is_transcoder": False, "hook_point": "blocks.3.attn.hook_z"},
            "reads the heads' outputs",
        ),
        ({"is_transcoder": 1}, "is_transcoder must be true or false, got 1"),
        ({"d_in": D + 1}, r"x.pt: W_enc must have shape \(7, 12\), got \(6, 12\)"),
        ({"d_sae": None}, "d_sae must be a positive whole number, got None"),
        ({"d_out": 9}, r"W_dec must have shape \(12, 9\), got \(12, 6\)"),
        ({"tensors": {"b_dec_out": None}}, "lacks b_dec_out"),
        ({"tensors": {"W_enc": 3}}, "must hold tensors by name"),
    ],
)
def test_what_cannot_be_expressed_is_refused(file: Any, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        FORMAT.open(file(**changes), Given())


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"state_dict": {}}, "must hold `cfg` and `state_dict`, got dict"),
        ([1], "must hold `cfg` and `state_dict`, got list"),
        ({"cfg": {"d_in": 6}, "state_dict": {}}, "cfg must be a sae_training.*, got dict"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, contents: Any, message: str):
    torch.save(contents, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=rf"x\.pt:? {message}"):
        FORMAT.open(tmp_path / "x.pt", Given())


def test_two_files_for_one_layer_are_named(file: Any, tmp_path: Path):
    file("500_sparse_autoencoder_x.pt")
    file("final_sparse_autoencoder_x.pt")
    with pytest.raises(ValueError, match=r"mlp\.3: .*500_sparse.* and .*final_sparse"):
        FORMAT.open(tmp_path, Given())


def test_the_callers_convention_counts(file: Any):
    path = file()
    (entry,) = FORMAT.open(path, Given(convention=Convention(norm="bare")))
    state = torch.load(path, weights_only=False)["state_dict"]
    assert torch.equal(entry.read().b_enc, state["b_enc"])


# --- the authors' later folders ------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "gpt2-small-dun-chl-mlp-tc8"
    made.mkdir()
    torch.manual_seed(0)
    tensors = {
        "W_enc": torch.randn(D, F),
        "b_enc": torch.randn(F),
        "W_dec": torch.randn(F, 5),
        "b_dec": torch.randn(5),
    }
    save_file(tensors, made / "sae.safetensors")
    change(made / "sae.json", {}, d_in=D, num_features=F, d_out=5, dtype="torch.float32")
    change(made / "sae.json", act_fn="relu", top_k=None, tensors_filename="sae.safetensors")
    return made


def change(path: Path, start: dict[str, Any] | None = None, **changes: Any) -> None:
    record = json.loads(path.read_text()) if start is None else start
    path.write_text(json.dumps(record | changes))


def end(layer: int, sublayer: str) -> dict[str, Any]:
    return {"layer": layer, "sublayer": sublayer, "parallel_attn_mlp": False}


@pytest.mark.parametrize("inside", [False, True])
def test_a_later_folder_subtracts_nothing(folder: Path, inside: bool):
    (entry,) = FORMAT.open(folder if inside else folder.parent, Given())
    assert FORMAT.recognises(folder if inside else folder.parent)
    assert (entry.name, entry.kind, entry.model) == ("mlp.8", "transcoder", "")
    assert (entry.d_in, entry.d_out, entry.n_features) == (D, 5, F)
    want = Convention(norm="bare", output="after post-norm", **TRAINED)
    dictionary, tensors = entry.read(), load_file(folder / "sae.safetensors")
    assert entry.convention == dictionary.convention == want
    x = torch.randn(9, D)
    a = (x @ tensors["W_enc"] + tensors["b_enc"]).relu()
    assert torch.equal(dictionary.encode(x), a)
    assert torch.allclose(dictionary(x), a @ tensors["W_dec"] + tensors["b_dec"], atol=1e-6)
    part = entry.read_rows([3, 1])
    assert torch.equal(part.encoder, tensors["W_enc"].T[[3, 1]])
    assert torch.equal(part.b_enc, tensors["b_enc"][[3, 1]])
    assert torch.equal(part.decoder, tensors["W_dec"][[3, 1]])


def test_an_output_bias_of_another_width_cannot_have_been_subtracted(folder: Path):
    (entry,) = FORMAT.open(folder, Given(convention=Convention(subtracted="b_dec")))
    with pytest.raises(ValueError, match=r"'b_dec' subtracted from the input, .*'b_dec': \(5,\)"):
        entry.read()


def test_sae_info_says_the_layer_and_the_model(folder: Path):
    ends = {"input_layer": end(5, "mlp_in"), "output_layer": end(5, "mlp_out")}
    info = folder / "sae_info.json"
    change(info, ends, model_path="gpt2-small")
    (entry,) = FORMAT.open(folder, Given())
    assert (entry.name, entry.model) == ("mlp.5", "gpt2-small")
    change(info, ends, output_layer=end(6, "mlp_out"))
    with pytest.raises(ValueError, match=r"sae_info.json must describe a transcoder from mlp_in"):
        FORMAT.open(folder, Given())
    change(info, ends, input_layer=end(5, "pre"), model_path={"repo": "x"})
    with pytest.raises(ValueError, match=r"sae_info.json must describe a transcoder from mlp_in"):
        FORMAT.open(folder, Given())
    change(info, ends, input_layer=None)
    with pytest.raises(ValueError, match=r"sae_info.json must describe a transcoder from mlp_in"):
        FORMAT.open(folder, Given())


def test_a_folder_that_does_not_say_its_layer(folder: Path):
    moved = folder.rename(folder.parent / "mine")
    with pytest.raises(ValueError, match=r"mine does not say its layer .* give `layer`"):
        FORMAT.open(moved, Given())
    (entry,) = FORMAT.open(moved, Given(layer=2))
    assert entry.name == "mlp.2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "top_k", "top_k": 4}, "act_fn must be 'relu', got 'top_k'"),
        ({"d_in": D + 1}, r"W_enc must have shape \(7, 12\), got \(6, 12\)"),
        ({"d_out": None}, r"W_dec must have shape \(12, 6\), got \(12, 5\)"),
        ({"num_features": 0}, "num_features must be a positive whole number, got 0"),
        ({"tensors_filename": "other.safetensors"}, "no weights at .*other.safetensors"),
        ({"tensors_filename": "../sae.safetensors"}, "lies outside it; refused"),
    ],
)
def test_what_a_later_folder_cannot_be(folder: Path, changes: dict, message: str):
    shutil.copy(folder / "sae.safetensors", folder.parent / "sae.safetensors")
    change(folder / "sae.json", **changes)
    with pytest.raises(ValueError, match=message):
        FORMAT.open(folder, Given())
