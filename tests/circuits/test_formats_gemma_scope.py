"""Gemma Scope 1 and 2: against circuit-tracer's reading of the same files, by hand, damaged."""

import json
from io import BytesIO
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from circuits.conventions import NATIVE, Convention
from circuits.dictionaries import SAE, CrossLayerTranscoder, check_cross_layer
from circuits.formats import gemma_scope, gemma_scope_2
from circuits.formats.entry import Given

FIXTURES = Path(__file__).parent.parent / "fixtures" / "gemma_scope"
FIRST = FIXTURES / "gemma-scope-2b-pt-transcoders"
DEEP = FIRST / "layer_5/width_16k/average_l0_87"
SECOND = FIXTURES / "transcoder_all/layer_7_width_16k_l0_small_affine"
CROSSING = FIXTURES / "clt/width_262k_l0_medium_affine"
ONE, TWO = gemma_scope.FORMAT, gemma_scope_2.FORMAT
D, F = 4, 6


def arrays(**more: Any) -> dict[str, Any]:
    """A small SAE as Gemma Scope 1 holds it; `None` takes one out."""
    rng = np.random.default_rng(0)
    made = {
        "W_enc": rng.normal(size=(D, F)).astype(np.float32),
        "W_dec": rng.normal(size=(F, D)).astype(np.float32),
        "b_enc": rng.normal(size=F).astype(np.float32),
        "b_dec": rng.normal(size=D).astype(np.float32),
        "threshold": np.linspace(-1, 1, F).astype(np.float32),
    } | more
    return {name: array for name, array in made.items() if array is not None}


def npz(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **arrays(**more))
    return folder


def second(folder: Path, config: dict[str, Any] | None = None, **more: Any) -> Path:
    """A small SAE as Gemma Scope 2 holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {name.replace("W_", "w_"): torch.from_numpy(a) for name, a in arrays().items()} | more
    save_file({k: v for k, v in own.items() if v is not None}, folder / "params.safetensors")
    said = {"architecture": "jump_relu", "hf_hook_point_in": "model.layers.3.output"}
    (folder / "config.json").write_text(json.dumps(said | (config or {})))
    return folder


# --- against circuit-tracer's loaders


@pytest.mark.parametrize(
    ("form", "path", "folder"), [(ONE, FIRST, DEEP), (ONE, DEEP, DEEP), (TWO, SECOND, SECOND)]
)
def test_features_and_outputs(form: Any, path: Path, folder: Path) -> None:
    (entry,) = form.open(path, Given())
    dictionary, expected = entry.read(), load_file(folder / "expected.safetensors")
    a = dictionary.encode(expected["x"])
    torch.testing.assert_close(a, expected["features"], atol=1e-5, rtol=1e-5)
    y = dictionary.decode(a, expected["x"])
    torch.testing.assert_close(y, expected["output"], atol=1e-5, rtol=1e-5)


def test_the_cross_layer_set_is_whole_with_its_last_layer() -> None:
    entries = TWO.open(CROSSING, Given())
    read = [entry.read() for entry in entries]
    assert [(e.name, e.n_writes) for e in entries] == [("mlp.0", 3), ("mlp.1", 2), ("mlp.2", 1)]
    check_cross_layer({i: d for i, d in enumerate(read) if isinstance(d, CrossLayerTranscoder)})
    expected = load_file(CROSSING / "expected.safetensors")
    x = expected["x"]
    a = [d.encode(x[layer]) for layer, d in enumerate(read)]
    torch.testing.assert_close(torch.stack(a), expected["features"], atol=1e-5, rtol=1e-5)
    for layer, d in enumerate(read):
        y = d.decode(a[layer], x[layer])
        y = y + sum(a[low] @ read[low].decoder(layer - low) for low in range(layer))
        torch.testing.assert_close(y, expected["output"][layer], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("form", "path"), [(ONE, DEEP), (TWO, SECOND), (TWO, CROSSING)], ids=["one", "two", "crossing"]
)
def test_rows_are_those_of_the_whole(form: Any, path: Path) -> None:
    for entry in form.open(path, Given()):
        whole, chosen = entry.read(), [9, 0, 3, 9]
        rows = entry.read_rows(chosen)
        assert torch.equal(rows.encoder, whole.W_enc.T[chosen])
        assert torch.equal(rows.decoder, whole.W_dec[chosen])
        assert torch.equal(rows.b_enc, whole.b_enc[chosen])
        assert torch.equal(rows.threshold, whole.threshold[chosen])


def test_conventions_of_the_fixtures() -> None:
    after = NATIVE.model_copy(update={"output": "after post-norm", "bos": "in front"})
    (entry,) = ONE.open(FIRST, Given())
    said = after.model_copy(update={"norm": "bare", "first_position": "left out"})
    assert (entry.name, entry.kind, entry.convention) == ("mlp.5", "transcoder", said)
    assert entry.model == "google/gemma-2-2b"
    assert entry.read().convention == said
    for path in (SECOND, SECOND.parent, SECOND / "params.safetensors"):
        (entry,) = TWO.open(path, Given())
        assert (entry.name, entry.kind, entry.convention) == ("mlp.7", "transcoder", after)
    assert entry.model == "google/gemma-3-1b-pt"
    assert TWO.open(CROSSING, Given())[0].convention == after


def test_each_recognises_only_its_own(tmp_path: Path) -> None:
    assert ONE.recognises(FIRST)
    assert ONE.recognises(DEEP / "params.npz")
    assert TWO.recognises(SECOND)
    assert TWO.recognises(SECOND.parent)
    assert TWO.recognises(CROSSING)
    assert TWO.recognises(SECOND / "params.safetensors")
    assert not TWO.recognises(SECOND / "config.json")
    for form in (ONE, TWO):
        assert not form.recognises(tmp_path)
        assert not form.recognises(tmp_path / "absent")
        with pytest.raises(ValueError, match="holds no params"):
            form.open(tmp_path, Given())
    assert not ONE.recognises(SECOND)
    assert not TWO.recognises(FIRST)
    save_file({"W_enc": torch.ones(1)}, tmp_path / "layer_0.safetensors")
    assert not TWO.recognises(tmp_path)
    (tmp_path / "layer_0.safetensors").write_bytes(b"no")
    assert not TWO.recognises(tmp_path)


# --- Gemma Scope 1 by hand


@pytest.mark.parametrize(
    ("repository", "name", "model"),
    [
        ("gemma-scope-2b-pt-res", "resid_post.20", "google/gemma-2-2b"),
        ("models--google--gemma-scope-9b-it-res", "resid_post.20", "google/gemma-2-9b-it"),
        ("gemma-scope-9b-pt-mlp", "mlp_out.20", "google/gemma-2-9b"),
        ("gemma-scope-2b-pt-transcoders", "mlp.20", "google/gemma-2-2b"),
    ],
)
def test_the_path_says_where_it_sits(
    tmp_path: Path, repository: str, name: str, model: str
) -> None:
    npz(tmp_path / repository / "layer_20/width_16k/average_l0_71")
    (entry,) = ONE.open(tmp_path, Given())
    assert (entry.name, entry.model) == (name, model)


def test_a_negative_threshold_lets_nothing_below_zero_through(tmp_path: Path) -> None:
    (entry,) = ONE.open(npz(tmp_path / "layer_1"), Given(site="resid_pre"))
    sae = entry.read()
    assert isinstance(sae, SAE)
    assert (sae.encode(torch.randn(50, D)) >= 0).all()
    assert sae.threshold is not None
    torch.testing.assert_close(sae.threshold, torch.tensor([0.0, 0.0, 0.0, 0.2, 0.6, 1.0]))


def test_what_is_given_is_taken(tmp_path: Path) -> None:
    said = Convention.model_validate({"norm": "none"})
    folder = npz(tmp_path / "gemma-scope-2b-pt-res" / "layer_20")
    (entry,) = ONE.open(folder, Given(site="mlp", layer=3, convention=said))
    assert (entry.name, entry.kind, entry.convention) == ("mlp.3", "transcoder", said)
    assert ONE.open(folder, Given(layers=frozenset({19}))) == []
    with pytest.raises(ValueError, match="`site` must be mlp for a transcoder or one of"):
        ONE.open(folder, Given(site="attn_in"))


def test_several_of_one_place_and_places_that_are_refused(tmp_path: Path) -> None:
    repository = tmp_path / "gemma-scope-2b-pt-res"
    npz(repository / "layer_20/width_16k/average_l0_71")
    npz(repository / "layer_3/width_16k/average_l0_59")
    assert [e.name for e in ONE.open(repository, Given())] == ["resid_post.3", "resid_post.20"]
    with pytest.raises(ValueError, match="holds 2 dictionaries"):
        ONE.open(repository, Given(layer=1))
    npz(repository / "layer_20/width_16k/average_l0_9")
    with pytest.raises(ValueError, match=r"several dictionaries for resid_post\.20"):
        ONE.open(repository, Given())
    for given in (Given(), Given(site="attn_out")):
        with pytest.raises(ValueError, match="before W_O"):
            ONE.open(npz(tmp_path / "gemma-scope-2b-pt-att/layer_2"), given)
    with pytest.raises(ValueError, match="token embeddings"):
        ONE.open(npz(tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k"), Given())
    with pytest.raises(ValueError, match="has no layer_N in its path; give `layer`"):
        ONE.open(npz(tmp_path / "somewhere"), Given(site="mlp"))
    with pytest.raises(ValueError, match="give `site`"):
        ONE.open(npz(tmp_path / "somewhere"), Given(layer=0))


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"])
def test_damaged_arrays(tmp_path: Path, name: str) -> None:
    given = Given(site="resid_post", layer=0)
    with pytest.raises(ValueError, match=rf"lacks {name}|must hold .*{name}"):
        ONE.open(npz(tmp_path / "missing", **{name: None}), given)
    with pytest.raises(ValueError, match="must have shape"):
        ONE.open(npz(tmp_path / "shape", **{name: np.ones((3, 3), np.float32)}), given)
    bad = np.full_like(arrays()[name], np.nan)
    (entry,) = ONE.open(npz(tmp_path / "nan", **{name: bad}), given)
    with pytest.raises(ValueError, match=f"{name} holds NaN"):
        entry.read()
    objects = np.array([{}] * 3, dtype=object)
    with pytest.raises(ValueError, match="not a sound NumPy archive of numbers"):
        ONE.open(npz(tmp_path / "objects", **{name: objects}), given)


def test_saes_that_write_another_width(tmp_path: Path) -> None:
    wide = {"W_dec": np.ones((F, D + 1), np.float32), "b_dec": np.ones(D + 1, np.float32)}
    folder = npz(tmp_path / "one", **wide)
    assert ONE.open(folder, Given(site="mlp", layer=0))[0].d_out == D + 1
    with pytest.raises(ValueError, match=r"W_dec must have shape \(6, 4\), got \(6, 5\)"):
        ONE.open(folder, Given(site="resid_post", layer=0))
    tensors = {name.replace("W_", "w_"): torch.from_numpy(array) for name, array in wide.items()}
    (entry,) = TWO.open(second(tmp_path / "layer_3", None, **tensors), Given())
    with pytest.raises(ValueError, match=r"params\.safetensors: an SAE has d_in = d_out"):
        entry.read()


def test_an_archive_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    """A header is believed only if the bytes are there: nothing is allocated for the others."""
    header = BytesIO()
    said = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(header, said)
    with ZipFile(tmp_path / "params.npz", "w") as archive:
        archive.writestr("W_enc.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"0 bytes for float32 \(1000000, 1000000\)"):
        ONE.open(tmp_path, Given(site="resid_post", layer=0))


def test_archives_that_are_none(tmp_path: Path) -> None:
    given = Given(site="resid_post", layer=0)
    file = npz(tmp_path) / "params.npz"
    good = file.read_bytes()
    for damaged in (good[:-30], b"", b"no archive", good[:100] + b"\xff" * 60 + good[160:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a sound NumPy archive"):
            ONE.open(tmp_path, given)
    npz(tmp_path, threshold=np.zeros(F, bool))
    with pytest.raises(ValueError, match="not a sound NumPy archive of numbers"):
        ONE.open(tmp_path, given)
    npz(tmp_path, more=np.ones(1))
    with pytest.raises(ValueError, match="holds more, which Gemma Scope does not have"):
        ONE.open(tmp_path, given)


# --- Gemma Scope 2 by hand


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        ("model.layers.3.output", "resid_post.3"),
        ("model.language_model.layers.3.output", "resid_post.3"),
        ("model.layers.3.post_feedforward_layernorm.output", "mlp_out.3"),
    ],
)
def test_hooks_of_saes(tmp_path: Path, hook: str, name: str) -> None:
    folder = second(tmp_path / "layer_3_width_16k_l0_small", {"hf_hook_point_in": hook})
    (entry,) = TWO.open(folder, Given())
    assert (entry.name, entry.kind) == (name, "sae")
    assert entry.convention == NATIVE.model_copy(update={"bos": "in front"})
    assert (entry.read().encode(torch.randn(50, D)) >= 0).all()


PRE, POST = (f"model.layers.3.{n}_feedforward_layernorm.output" for n in ("pre", "post"))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"hf_hook_point_in": "model.layers.3.self_attn.o_proj.input"}, "before W_O"),
        ({"hf_hook_point_in": "model.layers.3.mlp.output"}, "must end in one of"),
        ({"hf_hook_point_in": None}, "must end in one of"),
        ({"hf_hook_point_in": "model.layers.4.output"}, "is of layer 4, but the folder is called"),
        ({"hf_hook_point_in": PRE}, "a transcoder must write post_feedforward"),
        ({"hf_hook_point_in": PRE, "hf_hook_point_out": PRE}, "a transcoder must write"),
        ({"architecture": "topk"}, "architecture must be jump_relu, got 'topk'"),
        ({"width": F + 1}, "has 6 features, but its config says 7"),
        ({"affine_connection": True}, "lacks affine_skip_connection"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    folder = second(tmp_path / "layer_3_width_16k_l0_small", config)
    with pytest.raises(ValueError, match=reason):
        TWO.open(folder, Given())
    if reason == "before W_O":
        with pytest.raises(ValueError, match=reason):
            TWO.open(folder, Given(site="attn_out", layer=3))


def test_a_skip_that_the_config_denies(tmp_path: Path) -> None:
    folder = tmp_path / "layer_3"
    config = {"hf_hook_point_in": PRE, "hf_hook_point_out": POST, "affine_connection": False}
    second(folder, config, affine_skip_connection=torch.ones(D, D))
    with pytest.raises(ValueError, match="but its config says it has none"):
        TWO.open(folder, Given())


def test_what_is_given_is_taken_in_the_second_too(tmp_path: Path) -> None:
    said = Convention.model_validate({"norm": "bare"})
    folder = second(tmp_path / "anything", {"hf_hook_point_in": "elsewhere"})
    (entry,) = TWO.open(folder, Given(site="attn_out", layer=2, convention=said))
    assert (entry.name, entry.convention) == ("attn_out.2", said)
    with pytest.raises(ValueError, match="has no layer_N in its name"):
        TWO.open(folder, Given())
    (folder / "config.json").unlink()
    assert TWO.open(folder, Given(site="attn_out", layer=2))[0].name == "attn_out.2"
    with pytest.raises(ValueError, match="no config at"):
        TWO.open(folder, Given(layer=2))
    with pytest.raises(ValueError, match="`site` must be one of"):
        TWO.open(folder, Given(site="attn_in", layer=2))
    (folder / "config.json").write_text("[")
    with pytest.raises(ValueError, match="is not readable JSON"):
        TWO.open(folder, Given(site="attn_out", layer=2))
    with pytest.raises(ValueError, match="`site` must be one of"):
        TWO.open(CROSSING, Given(site="resid_post"))


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for layer in (12, 3):
        hook = {"hf_hook_point_in": f"model.layers.{layer}.output"}
        second(tmp_path / f"layer_{layer}_width_16k_l0_small", hook)
    assert [e.name for e in TWO.open(tmp_path, Given())] == ["resid_post.3", "resid_post.12"]
    only = TWO.open(tmp_path, Given(layers=frozenset({12})))
    assert [e.name for e in only] == ["resid_post.12"]
    deep = second(tmp_path / "deep" / "resid_post" / "layer_3", {})
    assert len(TWO.open(tmp_path / "deep", Given())) == len(TWO.open(deep, Given())) == 1
    rmtree(tmp_path / "deep")
    with pytest.raises(ValueError, match="holds 2 dictionaries"):
        TWO.open(tmp_path, Given(layer=4))
    second(tmp_path / "layer_3_width_65k_l0_small")
    with pytest.raises(ValueError, match=r"several dictionaries for resid_post\.3"):
        TWO.open(tmp_path, Given())


@pytest.mark.parametrize("name", ["w_enc", "w_dec", "b_enc", "b_dec", "threshold"])
def test_damaged_tensors(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"lacks {name}|must hold .*{name}"):
        TWO.open(second(tmp_path / "layer_3_a", **{name: None}), Given())
    with pytest.raises(ValueError, match=r"must have shape|must hold"):
        TWO.open(second(tmp_path / "layer_3_b", **{name: torch.ones(3, 3)}), Given())
    shape = arrays()[name.replace("w_", "W_")].shape
    bad = torch.full(shape, torch.inf)
    (entry,) = TWO.open(second(tmp_path / "layer_3_c", **{name: bad}), Given())
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity"):
        entry.read()


def test_cross_layer_files_that_are_refused(tmp_path: Path) -> None:
    folder = copytree(CROSSING, tmp_path / "clt")
    file = folder / "params_layer_1.safetensors"
    tensors = load_file(file)
    tensors["w_dec"][4, 0] = 1
    save_file(tensors, file)
    entry = TWO.open(folder, Given())[1]
    with pytest.raises(ValueError, match="writes to layers below it; want zeros there"):
        entry.read()
    with pytest.raises(ValueError, match="writes to layers below it"):
        entry.read_rows([4])
    assert entry.read_rows([3]).decoder.shape == (1, 2, 6)
    file.rename(folder / "params_layer_3.safetensors")
    with pytest.raises(ValueError, match="slots for layers 0 to 2, got layer 3"):
        TWO.open(folder, Given())
    only = TWO.open(folder, Given(layers=frozenset({2})))
    assert [(entry.name, entry.n_writes) for entry in only] == [("mlp.2", 1)]
