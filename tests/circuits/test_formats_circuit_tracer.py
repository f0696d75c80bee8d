"""circuit-tracer folders: against its own outputs, damaged, and written and read again."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from circuits.conventions import Convention
from circuits.dictionaries import SAE, CrossLayerTranscoder, Dictionary, Transcoder
from circuits.formats.circuit_tracer import FORMAT, read_yaml
from circuits.formats.entry import Given
from circuits.formats.reading import read_tensors

FIXTURES = Path(__file__).parent.parent / "fixtures" / "circuit_tracer"
SETS = ["plt_relu", "plt_skip", "clt"]
D, F, N = 4, 5, 3


def copy(tmp_path: Path, name: str) -> Path:
    return copytree(FIXTURES / name, tmp_path / name)


def configure(folder: Path, **more: Any) -> Path:
    config = yaml.safe_load((folder / "config.yaml").read_text()) | more
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def retouch(path: Path, **tensors: torch.Tensor | None) -> None:
    """Change some tensors of a file; `None` takes one out."""
    found: dict[str, torch.Tensor | None] = {**load_file(path), **tensors}
    save_file({name: t for name, t in found.items() if t is not None}, path)


# --- against circuit-tracer


@pytest.mark.parametrize("name", SETS)
def test_features_and_outputs_are_those_of_circuit_tracer(name: str) -> None:
    expected = load_file(FIXTURES / name / "expected.safetensors")
    read = [entry.read() for entry in FORMAT.open(FIXTURES / name, Given())]
    x = expected["x"]
    a = [dictionary.encode(x[layer]) for layer, dictionary in enumerate(read)]
    torch.testing.assert_close(torch.stack(a), expected["features"], atol=1e-5, rtol=1e-5)
    for layer, dictionary in enumerate(read):
        y = dictionary.decode(a[layer], x[layer])
        if name == "clt":
            y = y + sum(a[low] @ read[low].decoder(layer - low) for low in range(layer))
        torch.testing.assert_close(y, expected["output"][layer], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SETS)
def test_rows_are_those_of_the_whole(name: str) -> None:
    for entry in FORMAT.open(FIXTURES / name, Given()):
        whole, chosen = entry.read(), [9, 0, 9]
        rows = entry.read_rows(chosen)
        assert torch.equal(rows.encoder, whole.W_enc.T[chosen])
        assert torch.equal(rows.decoder, whole.W_dec[chosen])
        assert torch.equal(rows.b_enc, whole.b_enc[chosen])
        assert (rows.threshold is None) == (whole.threshold is None)
        if rows.threshold is not None and whole.threshold is not None:
            assert torch.equal(rows.threshold, whole.threshold[chosen])
        assert entry.n_writes == whole.n_writes
        with pytest.raises(ValueError, match="features 0 to 9, got -1"):
            entry.read_rows([-1])


@pytest.mark.parametrize("name", SETS)
def test_rows_are_read_without_the_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor with a row for each feature is asked for by rows."""
    asked: list[tuple[set[str], set[str]]] = []

    def spy(path: Path, names: Any, *, rows: Any = None) -> Any:
        asked.append((set(names), set(rows or ())))
        return read_tensors(path, names, rows=rows)

    monkeypatch.setattr("circuits.formats.building.read_tensors", spy)
    FORMAT.open(FIXTURES / name, Given())[0].read_rows([1])
    for names, by_rows in asked:
        whole = {tensor for tensor in names - by_rows if "b_dec" not in tensor}
        assert not whole - {"W_skip"}


def test_float32_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not folded has no memory of its own: it is the file's, or a view of it."""
    found: dict[str, torch.Tensor] = {}

    def spy(path: Path, names: Any, *, rows: Any = None) -> Any:
        found.update(read_tensors(path, names, rows=rows))
        return found

    monkeypatch.setattr("circuits.formats.building.read_tensors", spy)
    dictionary = FORMAT.open(FIXTURES / "plt_skip", Given())[0].read()
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "W_skip"):
        assert getattr(dictionary, name).data_ptr() == found[name].data_ptr()


@pytest.mark.parametrize(
    ("name", "norm", "output"),
    [
        ("plt_relu", "gain and bias", "before post-norm"),
        ("plt_skip", "bare", "after post-norm"),
        ("clt", "none", "after post-norm"),
    ],
)
def test_conventions(name: str, norm: str, output: str) -> None:
    entries = FORMAT.open(FIXTURES / name, Given())
    assert [entry.name for entry in entries] == ["mlp.0", "mlp.1", "mlp.2"]
    for entry in entries:
        found = entry.convention
        assert (found.norm, found.output, found.centred) == (norm, output, False)
        assert (found.bos, found.first_position) == ("in front", "left out")
        assert entry.model == "google/gemma-2-2b"
        assert entry.read().convention == found


def test_what_is_given_is_taken(tmp_path: Path) -> None:
    said = Convention.model_validate({"norm": "none"})
    folder = configure(copy(tmp_path, "plt_relu"), feature_input_hook="elsewhere")
    assert FORMAT.open(folder, Given(convention=said))[0].convention == said
    with pytest.raises(ValueError, match="a transcoder from 'elsewhere'"):
        FORMAT.open(folder, Given())
    with pytest.raises(ValueError, match="`site` must be mlp"):
        FORMAT.open(folder, Given(site="resid_pre"))
    with pytest.raises(ValueError, match="holds 3 dictionaries"):
        FORMAT.open(folder, Given(convention=said, layer=1))


def test_some_layers_of_a_set(tmp_path: Path) -> None:
    folder = copy(tmp_path, "plt_relu")
    only = FORMAT.open(folder, Given(layers=frozenset({2, 0})))
    assert [entry.name for entry in only] == ["mlp.0", "mlp.2"]
    (folder / "layer_1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks layer_1\.safetensors"):
        FORMAT.open(folder, Given())
    with pytest.raises(ValueError, match=r"lacks layer_1\.safetensors"):
        FORMAT.open(folder, Given(layers=frozenset({0, 1})))
    assert len(FORMAT.open(folder, Given(layers=frozenset({0, 2})))) == 2
    assert FORMAT.open(folder, Given(layers=frozenset())) == []
    with pytest.raises(ValueError, match=r"lacks layer_1\.safetensors, .* and more"):
        FORMAT.open(folder, Given(layers=frozenset({1, *range(5, 99)})))
    (folder / "layer_0.safetensors").unlink()
    (entry,) = FORMAT.open(folder, Given(layer=7))
    assert entry.name == "mlp.7"


def test_a_list_of_addresses(tmp_path: Path) -> None:
    folder = copy(tmp_path, "plt_relu")
    listed = [f"hf://someone/name/layer_{2 - i}.safetensors?revision=main" for i in range(3)]
    configure(folder, transcoders=listed)
    names = [entry.path.name for entry in FORMAT.open(folder, Given())]
    assert names == ["layer_2.safetensors", "layer_1.safetensors", "layer_0.safetensors"]
    folder = configure(copy(tmp_path, "clt"), transcoders=listed)
    assert FORMAT.open(folder, Given())[0].path.name == "W_enc_0.safetensors"


def test_links_to_the_blobs_of_the_hubs_cache(tmp_path: Path) -> None:
    """A snapshot of the cache is a folder of links; another folder's links are a way out."""
    for inner, works in (("snapshots", True), ("elsewhere", False)):
        repository = tmp_path / inner / "models--a--b"
        folder = repository / inner / "0123"
        copytree(FIXTURES / "plt_relu", folder)
        configure(folder, transcoders=[f"hf://a/b/layer_{i}.safetensors" for i in range(3)])
        (repository / "blobs").mkdir()
        for i in range(3):
            (folder / f"layer_{i}.safetensors").rename(repository / "blobs" / str(i))
            (folder / f"layer_{i}.safetensors").symlink_to(f"../../blobs/{i}")
        if works:
            assert len(FORMAT.open(folder, Given())) == 3
            configure(folder, transcoders=["hf://a/b/../../blobs/0"])
        with pytest.raises(ValueError, match="lies outside it; refused"):
            FORMAT.open(folder, Given())


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        (["hf://google/gemma-scope-2b-pt-transcoders/layer_0/params.npz"], "Gemma Scope"),
        (["hf://google/gemma-scope-2-1b-pt/transcoder_all/x/params.safetensors"], "Gemma Scope"),
        (["hf://a/b/../../outside.safetensors"], "lies outside it; refused"),
        (["/etc/outside.safetensors"], "lies outside it; refused"),
        ("layer_0.safetensors", "must be a list of addresses"),
        ([1], "must be a list of addresses"),
        (["hf://a/b/layer_9.safetensors"], r"no weights at .*layer_9\.safetensors"),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, listed: Any, reason: str) -> None:
    folder = configure(copy(tmp_path, "plt_relu"), transcoders=listed)
    with pytest.raises(ValueError, match=reason):
        FORMAT.open(folder, Given())


# --- damaged


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model_kind: [", "is not readable YAML"),
        ("model_kind: !!python/object/apply:os.getcwd []", "is not readable YAML"),
        ("- a\n- b", "must hold a YAML mapping, got list"),
        ("\x00", "is not readable YAML"),
        ("[" * 5000, "is not readable YAML"),
        ("a: 2001-99-99", "is not readable YAML"),
        ("model_kind: other", "model_kind must be one of"),
        ("model_name: x", "model_kind must be one of"),
        ("model_kind: transcoder_set", "a transcoder from 'None' to 'None'"),
    ],
)
def test_bad_configs(tmp_path: Path, text: str, reason: str) -> None:
    folder = copy(tmp_path, "plt_relu")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=reason):
        FORMAT.open(folder, Given())


def test_recognises_only_its_own(tmp_path: Path) -> None:
    for name in SETS:
        assert FORMAT.recognises(FIXTURES / name)
    assert not FORMAT.recognises(FIXTURES)
    assert not FORMAT.recognises(FIXTURES / "make.py")
    assert not FORMAT.recognises(configure(copy(tmp_path, "clt"), model_kind="other"))
    assert not FORMAT.recognises(configure(tmp_path / "clt", model_kind=["transcoder_set"]))
    with pytest.raises(ValueError, match="no config at"):
        read_yaml(tmp_path / "absent.yaml")


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_damaged_tensors_of_a_layer(tmp_path: Path, name: str) -> None:
    for kind in ("plt_relu", "clt"):
        folder = copy(tmp_path / "nan", kind)
        file = folder / "layer_1.safetensors"
        key = name
        if kind == "clt":
            file = folder / f"{'W_dec' if name == 'W_dec' else 'W_enc'}_1.safetensors"
            key = f"{name}_1"
        good = file.read_bytes()
        retouch(file, **{key: load_file(file)[key].fill_(float("nan"))})
        with pytest.raises(ValueError, match=f"{key} holds NaN"):
            FORMAT.open(folder, Given())[1].read()
        file.write_bytes(good)
        retouch(file, **{key: torch.ones(3, 3)})
        with pytest.raises(ValueError, match=r"must have shape|must hold"):
            FORMAT.open(folder, Given())
        file.write_bytes(good)
        retouch(file, **{key: None, "left": torch.ones(1)})
        with pytest.raises(ValueError, match=f"lacks {key}|must hold {key}"):
            FORMAT.open(folder, Given())
        file.write_bytes(good[:-20])
        with pytest.raises(ValueError, match="not a complete safetensors file"):
            FORMAT.open(folder, Given())


def test_tensors_that_circuit_tracer_does_not_have(tmp_path: Path) -> None:
    folder = copy(tmp_path, "plt_relu")
    retouch(folder / "layer_0.safetensors", log_thresholds=torch.ones(10))
    with pytest.raises(ValueError, match="holds log_thresholds, which circuit-tracer does not"):
        FORMAT.open(folder, Given())
    folder = copy(tmp_path, "clt")
    retouch(folder / "W_enc_0.safetensors", W_skip_0=torch.ones(6, 6))
    with pytest.raises(ValueError, match="holds W_skip_0, which circuit-tracer does not"):
        FORMAT.open(folder, Given())


def test_slots_that_do_not_end_at_the_same_layer(tmp_path: Path) -> None:
    folder = copy(tmp_path, "clt")
    file = folder / "W_dec_1.safetensors"
    retouch(file, W_dec_1=load_file(file)["W_dec_1"][:, :1].contiguous())
    with pytest.raises(ValueError, match=r"end at layers \[1, 2\]"):
        FORMAT.open(folder, Given())
    retouch(file, W_dec_1=torch.ones(10, 0, 6))
    with pytest.raises(ValueError, match="has no slot"):
        FORMAT.open(folder, Given())
    file.unlink()
    with pytest.raises(ValueError, match=r"no weights at .*W_dec_1"):
        FORMAT.open(folder, Given())


# --- written


def made(layer: int, kind: type[Dictionary] = Transcoder, f: int = F, **more: Any) -> Dictionary:
    generator = torch.Generator().manual_seed(layer)
    shape = (f, N - layer, D) if kind is CrossLayerTranscoder else (f, D)
    return kind(
        torch.randn(D, f, generator=generator),
        torch.randn(shape, generator=generator),
        torch.randn(f, generator=generator),
        torch.randn(D, generator=generator),
        **more,
    )


JUMPS = {"activation": "jumprelu", "threshold": torch.linspace(-0.2, 1.0, F)}
CONVENTION = Convention.model_validate(
    {
        "norm": "bare",
        "output": "after post-norm",
        "bos": "in front",
        "first_position": "left out",
    }
)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (Transcoder, [{}, JUMPS, {}]),
        (Transcoder, [{"W_skip": torch.randn(D, D)} | JUMPS for _ in range(N)]),
        (CrossLayerTranscoder, [{}] * N),
        (CrossLayerTranscoder, [JUMPS] * N),
    ],
)
def test_what_is_written_reads_back_equal(
    tmp_path: Path, kind: type[Dictionary], more: list[dict[str, Any]]
) -> None:
    assert FORMAT.write is not None
    wrote = {
        f"mlp.{layer}": made(layer, kind, convention=CONVENTION, **more[layer])
        for layer in reversed(range(N))
    }
    FORMAT.write(wrote, tmp_path, "gpt2: no 1")
    entries = FORMAT.open(tmp_path, Given())
    assert [entry.name for entry in entries] == ["mlp.0", "mlp.1", "mlp.2"]
    for entry in entries:
        found = entry.read()
        assert entry.model == "gpt2: no 1"
        assert type(found) is kind
        assert found.activation == wrote[entry.name].activation
        assert found.convention == CONVENTION
        for field in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip"):
            a, b = getattr(wrote[entry.name], field), getattr(found, field)
            assert (a is None and b is None) or torch.equal(a, b), field
    FORMAT.write({entry.name: entry.read() for entry in entries}, tmp_path / "again", "m")
    assert FORMAT.open(tmp_path / "again", Given())[2].convention == CONVENTION


@pytest.mark.parametrize("norm", ["gain and bias", "bare", "none"])
@pytest.mark.parametrize("output", ["before post-norm", "after post-norm"])
def test_hooks_that_are_written(tmp_path: Path, norm: str, output: str) -> None:
    assert FORMAT.write is not None
    said = Convention.model_validate({"norm": norm, "output": output})
    FORMAT.write({"mlp.0": made(0, convention=said)}, tmp_path, "gpt2")
    found = FORMAT.open(tmp_path, Given())[0].convention
    assert (found.norm, found.output) == (norm, output)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["feature_input_hook"] in (
        "mlp.hook_in",
        "ln2.hook_normalized",
        "hook_resid_mid",
    )


def sae() -> SAE:
    return SAE(torch.ones(D, F), torch.ones(F, D), torch.ones(F), torch.ones(D))


CENTRED = Convention.model_validate({"centred": True})


@pytest.mark.parametrize(
    ("dictionaries", "reason"),
    [
        ({}, "got none"),
        ({"resid_post.0": sae()}, "is an SAE"),
        ({"mlp.0": made(0, activation="topk", k=2)}, "is TopK"),
        ({"mlp.0": made(0, convention=CENTRED)}, "centred activations"),
        ({"mlp.1": made(0)}, r"from 0 without a hole, got mlp\.1"),
        ({"mlp.0": made(0), "mlp.2": made(2)}, "without a hole"),
        ({"mlp.zero": made(0)}, r"must be called mlp\.LAYER"),
        ({"mlp.0": made(0), "mlp.1": made(1, f=F + 1)}, r"same numbers of features.*\[5, 6\]"),
        ({"mlp.0": made(0), "mlp.1": made(1, convention=CONVENTION)}, "same inputs and outputs"),
        ({"mlp.0": made(0), "mlp.1": made(1, W_skip=torch.eye(D))}, "same skips"),
        ({"mlp.0": made(0), "mlp.1": made(1, CrossLayerTranscoder)}, "same kinds"),
        (
            {f"mlp.{i}": made(i, CrossLayerTranscoder, **(JUMPS if i else {})) for i in range(N)},
            "same activations",
        ),
        (
            {f"mlp.{i}": made(i, CrossLayerTranscoder, W_skip=torch.eye(D)) for i in range(N)},
            "cannot hold a skip",
        ),
        ({"mlp.0": made(0, CrossLayerTranscoder)}, "has 3 slots"),
        ({"mlp.0": made(0), "mlp.1": made(1, W_skip=torch.full((D, D), torch.nan))}, "not finite"),
        (
            {"mlp.0": Transcoder(torch.ones(D, F), torch.ones(F, 2), torch.ones(F), torch.ones(2))},
            "reads 4 and writes 2 wide",
        ),
    ],
)
def test_what_circuit_tracer_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, dictionaries: dict[str, Dictionary], reason: str
) -> None:
    assert FORMAT.write is not None
    with pytest.raises(ValueError, match=reason):
        FORMAT.write(dictionaries, tmp_path / "out", "gpt2")
    assert not (tmp_path / "out").exists()


def test_files_of_another_set_are_refused(tmp_path: Path) -> None:
    assert FORMAT.write is not None
    FORMAT.write({"mlp.0": made(0), "mlp.1": made(1)}, tmp_path, "gpt2")
    FORMAT.write({"mlp.0": made(0), "mlp.1": made(1)}, tmp_path, "gpt2")
    with pytest.raises(ValueError, match=r"already holds layer_1\.safetensors of another set"):
        FORMAT.write({"mlp.0": made(0)}, tmp_path, "gpt2")
    with pytest.raises(ValueError, match=r"already holds layer_0\.safetensors"):
        FORMAT.write(
            {f"mlp.{i}": made(i, CrossLayerTranscoder) for i in range(N)}, tmp_path, "gpt2"
        )
