"""SAELens folders: against SAELens' own outputs, by hand, damaged, and written and read again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuits.conventions import NATIVE, Convention
from circuits.dictionaries import SAE, CrossLayerTranscoder, Dictionary, Transcoder
from circuits.formats.entry import Given
from circuits.formats.folds import fold_decoder_norm, fold_gate, fold_input_scale
from circuits.formats.saelens import FORMAT

FIXTURES = Path(__file__).parent.parent / "fixtures" / "saelens"
EXPECTED = load_file(FIXTURES / "expected.safetensors")
NAMES = sorted(name.removesuffix(".output") for name in EXPECTED if name.endswith(".output"))
SCALED = Given(input_norm=4.0)
D, F = 4, 6


def saelens_folder(
    folder: Path, config: dict[str, Any] | None = None, **tensors: Tensor | None
) -> Path:
    """A small SAE folder; `None` takes a tensor or key out."""
    generator = torch.Generator().manual_seed(3)
    weights: dict[str, Tensor | None] = {
        "W_enc": torch.randn(D, F, generator=generator),
        "W_dec": torch.randn(F, D, generator=generator),
        "b_enc": torch.randn(F, generator=generator),
        "b_dec": torch.randn(D, generator=generator),
    }
    said: dict[str, Any] = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": F,
        "apply_b_dec_to_input": False,
        "metadata": {"sae_lens_version": "6.0.0", "hook_name": "blocks.1.hook_resid_post"},
    }
    for key, value in (config or {}).items():
        if isinstance(value, dict) and isinstance(said.get(key), dict):
            said[key] = {k: v for k, v in (said[key] | value).items() if v is not None}
        else:
            said[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(said))
    kept = {name: t for name, t in (weights | tensors).items() if t is not None}
    save_file(kept, folder / "sae_weights.safetensors")
    return folder


def transcoder_config(**more: Any) -> dict[str, Any]:
    metadata = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.mlp.hook_out"}
    return {"architecture": "transcoder", "d_out": D, "metadata": metadata, **more}


def read_one(folder: Path, given: Given | None = None) -> Dictionary:
    (entry,) = FORMAT.open(folder, given or Given())
    return entry.read()


def convention_of(folder: Path, given: Given | None = None) -> Convention:
    (entry,) = FORMAT.open(folder, given or Given())
    return entry.convention


# --- against SAELens


@pytest.mark.parametrize("name", NAMES)
def test_features_and_outputs_are_those_of_saelens(name: str) -> None:
    (entry,) = FORMAT.open(FIXTURES / name, SCALED)
    dictionary = entry.read()
    x = EXPECTED["x"]
    a = dictionary.encode(x)
    torch.testing.assert_close(a, EXPECTED[f"{name}.features"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        dictionary.decode(a, x), EXPECTED[f"{name}.output"], atol=1e-5, rtol=1e-5
    )
    assert (a > 0).any()
    assert (a == 0).any()


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_the_whole(name: str) -> None:
    (entry,) = FORMAT.open(FIXTURES / name, SCALED)
    whole, chosen = entry.read(), [7, 0, 7, 11]
    rows = entry.read_rows(chosen)
    torch.testing.assert_close(rows.encoder, whole.W_enc.T[chosen])
    torch.testing.assert_close(rows.decoder, whole.W_dec[chosen])
    torch.testing.assert_close(rows.b_enc, whole.b_enc[chosen])
    if whole.threshold is None:
        assert rows.threshold is None
    else:
        assert rows.threshold is not None
        torch.testing.assert_close(rows.threshold, whole.threshold[chosen])
    assert (entry.d_in, entry.d_out, entry.n_features) == (
        whole.d_in,
        whole.d_out,
        whole.n_features,
    )


def test_no_rows_are_rows_too() -> None:
    (entry,) = FORMAT.open(FIXTURES / "standard", Given())
    assert entry.read_rows([]).decoder.shape == (0, 6)


def test_a_row_that_is_not_there_is_refused() -> None:
    (entry,) = FORMAT.open(FIXTURES / "standard", Given())
    with pytest.raises(ValueError, match="features 0 to 11, got 12"):
        entry.read_rows([0, 12])


def test_names_and_conventions_of_the_fixtures() -> None:
    (entry,) = FORMAT.open(FIXTURES / "standard", Given())
    assert (entry.name, entry.kind, entry.model) == ("resid_pre.3", "sae", "gpt2-small")
    assert entry.convention.subtracted == "b_dec"
    (entry,) = FORMAT.open(FIXTURES / "skip_transcoder", Given())
    assert (entry.name, entry.kind) == ("mlp.2", "transcoder")
    assert entry.convention == NATIVE.model_copy(
        update={"norm": "bare", "output": "after post-norm", "bos": "in front"}
    )


# --- the folds


@for_all(
    z=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=20),
    b_gate=st.floats(-2, 2, width=32),
    b_mag=st.floats(-2, 2, width=32),
    r_mag=st.floats(-1, 1, width=32),
)
@settings(max_examples=200, deadline=None)
def test_a_gated_encoder_is_a_jumprelu_encoder(
    z: list[float], b_gate: float, b_mag: float, r_mag: float
) -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    r, gate, mag = (torch.tensor([v], dtype=torch.float64) for v in (r_mag, b_gate, b_mag))
    W, b, threshold = fold_gate(one, gate, mag, r)
    x = torch.tensor(z, dtype=torch.float64)[:, None]
    opens, magnitude = x + gate, x * r.exp() + mag
    gated = (opens > 0) * magnitude.relu()
    jumping = SAE(W, one, b, one[0], "jumprelu", threshold).encode(x)
    clear = opens.abs() > 1e-12  # beside a tie, which rounding may decide either way
    torch.testing.assert_close(jumping[clear], gated[clear], atol=1e-12, rtol=0)


def test_ties_of_a_gated_encoder_stay_closed() -> None:
    """Exact in binary: gate 0 at x = 2, magnitude 0 at x = -1, then a gate open below 0."""
    one, r = torch.ones(1, 1), torch.zeros(1)
    W, b, threshold = fold_gate(one, torch.tensor([-2.0]), torch.tensor([1.0]), r)
    x = torch.tensor([[2.0], [2.5], [-1.0]])
    assert SAE(W, one, b, one[0], "jumprelu", threshold).encode(x).flatten().tolist() == [0, 3.5, 0]
    W, b, threshold = fold_gate(one, torch.tensor([5.0]), torch.tensor([1.0]), r)
    x = torch.tensor([[-2.0], [-1.0], [-0.5]])
    assert SAE(W, one, b, one[0], "jumprelu", threshold).encode(x).flatten().tolist() == [0, 0, 0.5]


def test_a_feature_that_writes_nothing_stays_finite_when_decoder_norms_move() -> None:
    W_enc, b_enc, W_dec = fold_decoder_norm(
        torch.ones(2, 2), torch.ones(2), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    )
    assert W_dec.tolist() == [[0.0, 0.0], [0.6000000238418579, 0.800000011920929]]
    assert W_enc.tolist() == [[0.0, 5.0], [0.0, 5.0]]
    assert b_enc.tolist() == [0.0, 5.0]


def test_input_scale_by_hand() -> None:
    """d_in 4, mean norm 4: s = 1/2."""
    W_enc, W_dec, b_dec = fold_input_scale(
        torch.ones(4, 1), torch.ones(1, 4), torch.ones(4), input_norm=4.0
    )
    assert (W_enc[0, 0], W_dec[0, 0], b_dec[0]) == (0.5, 2.0, 2.0)


def test_log_threshold_of_old_files_is_a_logarithm(tmp_path: Path) -> None:
    folder = saelens_folder(
        tmp_path, {"architecture": "jumprelu"}, log_threshold=torch.full((F,), 2.0).log()
    )
    threshold = read_one(folder).threshold
    assert threshold is not None
    torch.testing.assert_close(threshold, torch.full((F,), 2.0))


def test_a_scaling_factor_of_ones_is_nothing_and_others_are_refused(tmp_path: Path) -> None:
    read_one(saelens_folder(tmp_path / "ones", scaling_factor=torch.ones(F)))
    with pytest.raises(ValueError, match="scaling_factor of finetuning"):
        read_one(saelens_folder(tmp_path / "others", scaling_factor=torch.full((F,), 2.0)))


# --- where it sits, and its convention


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        ("blocks.0.hook_resid_pre", "resid_pre.0"),
        ("blocks.12.hook_resid_post", "resid_post.12"),
        ("blocks.3.hook_attn_out", "attn_out.3"),
        ("blocks.3.hook_mlp_out", "mlp_out.3"),
    ],
)
def test_hooks_of_saes(tmp_path: Path, hook: str, name: str) -> None:
    (entry,) = FORMAT.open(saelens_folder(tmp_path, {"metadata": {"hook_name": hook}}), Given())
    assert entry.name == name


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        ("blocks.3.attn.hook_z", "heads' outputs before W_O"),
        ("blocks.3.hook_resid_mid", "between attention and MLP"),
        ("blocks.3.mlp.hook_out", "before any post-norm"),
        ("blocks.3.ln2.hook_normalized", "say `site='mlp'` if it is a transcoder"),
        ("blocks.3.hook_q_input", "none of the activations"),
        ("hook_embed", "not of the form blocks.LAYER.PLACE"),
        (None, "hook_name must name a hook, got None"),
    ],
)
def test_hooks_that_no_sae_can_sit_at(tmp_path: Path, hook: str | None, reason: str) -> None:
    folder = saelens_folder(tmp_path, {"metadata": {"hook_name": hook}})
    with pytest.raises(ValueError, match=reason):
        FORMAT.open(folder, Given())
    if hook is not None and "hook_z" in hook:
        with pytest.raises(ValueError, match=reason):
            FORMAT.open(folder, Given(site="attn_out", layer=4))
    else:
        (entry,) = FORMAT.open(folder, Given(site="attn_out", layer=4))
        assert entry.name == "attn_out.4"


@pytest.mark.parametrize(
    ("reads", "writes", "norm", "output"),
    [
        ("ln2.hook_normalized", "hook_mlp_out", "bare", "after post-norm"),
        ("mlp.hook_in", "mlp.hook_out", "gain and bias", "before post-norm"),
        ("hook_resid_mid", "hook_mlp_out", "none", "after post-norm"),
        ("hook_mlp_in", "mlp.hook_out", "none", "before post-norm"),
    ],
)
def test_hooks_of_transcoders(
    tmp_path: Path, reads: str, writes: str, norm: str, output: str
) -> None:
    hooks = {"hook_name": f"blocks.1.{reads}", "hook_name_out": f"blocks.1.{writes}"}
    found = convention_of(saelens_folder(tmp_path, transcoder_config(metadata=hooks)))
    assert (found.norm, found.output) == (norm, output)


def test_a_folded_gain_and_a_module_name_say_which_side_of_the_norm(tmp_path: Path) -> None:
    folded = {"model_from_pretrained_kwargs": {"fold_ln": True}}
    config = transcoder_config()
    config["metadata"] |= folded
    assert convention_of(saelens_folder(tmp_path / "a", config)).norm == "bare"
    config = transcoder_config()
    module = "model.layers.1.pre_feedforward_layernorm.output"
    config["metadata"] |= {"hook_name": "blocks.1.hook_mlp_in", "hf_hook_name": module}
    assert convention_of(saelens_folder(tmp_path / "b", config)).norm == "gain and bias"


def test_a_transcoder_that_was_saved_as_an_sae(tmp_path: Path) -> None:
    """A config as callummcdougall/arena-demos-transcoder has it."""
    folder = saelens_folder(tmp_path)
    config = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": F,
        "dtype": "float32",
        "model_name": "gpt2-small",
        "hook_name": "blocks.8.ln2.hook_normalized",
        "hook_layer": 8,
        "hook_head_index": None,
        "activation_fn_str": "relu",
        "activation_fn_kwargs": {},
        "apply_b_dec_to_input": False,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": None,
        "prepend_bos": True,
        "normalize_activations": False,
        "neuronpedia_id": None,
        "model_from_pretrained_kwargs": {},
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    (entry,) = FORMAT.open(folder, Given(site="mlp"))
    assert (entry.name, entry.kind, entry.d_out) == ("mlp.8", "transcoder", D)
    said = {"norm": "bare", "output": "after post-norm", "bos": "in front"}
    assert entry.convention == NATIVE.model_copy(update=said | {"first_position": "read"})
    assert isinstance(entry.read(), Transcoder)
    (folder / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": True}))
    (entry,) = FORMAT.open(folder, Given(site="mlp"))
    assert entry.convention.subtracted == "b_dec"
    (folder / "cfg.json").write_text(json.dumps(config | {"normalize_activations": True}))
    with pytest.raises(ValueError, match="does not say how its output was"):
        FORMAT.open(folder, Given(site="mlp", input_norm=1.0))


@pytest.mark.parametrize(
    ("hooks", "reason"),
    [
        ({"hook_name_out": "blocks.2.mlp.hook_out"}, "reads layer 1 and writes layer 2"),
        ({"hook_name_out": "blocks.1.hook_attn_out"}, "'mlp.hook_in' to 'hook_attn_out'"),
        ({"hook_name": "blocks.1.hook_resid_pre"}, "from 'hook_resid_pre'"),
        ({"hook_name_out": None}, "hook_name_out must name a hook"),
    ],
)
def test_transcoders_of_other_places_are_refused(
    tmp_path: Path, hooks: dict[str, Any], reason: str
) -> None:
    config = transcoder_config()
    config["metadata"] |= hooks
    with pytest.raises(ValueError, match=reason):
        FORMAT.open(saelens_folder(tmp_path, config), Given())


KWARGS = "model_from_pretrained_kwargs"


@pytest.mark.parametrize(
    ("facts", "centred"),
    [
        ({}, False),
        ({KWARGS: {"center_writing_weights": True}}, True),
        ({KWARGS: {"center_writing_weights": False}}, False),
        ({"sae_lens_version": None}, True),
        ({"sae_lens_version": "3.19.1", "model_class_name": "HookedTransformer"}, True),
        ({"sae_lens_version": "3.19.2"}, False),
        ({"sae_lens_version": "6.0.0-rc.0"}, False),
        ({"sae_lens_version": "6.1.0", "sae_lens_training_version": "3.2.0"}, True),
        ({"sae_lens_version": None, KWARGS: {}}, False),
        ({"sae_lens_version": "3.0.0", KWARGS: {}}, True),
        ({"sae_lens_version": None, "model_name": "google/gemma-2-2b"}, False),
        ({"sae_lens_version": None, "model_class_name": "AutoModelForCausalLM"}, False),
    ],
)
def test_whether_the_model_was_centred(
    tmp_path: Path, facts: dict[str, Any], centred: bool
) -> None:
    assert convention_of(saelens_folder(tmp_path, {"metadata": facts})).centred is centred


@pytest.mark.parametrize(
    ("facts", "bos", "first"),
    [
        ({}, "unknown", "unknown"),
        ({"prepend_bos": False}, "none", "unknown"),
        ({"prepend_bos": True, "seqpos_slice": [None]}, "in front", "read"),
        ({"prepend_bos": True, "seqpos_slice": [1, None]}, "in front", "left out"),
        ({"prepend_bos": True, "exclude_special_tokens": True}, "in front", "left out"),
        ({"prepend_bos": False, "exclude_special_tokens": True}, "none", "unknown"),
        ({"sae_lens_version": None}, "in front", "read"),
        ({"sae_lens_version": "5.9.0", "prepend_bos": False}, "none", "read"),
    ],
)
def test_bos_and_the_first_position(
    tmp_path: Path, facts: dict[str, Any], bos: str, first: str
) -> None:
    found = convention_of(saelens_folder(tmp_path, {"metadata": facts}))
    assert (found.bos, found.first_position) == (bos, first)


def test_what_is_given_is_taken(tmp_path: Path) -> None:
    said = Convention.model_validate({"norm": "none", "centred": True})
    folder = saelens_folder(tmp_path, transcoder_config(metadata={"hook_name": "nowhere"}))
    given = Given(site="mlp", layer=9, convention=said)
    (entry,) = FORMAT.open(folder, given)
    assert (entry.name, entry.convention, entry.read().convention) == ("mlp.9", said, said)
    with pytest.raises(ValueError, match="a transcoder sits at one of"):
        FORMAT.open(folder, Given(site="resid_pre", layer=0))


def test_a_site_or_a_layer_given_alone(tmp_path: Path) -> None:
    folder = saelens_folder(tmp_path)
    assert FORMAT.open(folder, Given(layer=9))[0].name == "resid_post.9"
    assert FORMAT.open(folder, Given(site="resid_pre"))[0].name == "resid_pre.1"


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for layer in (10, 2):
        hook = {"hook_name": f"blocks.{layer}.hook_resid_post"}
        saelens_folder(tmp_path / f"sae {layer}", {"metadata": hook})
    (tmp_path / "other").mkdir()
    assert FORMAT.recognises(tmp_path)
    assert [e.name for e in FORMAT.open(tmp_path, Given())] == ["resid_post.2", "resid_post.10"]
    only = FORMAT.open(tmp_path, Given(layers=frozenset({10, 11})))
    assert [entry.name for entry in only] == ["resid_post.10"]
    with pytest.raises(ValueError, match="holds 2 dictionaries"):
        FORMAT.open(tmp_path, Given(layer=3))
    saelens_folder(tmp_path / "twin", {"metadata": {"hook_name": "blocks.2.hook_resid_post"}})
    with pytest.raises(ValueError, match=r"several dictionaries for resid_post\.2.*twin"):
        FORMAT.open(tmp_path, Given())


def test_layers_not_wanted_are_not_described(tmp_path: Path) -> None:
    saelens_folder(tmp_path / "a")
    hook = {"hook_name": "blocks.5.hook_resid_post"}
    saelens_folder(tmp_path / "b", {"architecture": "temporal", "metadata": hook})
    (entry,) = FORMAT.open(tmp_path, Given(layers=frozenset({1})))
    assert entry.name == "resid_post.1"


def test_recognises_only_its_own(tmp_path: Path) -> None:
    assert not FORMAT.recognises(tmp_path)
    assert not FORMAT.recognises(tmp_path / "absent")
    (tmp_path / "cfg.json").write_text("{}")
    (tmp_path / "sae_weights.safetensors").write_bytes(b"")
    assert not FORMAT.recognises(tmp_path)
    (tmp_path / "cfg.json").write_text("[")
    assert not FORMAT.recognises(tmp_path)
    with pytest.raises(ValueError, match=r"no cfg\.json beside"):
        FORMAT.open(tmp_path / "absent", Given())


# --- refused and damaged


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architecture": "temporal"}, "other positions"),
        ({"architecture": "matching_pursuit"}, "repeated projection"),
        ({"architecture": "abstopk"}, "may be negative"),
        ({"architecture": "batchtopk"}, "training checkpoint"),
        ({"architecture": "new"}, "must be one of standard, .* got 'new'"),
        ({"architecture": ["standard"]}, "must be names, got \\["),
        ({"normalize_activations": ["layer_norm"]}, "unknown, got"),
        ({"rescale_acts_by_decoder_norm": "yes"}, "must be true or false, got .yes."),
        ({"activation_fn": "tanh-relu"}, "must be relu or topk, got 'tanh-relu'"),
        ({"architecture": "gated", "activation_fn": "topk"}, "does not go with"),
        ({"architecture": "topk"}, "k must be a positive whole number, got None"),
        ({"architecture": "topk", "k": -1}, "k must be a positive whole number, got -1"),
        ({"architecture": "topk", "k": 2.5}, r"k must be a positive whole number, got 2\.5"),
        ({"architecture": "topk", "k": F + 1}, "k must be at most d_sae = 6, got 7"),
        ({"normalize_activations": "layer_norm"}, "each token by its own norm"),
        ({"normalize_activations": "constant_norm_rescale"}, "each token by its own norm"),
        ({"normalize_activations": "covariance_whitening"}, "whitening is not in the file"),
        ({"normalize_activations": "other"}, "unknown, got 'other'"),
        ({"normalize_activations": "expected_average_only_in"}, "give `input_norm`"),
        ({"normalize_activations": True}, "give `input_norm`"),
        ({"reshape_activations": "hook_z"}, "reads single heads"),
        ({"hook_head_index": 3}, "hook_head_index is 3"),
        ({"apply_b_dec_to_input": "yes"}, "apply_b_dec_to_input must be true or false"),
        (transcoder_config(apply_b_dec_to_input=True), "must be false for 'transcoder'"),
        (transcoder_config(d_out=None), "d_out must be a positive whole number, got None"),
        (
            transcoder_config(normalize_activations="expected_average_only_in"),
            "does not say how its output was",
        ),
        ({"d_in": D + 1}, r"W_enc must have shape \(5, 6\), got \(4, 6\)"),
        ({"d_sae": F + 1}, r"must have shape"),
        ({"d_in": True}, "d_in must be a positive whole number, got True"),
        ({"d_sae": "6"}, "d_sae must be a positive whole number, got '6'"),
        ({"metadata": "none"}, "metadata must be an object"),
    ],
)
def test_configs_that_are_refused(tmp_path: Path, config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        FORMAT.open(saelens_folder(tmp_path, config), Given())


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_damaged_tensors(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"lacks {name}; it holds"):
        FORMAT.open(saelens_folder(tmp_path / "missing", None, **{name: None}), Given())
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        FORMAT.open(saelens_folder(tmp_path / "shape", None, **{name: torch.ones(2, 2)}), Given())
    good = load_file(saelens_folder(tmp_path / "good") / "sae_weights.safetensors")[name]
    bad = good.clone().fill_(float("nan"))
    (entry,) = FORMAT.open(saelens_folder(tmp_path / "nan", None, **{name: bad}), Given())
    with pytest.raises(ValueError, match=f"{name} holds NaN"):
        entry.read()
    with pytest.raises(ValueError, match=f"{name} holds NaN"):
        entry.read_rows([0])


def test_jumprelu_and_skips_without_their_tensors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks threshold"):
        FORMAT.open(saelens_folder(tmp_path / "a", {"architecture": "jumprelu"}), Given())
    config = transcoder_config(architecture="jumprelu_skip_transcoder")
    folder = saelens_folder(tmp_path / "b", config, threshold=torch.ones(F))
    with pytest.raises(ValueError, match="lacks W_skip"):
        FORMAT.open(folder, Given())
    with pytest.raises(ValueError, match=r"lacks b_gate, b_mag, r_mag"):
        FORMAT.open(saelens_folder(tmp_path / "c", {"architecture": "gated"}), Given())


def test_opening_reads_no_weights(tmp_path: Path) -> None:
    """A NaN is seen only when the weights are read, not when the folder is opened."""
    bad = torch.full((D,), float("nan"))
    (entry,) = FORMAT.open(saelens_folder(tmp_path, b_dec=bad), Given())
    with pytest.raises(ValueError, match="b_dec holds NaN"):
        entry.read()


def test_weights_of_other_dtypes_become_float32(tmp_path: Path) -> None:
    half = torch.ones(D, F, dtype=torch.bfloat16)
    assert read_one(saelens_folder(tmp_path, W_enc=half)).W_enc.dtype == torch.float32
    decoder = torch.arange(F * D, dtype=torch.bfloat16).view(F, D)
    (entry,) = FORMAT.open(saelens_folder(tmp_path, W_dec=decoder), Given())
    assert torch.equal(entry.read_rows([5, 0, 3]).decoder, decoder[[5, 0, 3]].float())


# --- written


def weights(kind: type[Dictionary], d_out: int = D, **more: Any) -> Dictionary:
    generator = torch.Generator().manual_seed(5)
    return kind(
        torch.randn(D, F, generator=generator),
        torch.randn(F, d_out, generator=generator),
        torch.randn(F, generator=generator),
        torch.randn(d_out, generator=generator),
        **more,
    )


THRESHOLD = torch.linspace(0.0, 1.0, F)
SAID = [
    {"norm": "bare", "output": "after post-norm", "centred": True, "bos": "in front"},
    {"norm": "none", "bos": "none", "first_position": "left out"},
    {"norm": "gain and bias", "first_position": "read"},
]
WRITABLE: dict[str, Dictionary] = {
    "resid_post.0": weights(SAE),
    "attn_out.1": weights(SAE, activation="topk", k=2, site="attn_out"),
    "mlp_out.2": weights(SAE, activation="jumprelu", threshold=THRESHOLD, site="mlp_out"),
    "mlp.3": weights(Transcoder, d_out=3, convention=Convention.model_validate(SAID[0])),
    "mlp.4": weights(
        Transcoder, 3, W_skip=torch.randn(D, 3), convention=Convention.model_validate(SAID[1])
    ),
    "mlp.5": weights(
        Transcoder,
        activation="jumprelu",
        threshold=THRESHOLD,
        W_skip=torch.eye(D),
        convention=Convention.model_validate(SAID[2]),
    ),
    "mlp.6": weights(Transcoder, activation="jumprelu", threshold=THRESHOLD),
}


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    assert FORMAT.write is not None
    FORMAT.write(WRITABLE, tmp_path, "gpt2")
    entries = FORMAT.open(tmp_path, Given())
    assert [entry.name for entry in entries] == list(WRITABLE)
    for entry in entries:
        wrote, found = WRITABLE[entry.name], entry.read()
        assert entry.model == "gpt2"
        assert type(found) is type(wrote)
        assert (found.activation, found.k, found.convention) == (
            wrote.activation,
            wrote.k,
            wrote.convention,
        )
        for field in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip"):
            a, b = getattr(wrote, field), getattr(found, field)
            assert (a is None and b is None) or torch.equal(a, b), field


def test_a_dictionary_that_was_read_can_be_written_again(tmp_path: Path) -> None:
    assert FORMAT.write is not None
    read = read_one(FIXTURES / "jumprelu_skip_transcoder")
    FORMAT.write({"mlp.2": read}, tmp_path, "gpt2")
    again = read_one(tmp_path / "mlp.2")
    torch.testing.assert_close(again(EXPECTED["x"]), read(EXPECTED["x"]), atol=0, rtol=0)
    assert again.convention == read.convention


@pytest.mark.parametrize(
    ("name", "dictionary", "reason"),
    [
        ("mlp.1", weights(Transcoder, activation="topk", k=2), "TopK transcoder"),
        ("resid_post.1", weights(SAE, W_skip=torch.eye(D)), "an SAE with a skip"),
        (
            "mlp.1",
            weights(Transcoder, activation="jumprelu", threshold=THRESHOLD - 0.5),
            "negative threshold",
        ),
        (
            "mlp.1",
            CrossLayerTranscoder(
                torch.ones(D, F), torch.ones(F, 1, D), torch.ones(F), torch.ones(D)
            ),
            "cross-layer transcoder, which SAELens has no class for",
        ),
        ("resid_pre.1", weights(SAE), r"must be called resid_post\.LAYER, got 'resid_pre\.1'"),
        ("mlp.x", weights(Transcoder), r"must be called mlp\.LAYER"),
        ("mlp.1", weights(Transcoder, W_skip=torch.full((D, D), torch.inf)), "W_skip of mlp.1 is"),
    ],
)
def test_what_saelens_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, name: str, dictionary: Dictionary, reason: str
) -> None:
    assert FORMAT.write is not None
    with pytest.raises(ValueError, match=reason):
        FORMAT.write({"mlp.0": weights(Transcoder), name: dictionary}, tmp_path / "out", "gpt2")
    assert not (tmp_path / "out").exists()


def test_tensors_that_share_memory_are_written_apart(tmp_path: Path) -> None:
    assert FORMAT.write is not None
    square, vector = torch.arange(1.0 * D * D).view(D, D), torch.arange(1.0 * D)
    FORMAT.write({"resid_post.0": SAE(square, square, vector, vector)}, tmp_path, "gpt2")
    found = read_one(tmp_path)
    assert torch.equal(found.W_dec, square)
    assert torch.equal(found.b_dec, vector)


def test_the_hooks_that_are_written(tmp_path: Path) -> None:
    """`hook_resid_mid` is there in every model, `hook_mlp_in` only on demand."""
    assert FORMAT.write is not None
    FORMAT.write(WRITABLE, tmp_path, "gpt2")
    said = json.loads((tmp_path / "mlp.4" / "cfg.json").read_text())["metadata"]
    assert said["hook_name"] == "blocks.4.hook_resid_mid"
    assert said["hook_name_out"] == "blocks.4.mlp.hook_out"
