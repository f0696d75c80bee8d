"""The check on load: dictionaries that are right by construction, declared rightly and wrongly.

An MLP with ReLU is a ReLU transcoder of itself, so its FVU is 0 under the right convention.
"""

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from math import nan
from typing import Any

import pytest
import torch
import transformers

from circuits import (
    SAE,
    CrossLayerTranscoder,
    SplicedModel,
    SubjectModel,
    Transcoder,
    load_dictionaries,
    load_model,
)
from circuits.conventions import NATIVE, Convention
from circuits.dictionaries import Dictionary
from circuits.fidelity.passes import Batch, read_statistics
from circuits.folding import fold_convention
from circuits.plausibility import (
    UNCHECKED,
    Fit,
    ImplausibleDictionaryError,
    check_plausible,
    measure_fits,
)
from circuits.plausibility.hypotheses import (
    ModelFacts,
    changed,
    changes,
    declared,
    described,
    misplacements,
    opposite,
    pairs,
    remedy,
    written,
)
from circuits.plausibility.readings import (
    Score,
    input_of,
    measure,
    read_activations,
    reread,
    sites_of,
    way_of,
    written_at,
)
from circuits.plausibility.text import PARAGRAPHS
from circuits.plausibility.verdicts import judge
from circuits.sites import Site
from tests.models import D_MODEL, D_VOCAB, N_CTX, perfect_sae, sae, subject, word_tokenizer

N_LAYERS = 3
BARE = Convention(norm="bare")
CENTRED = Convention(centred=True)


@cache
def model() -> SubjectModel:
    """GPT-2 with a ReLU, norms far from plain, an outlier at the first position, in float64."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=D_VOCAB,
        n_embd=D_MODEL,
        n_layer=N_LAYERS,
        n_head=4,
        n_positions=N_CTX,
        activation_function="relu",
        bos_token_id=0,
        eos_token_id=0,
    )
    config._attn_implementation = "eager"
    hf: Any = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.copy_(torch.randn_like(parameter).mul(0.5).exp())
            elif parameter.ndim == 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.mul_(5)
                if "c_proj" in name:  # writes a mean over d_model
                    parameter.add_(0.05 * torch.randn(len(parameter), 1))
        hf.transformer.wpe.weight[0].mul_(20)
    subject = load_model(hf, word_tokenizer(), dtype=torch.float64)
    subject.name = "relu"
    return subject


def tokens(bos: bool = False, n_rows: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(1, D_VOCAB, (n_rows, N_CTX), generator=generator)
    if bos:
        rows[:, 0] = 0
    return rows


def itself(layer: int, convention: Convention = NATIVE) -> Transcoder:
    """The MLP of a layer as a transcoder, with the weights that a file of `convention` has."""
    mlp = model()._bridge.blocks[layer].mlp.original_component
    W_enc, b_enc = mlp.c_fc.weight.detach(), mlp.c_fc.bias.detach()
    W_dec, b_dec = mlp.c_proj.weight.detach(), mlp.c_proj.bias.detach()
    norm = model().norm("ln2", layer)
    assert norm is not None
    if convention.norm == "bare":
        W_enc, b_enc = norm.gain[:, None] * W_enc, b_enc + norm.bias @ W_enc
    if convention.centred:
        W_dec, b_dec = W_dec - W_dec.mean(1, keepdim=True), b_dec - b_dec.mean()
    return Transcoder(W_enc, W_dec, b_enc, b_dec, convention=convention)


def crossing(convention: Convention = NATIVE) -> dict[str, Dictionary]:
    """The MLPs as a cross-layer transcoder; a feature that is always on writes to layers above
    what their own biases lack.
    """
    parts: dict[str, Dictionary] = {}
    extra = 5 * torch.randn(
        N_LAYERS, D_MODEL, generator=torch.Generator().manual_seed(9), dtype=torch.float64
    )
    if convention.centred:
        extra = extra - extra.mean(1, keepdim=True)
    for layer in range(N_LAYERS):
        own = itself(layer, convention)
        n_writes = N_LAYERS - layer
        W_dec = torch.zeros(own.n_features + 1, n_writes, D_MODEL, dtype=torch.float64)
        W_dec[:-1, 0] = own.W_dec
        if layer == 0:
            W_dec[-1] = extra
            W_dec[-1, 0] = 0
        parts[f"mlp.{layer}"] = CrossLayerTranscoder(
            torch.cat([own.W_enc, torch.zeros(D_MODEL, 1).double()], 1),
            W_dec,
            torch.cat([own.b_enc, torch.ones(1).double()]),
            own.b_dec - (extra[layer] if layer else 0),
            convention=convention,
        )
    return parts


def only(dictionary: Dictionary, name: str, prompts: torch.Tensor | None = None) -> Fit:
    (fit,) = measure_fits(model(), {name: dictionary}, tokens() if prompts is None else prompts)
    return fit


def test_right_ones_fit():
    fits = check_plausible(model(), {f"mlp.{i}": itself(i) for i in range(N_LAYERS)}, tokens())
    assert [fit.name for fit in fits] == ["mlp.0", "mlp.1", "mlp.2"]
    for fit in fits:
        assert fit.verdict == "fits"
        assert fit.fvu < 1e-20
        assert fit.n_tokens == 12 * (N_CTX - 1)
        assert fit.n_features == 4 * D_MODEL
        tried = {a.change for a in fit.alternatives}
        assert {"read before the norm", "with BOS in front"} <= tried
        assert list(fit.alternatives) == sorted(fit.alternatives, key=lambda a: a.fvu)
        assert f"{fit.name} has FVU" in fit.reason


def test_l0_is_counted_where_fvu_is():
    fit = only(itself(1), "mlp.1")
    x = model().read(tokens(), [Site("mlp_in", 1)])[Site("mlp_in", 1)][:, 1:]
    want = (itself(1).encode(x) > 0).double().sum(-1).mean().item()
    assert fit.l0 == pytest.approx(want)


TRUTHS = [
    NATIVE,
    BARE,
    CENTRED,
    Convention(norm="bare", centred=True),
    Convention(subtracted="b_dec"),
]
WRONG = {
    "norm": ("gain and bias", "bare", "none"),
    "centred": (False, True),
    "subtracted": ("nothing", "b_dec"),
}


@pytest.mark.parametrize("true", TRUTHS, ids=str)
def test_each_convention_wrong_alone_is_refused_and_named(true: Convention):
    dictionary = itself(1, true)
    right = only(dictionary, "mlp.1")
    assert right.verdict == "fits"
    assert right.fvu < 1e-20
    for field, values in WRONG.items():
        for value in values:
            if value == getattr(true, field):
                continue
            wrong = reread(dictionary, true.model_copy(update={field: value}))
            fit = only(wrong, "mlp.1")
            assert fit.verdict == "refused", (field, value)
            assert fit.fvu > 0.01
            assert f"pass convention={written(true)}" in fit.reason
            with pytest.raises(ImplausibleDictionaryError, match=r"1 of 1 .* 'relu' as they are"):
                check_plausible(model(), {"mlp.1": wrong}, tokens())


def test_two_conventions_wrong_at_once_are_named():
    true = Convention(norm="bare", centred=True)
    fit = only(reread(itself(2, true), NATIVE), "mlp.2")
    assert fit.verdict == "refused"
    assert f"pass convention={written(true)}" in fit.reason
    assert "read bare" in fit.reason
    assert "of mean 0 over d_model" in fit.reason


def test_the_message_reads_like_this():
    fit = only(reread(itself(1, BARE), NATIVE), "mlp.1")
    own = f"mlp.1 has FVU {fit.fvu:.2g} and L0 {fit.l0:.3g} of 128 features"
    assert fit.reason.startswith(f"{own} read with gain and bias (it says little or no more than")
    assert "; read bare, without the norm's gain and bias it has FVU" in fit.reason
    assert fit.reason.endswith(": pass convention=Convention(norm='bare')")


def test_a_centred_sae():
    plain = perfect_sae("resid_post").to(dtype=torch.float64)
    centre = torch.eye(D_MODEL).double() - 1 / D_MODEL
    true = replace(plain, W_dec=plain.W_dec @ centre, convention=CENTRED)
    assert only(true, "resid_post.1").fvu < 1e-20
    fit = only(reread(true, NATIVE), "resid_post.1")
    assert fit.verdict == "refused"
    assert f"pass convention={written(CENTRED)}" in fit.reason
    # Reading a centred input, the identity is just that.
    assert only(replace(plain, convention=CENTRED), "resid_post.1").verdict == "fits"


def test_a_transcoder_that_writes_the_mean_is_not_centred():
    """Even where the mean is so small that FVU hardly tells."""
    scores = {
        (): Score(100, 0.0512, 30.0, 0.07),
        (("centred", False),): Score(100, 0.0510, 30.0, 0.07),
    }
    fit = judge("mlp.1", CENTRED, 1000, scores)
    assert fit.verdict == "refused"
    assert "pass convention=Convention()" in fit.reason
    learnt = {change: replace(score, mean_missed=0.99) for change, score in scores.items()}
    assert judge("mlp.1", CENTRED, 1000, learnt).verdict == "fits"
    raw = {(): score(0.05, missed=0.07), (("centred", True),): score(0.05, missed=0.07)}
    assert judge("mlp.1", NATIVE, 1000, raw).verdict == "fits"


def test_how_much_of_the_mean_is_missed():
    """Itself misses nothing; centred it writes no mean; without W_dec only the bias's is left."""
    for convention, missed in ((NATIVE, 0), (CENTRED, 1)):
        values = read_activations(model(), list(tokens()), sites_of("mlp", 1, model()))
        hypothesis = declared("mlp.1", convention, replace(FACTS, bos=False))
        dictionary = itself(1, convention)
        found = measure(model(), dictionary, hypothesis, [()], {False: values}, {})
        assert found[()].mean_missed == pytest.approx(missed, abs=1e-12)


def fitted_to_tokens(name: str, convention: Convention, architecture: str) -> Dictionary:
    """The best linear map under a convention, on the very tokens of the test, as a skip."""
    subject_model = subject(architecture, torch.float64)
    hypothesis = declared(name, convention, FACTS)
    rows = list(tokens(n_rows=4))
    sites = sites_of(*name.split(".")[:1], int(name[-1]), subject_model)  # type: ignore[arg-type]
    values = read_activations(subject_model, rows, sites)
    x, y = input_of(hypothesis, subject_model, values), written_at(hypothesis, values)
    x, y = x[~values.is_first], y[~values.is_first]
    ones = torch.ones(len(x), 1).double()
    solution = torch.linalg.lstsq(torch.cat([x, ones], 1), y).solution
    return Transcoder(
        torch.zeros(D_MODEL, 16).double(),
        torch.zeros(16, D_MODEL).double(),
        torch.tensor([1.0] + [-1.0] * 15).double(),
        solution[-1],
        W_skip=solution[:-1],
        convention=convention,
    )


FACTS = ModelFacts(layer_norm=True, post_norm=True, parallel=False, bos=None, n_layers=3)
OUTSIDE = [
    Convention(norm=norm, output=output)
    for norm in ("gain and bias", "none")
    for output in ("before post-norm", "after post-norm")
]


@pytest.mark.parametrize("true", OUTSIDE, ids=str)
def test_places_of_a_post_norm_model(true: Convention):
    """Reading before the norm, writing after the post-norm: least squares on the tokens."""
    gemma = subject("gemma2", torch.float64)
    dictionary = fitted_to_tokens("mlp.1", true, "gemma2")
    rows = tokens(n_rows=4)
    (right,) = measure_fits(gemma, {"mlp.1": dictionary}, rows)
    assert right.verdict == "fits", right.reason
    output = {"before post-norm": "after post-norm", "after post-norm": "before post-norm"}
    for update in ({"norm": "bare"}, {"output": output[true.output]}):
        wrong = replace(dictionary, convention=true.model_copy(update=update))
        (fit,) = measure_fits(gemma, {"mlp.1": wrong}, rows)
        assert fit.verdict == "refused"
        assert f"pass convention={written(true)}" in fit.reason
    with pytest.raises(ValueError, match="RMSNorm"):
        fold_convention(replace(dictionary, convention=CENTRED), gemma.norm("ln2", 1))


@pytest.mark.parametrize("bos", [False, True])
def test_declared_bos_must_be_what_prompts_have(bos: bool):
    has, not_so = ("in front", "none") if bos else ("none", "in front")
    for declares, verdict in ((has, "fits"), (not_so, "refused"), ("unknown", "fits")):
        convention = Convention(bos=declares)  # type: ignore[arg-type]
        fit = only(itself(1, convention), "mlp.1", tokens(bos))
        assert fit.verdict == verdict
        assert ("load the model with prepend_bos=" in fit.reason) == (verdict == "refused")
    fit = only(itself(1, Convention(bos=not_so)), "mlp.1", tokens(bos))  # type: ignore[arg-type]
    assert f"prepend_bos={not bos}" in fit.reason
    assert f"pass convention=Convention(bos={has!r}) if" in fit.reason


def test_without_a_tokenizer_bos_is_not_judged():
    llama = load_model(transformers.AutoModelForCausalLM.from_config(_llama_config()))
    dictionary = replace(perfect_sae("resid_post", 16), convention=Convention(bos="in front"))
    (fit,) = measure_fits(llama, {"resid_post.0": dictionary}, tokens(n_rows=4) % 40)
    assert fit.verdict == "fits"
    assert not any("BOS" in a.change for a in fit.alternatives)


def _llama_config() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=N_CTX,
    )
    config._attn_implementation = "eager"
    return config


def fails_first(convention: Convention) -> Dictionary:
    """Right but at the first position, an outlier, where one more feature writes rubbish."""
    plain = perfect_sae("resid_post").to(dtype=torch.float64)
    x = model().read(tokens(), [Site("resid_post", 0)])[Site("resid_post", 0)]
    direction = (x[:, 0].mean(0) - x[:, 1:].mean((0, 1)))[:, None]
    along = (x @ direction)[..., 0]
    assert along[:, 0].min() > along[:, 1:].max()
    limit = (along[:, 0].min() + along[:, 1:].max()) / 2
    rubbish = torch.ones(1, D_MODEL).double().mul(direction.norm() / limit)
    return replace(
        plain,
        W_enc=torch.cat([plain.W_enc, direction], 1),
        W_dec=torch.cat([plain.W_dec, rubbish], 0),
        b_enc=torch.zeros(2 * D_MODEL + 1).double(),
        activation="jumprelu",
        threshold=torch.cat([torch.zeros(2 * D_MODEL), limit[None]]).double(),
        convention=convention,
    )


def test_the_first_position():
    left_out = Convention(first_position="left out")
    assert only(fails_first(left_out), "resid_post.0").verdict == "fits"
    assert only(fails_first(NATIVE), "resid_post.0").verdict == "fits"  # not counted either
    fit = only(fails_first(Convention(first_position="read")), "resid_post.0")
    assert fit.verdict == "refused"
    assert fit.n_tokens == 12 * N_CTX
    assert "with the first position left out" in fit.reason
    assert f"pass convention={written(left_out)}" in fit.reason


def test_bos_never_counts():
    """Nor where it stands elsewhere than in front."""
    rows = tokens(bos=True)
    rows[:, 5] = 0
    read = Convention(first_position="read")
    fit = only(replace(itself(0), convention=read), "mlp.0", rows)
    assert fit.n_tokens == 12 * (N_CTX - 2)
    rows[:, 0] = 3  # then the first position is left out for itself
    assert only(itself(0), "mlp.0", rows).n_tokens == 12 * (N_CTX - 2)


def test_of_another_layer():
    fit = only(itself(1), "mlp.0")
    assert fit.verdict == "refused"
    assert "read at layer 1 it has FVU" in fit.reason
    assert fit.reason.endswith("check which layer the file is of: 1 fits")
    assert "layer 1" in only(itself(1), "mlp.2").reason


def test_an_sae_taken_for_a_transcoder_and_back():
    plain = perfect_sae("mlp_out").to(dtype=torch.float64)
    as_transcoder = Transcoder(plain.W_enc, plain.W_dec, plain.b_enc, plain.b_dec)
    fit = only(as_transcoder, "mlp.1")
    assert fit.verdict == "refused"
    assert "pass site='mlp_out': it is an SAE" in fit.reason
    own = itself(1)
    as_sae = SAE(own.W_enc, own.W_dec, own.b_enc, own.b_dec, site="mlp_out")
    assert "pass site='mlp': it is a transcoder" in only(as_sae, "mlp_out.1").reason


def test_rubbish_is_refused_without_advice():
    fit = only(sae("attn_out").to(dtype=torch.float64), "attn_out.1")  # type: ignore[arg-type]
    assert fit.verdict == "refused"
    assert "no more than the mean" in fit.reason
    assert "no other reading that was tried fits; is it of this model?" in fit.reason
    assert "pass" not in fit.reason


def test_not_finite_is_refused():
    broken = itself(1)
    broken.W_dec[0, 0] = torch.inf
    assert "not finite" in only(replace(broken), "mlp.1").reason
    broken.W_dec[0, 0] = 0.0


@pytest.mark.parametrize("true", [NATIVE, BARE, Convention(norm="bare", centred=True)], ids=str)
def test_a_cross_layer_set_is_judged_as_a_whole(true: Convention):
    fits = measure_fits(model(), crossing(true), tokens())
    assert [fit.verdict for fit in fits] == ["fits"] * 3
    assert max(fit.fvu for fit in fits) < 1e-20
    wrong = {name: reread(part, Convention(norm="none")) for name, part in crossing(true).items()}
    for fit in measure_fits(model(), wrong, tokens()):
        assert fit.verdict == "refused"
        assert f"pass convention={written(true)}" in fit.reason


def test_parts_of_a_set_in_two_conventions():
    parts = crossing()
    parts["mlp.1"] = replace(parts["mlp.1"], convention=BARE)
    with pytest.raises(ValueError, match=r"mlp\.0 and mlp\.1 declare different"):
        measure_fits(model(), parts, tokens())


class Lazy(Mapping[str, Dictionary]):
    """Makes dictionaries when asked, and watches how many are alive."""

    def __init__(self, makers: dict[str, Any]) -> None:
        self.makers = makers
        self.reads: list[str] = []
        self.alive: weakref.WeakSet[Dictionary] = weakref.WeakSet()
        self.most = 0

    def __getitem__(self, name: str) -> Dictionary:
        made = self.makers[name]()
        self.reads.append(name)
        self.alive.add(made)
        self.most = max(self.most, len(self.alive))
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


@pytest.mark.usefixtures("unchecked")  # which would read one to look at it
def test_one_at_a_time_and_each_once():
    lazy = Lazy({f"mlp.{i}": (lambda i=i: itself(i)) for i in (2, 0, 1)})
    check_plausible(model(), lazy, tokens())
    assert lazy.reads == ["mlp.0", "mlp.1", "mlp.2"]
    assert lazy.most == 1
    parts = Lazy({name: (lambda name=name: crossing()[name]) for name in crossing()})
    check_plausible(model(), parts, tokens())
    assert len(parts.reads) == 3
    assert parts.most == 1


def test_declared_fvu_is_that_of_an_evaluation():
    """For what is folded and placed, too."""
    rows = tokens()
    keep = torch.ones_like(rows, dtype=torch.bool)
    keep[:, 0] = False
    generator = torch.Generator().manual_seed(1)
    for convention in (NATIVE, BARE):
        file = itself(1, convention)
        noise = 0.05 * torch.randn(file.W_dec.shape, generator=generator).double()
        file = replace(file, W_dec=file.W_dec + noise)
        placed = fold_convention(file, model().norm("ln2", 1))
        spliced = SplicedModel(model(), {"mlp.1": placed})
        (found,) = read_statistics(
            model(), {"": spliced}, [Batch(rows, keep)], lambda: None
        ).values()
        fit = only(file, "mlp.1", rows)
        assert fit.fvu == pytest.approx(found.reconstruction.fvu(), rel=1e-9)
        assert fit.l0 == pytest.approx(found.firings.sum().item() / keep.sum().item())


@pytest.mark.parametrize("norm", ["gain and bias", "bare", "none"])
@pytest.mark.parametrize("centred", [False, True])
def test_folding_agrees_with_the_hypothesis(norm: Any, centred: bool):
    convention = Convention(norm=norm, centred=centred)
    file = replace(itself(1), convention=convention)
    hypothesis = declared("mlp.1", convention, FACTS)
    values = read_activations(model(), list(tokens()), sites_of("mlp", 1, model()))
    site = Site("resid_mid" if norm == "none" else "mlp_in", 1)
    placed = fold_convention(file, model().norm("ln2", 1))
    want = file(input_of(hypothesis, model(), values))
    torch.testing.assert_close(placed(values.values[site]), want, rtol=1e-9, atol=1e-9)


def test_a_parallel_model_has_one_stream():
    neox = subject("neox_parallel", torch.float64)
    hypothesis = declared("mlp.1", BARE, FACTS)
    values = read_activations(neox, list(tokens(n_rows=2)), sites_of("mlp", 1, neox))
    norm = neox.norm("ln2", 1)
    assert norm is not None
    x = input_of(hypothesis, neox, values)
    torch.testing.assert_close(x * norm.gain + norm.bias, values.values[Site("mlp_in", 1)])
    facts = replace(FACTS, parallel=True)
    assert (("norm", "none"),) not in changes(itself(1), facts)
    assert (("norm", "none"),) in changes(itself(1), FACTS)


def test_changes_by_hand():
    gpt2 = ModelFacts(layer_norm=True, post_norm=False, parallel=False, bos=True, n_layers=3)
    read = replace(itself(1), convention=Convention(first_position="read"))
    assert changes(read, gpt2) == [
        (("norm", "bare"),),
        (("norm", "none"),),
        (("subtracted", "b_dec"),),
        (("centred", True),),
        (("first", False),),
        (("with_bos", False), ("first", False)),
    ]
    gemma = replace(gpt2, layer_norm=False, post_norm=True, bos=None)
    after = Convention(output="after post-norm", subtracted="own vector", norm="bare")
    assert changes(replace(itself(1), convention=after), gemma) == [
        (("norm", "gain and bias"),),
        (("norm", "none"),),
        (("output", "before post-norm"),),
    ]
    taken = replace(sae("resid_post"), convention=Convention(subtracted="b_dec", centred=True))
    assert changes(taken, gemma) == [(("subtracted", "nothing"),), (("centred", False),)]
    a, b, c = (("norm", "bare"),), (("norm", "none"),), (("centred", True),)
    assert pairs([a, b, c]) == [a + c, b + c]
    assert misplacements(declared("mlp.0", NATIVE, gpt2), itself(0), 3) == [
        (("layer", 1),),
        (("site", "mlp_out"),),
    ]
    assert misplacements(declared("mlp.0", NATIVE, gpt2), crossing()["mlp.0"], 3) == []


def test_a_change_and_its_words():
    facts = replace(FACTS, bos=True)
    hypothesis = declared("mlp.2", Convention(norm="bare", first_position="read"), facts)
    assert (hypothesis.site, hypothesis.layer) == ("mlp", 2)
    assert hypothesis.with_bos
    assert hypothesis.first
    change = (("norm", "none"), ("with_bos", False), ("first", False))
    new = changed(hypothesis, change)
    assert new.convention == Convention(norm="none", first_position="read")
    assert not new.with_bos
    assert not new.first
    assert opposite(hypothesis.convention, change) == (
        ("norm", "bare"),
        ("with_bos", True),
        ("first", True),
    )
    assert opposite(NATIVE, (("layer", 1),)) == ()
    assert described(change) == "read before the norm, without BOS in front"
    assert remedy(NATIVE, (("first", False),)) == (
        "pass convention=Convention(first_position='left out')"
    )
    assert remedy(NATIVE, change[1:]) == "load the model with prepend_bos=False"
    assert remedy(NATIVE, change) == (
        "pass convention=Convention(norm='none') and load the model with prepend_bos=False"
    )
    assert remedy(Convention(centred=True), (("norm", "bare"),)) == (
        "pass convention=Convention(norm='bare', centred=True)"
    )


def test_reread_by_hand():
    plain = SAE(
        W_enc=torch.tensor([[2.0]]),
        W_dec=torch.tensor([[1.0]]),
        b_enc=torch.tensor([1.0]),
        b_dec=torch.tensor([3.0]),
    )
    taken = Convention(subtracted="b_dec")
    assert reread(plain, taken).b_enc.item() == 1 - 6
    assert reread(plain, taken).convention == taken
    assert reread(reread(plain, taken), NATIVE).b_enc.item() == 1
    assert reread(plain, BARE).b_enc is plain.b_enc
    with pytest.raises(ValueError, match="the vector is not in the dictionary"):
        reread(plain, Convention(subtracted="own vector"))


def score(fvu: float, l0: float = 10.0, missed: float = 1.0) -> Score:
    return Score(100, fvu, l0, missed)


@pytest.mark.parametrize(
    ("own", "other", "verdict"),
    [
        (0.5, 0.4501, "fits"),
        (0.5, 0.4499, "refused"),
        (0.89, 5.0, "fits"),
        (0.9, 5.0, "refused"),
        (0.010, 0.0051, "fits"),
        (0.010, 0.0049, "refused"),
        (nan, 5.0, "refused"),
        (2.0, 0.91, "refused"),
    ],
)
def test_limits_of_fvu(own: float, other: float, verdict: str):
    fit = judge("mlp.0", NATIVE, 1000, {(): score(own), (("norm", "bare"),): score(other)})
    assert fit.verdict == verdict
    advised = "pass convention=Convention(norm='bare')" in fit.reason
    assert advised == (verdict == "refused" and other < 0.9)


def test_other_activations_must_fit_much_better():
    for change in (
        (("with_bos", True), ("first", False)),
        (("layer", 1),),
        (("site", "mlp_out"),),
    ):
        assert judge("mlp.0", NATIVE, 99, {(): score(0.4, 1.0), change: score(0.301)}).verdict == (
            "fits"
        )
        assert judge("mlp.0", NATIVE, 99, {(): score(0.4, 1.0), change: score(0.299)}).verdict == (
            "refused"
        )


def test_the_simplest_of_the_best_is_named():
    both = (("norm", "bare"), ("centred", True))
    scores = {(): score(0.8), both[:1]: score(0.41), both: score(0.40)}
    assert "Convention(norm='bare')" in judge("mlp.0", NATIVE, 1000, scores).reason
    scores[both] = score(0.2)
    fit = judge("mlp.0", NATIVE, 1000, scores)
    assert "Convention(norm='bare', centred=True)" in fit.reason
    assert [a.fvu for a in fit.alternatives] == [0.2, 0.41]


def test_l0_rules():
    assert "no feature is active" in judge("mlp.0", NATIVE, 1000, {(): score(0.3, 0.0)}).reason
    for fvu, l0, recorded, verdict in (
        (0.6, 100.1, None, "refused"),
        (0.6, 99.9, None, "fits"),
        (0.4, 400.0, None, "fits"),
        (0.4, 400.0, 130.0, "refused"),
        (0.4, 400.0, 140.0, "fits"),
        (0.4, 99.0, 10.0, "fits"),
        (0.6, 400.0, 140.0, "fits"),
    ):
        fit = judge("mlp.0", NATIVE, 1000, {(): score(fvu, l0)}, recorded_l0=recorded)
        assert fit.verdict == verdict, (fvu, l0, recorded)


def test_recorded_l0_goes_by_name():
    fits = measure_fits(model(), {"mlp.1": itself(1)}, tokens(), recorded_l0={"mlp.1": 2.0})
    assert "on record (2.0)" in fits[0].reason


def test_topk_is_as_dense_as_it_says():
    """A weak dictionary of few features is not refused for its k."""
    plain = perfect_sae("resid_post").to(dtype=torch.float64)
    x = model().read(tokens(), [Site("resid_post", 1)])[Site("resid_post", 1)]
    mean = x[:, 1:].mean((0, 1))
    shrunken = replace(
        plain,
        W_dec=0.4 * plain.W_dec,
        b_enc=-mean @ plain.W_enc,
        b_dec=mean,
        activation="topk",
        k=8,
        convention=Convention(subtracted="b_dec"),
    )
    fit = only(shrunken, "resid_post.1")
    assert 0.5 < fit.fvu < 0.9
    assert fit.l0 == 8 > 0.1 * fit.n_features
    assert fit.verdict == "fits"


def test_tiny_fits_on_the_default_text():
    tiny = load_model("tiny")
    dictionaries = load_dictionaries("tiny", sites=("mlp", "resid_post"), layers=[1])
    fits = check_plausible(tiny, dictionaries)
    assert [fit.name for fit in fits] == ["mlp.1", "resid_post.1"]
    assert all(fit.fvu < 0.1 and 31 < fit.l0 < 33 for fit in fits)
    lengths = [len(tiny.tokenize(text)) for text in PARAGRAPHS]
    assert max(lengths) < 128
    assert fits[0].n_tokens == sum(lengths) - len(lengths)
    assert fits[0].n_tokens > 300


def test_text_prompts():
    texts = [" the war a Mary John gave to 17 45 46"] * 6
    (fit,) = measure_fits(model(), {"mlp.1": itself(1)}, texts)
    assert fit.verdict == "fits"
    assert fit.n_tokens == sum(len(model().tokenize(text)) - 1 for text in texts)


def test_bad_input():
    right = {"mlp.1": itself(1)}
    with pytest.raises(ValueError, match=r"at least 64 tokens .* got 46"):
        measure_fits(model(), right, tokens(n_rows=2))
    mixed = tokens()
    mixed[3, 0] = 0
    with pytest.raises(ValueError, match="some prompts begin with BOS"):
        measure_fits(model(), right, mixed)
    for name in ("mlp.3", "mlp", "resid_mid.1", "mlp.x"):
        with pytest.raises(ValueError, match=r"want names such as mlp\.0"):
            measure_fits(model(), {name: itself(1)}, tokens())
    with pytest.raises(ValueError, match="names a dictionary of site 'mlp'"):
        measure_fits(model(), {"resid_post.1": itself(1)}, tokens())
    with pytest.raises(ValueError, match=r"reads width 16 .* another model"):
        measure_fits(model(), {"resid_post.1": perfect_sae("resid_post", 16)}, tokens())


@pytest.mark.usefixtures("unchecked")
def test_one_string_is_not_prompts():
    with pytest.raises(ValueError, match="one string"):
        measure_fits(model(), {"mlp.1": itself(1)}, "the war")


def test_measure_takes_out_what_was_carried():
    values = read_activations(model(), list(tokens()), sites_of("mlp", 1, model()))
    hypothesis = declared("mlp.1", NATIVE, replace(FACTS, bos=False))
    zeros = torch.zeros(len(values.is_bos), D_MODEL).double()
    way = way_of(hypothesis)
    carried = {(1, way): zeros + 1, (2, way): zeros}
    scores = measure(model(), itself(1), hypothesis, [()], {False: values}, carried)
    assert scores[()].fvu > 0.01
    assert list(carried) == [(2, way)]


def test_saes_beside_a_cross_layer_set():
    """What crosses to a layer is nothing to an SAE there, whichever comes first by name."""
    saes: dict[str, Dictionary] = {
        f"{site}.1": perfect_sae(site).to(dtype=torch.float64)
        for site in ("attn_out", "resid_pre", "resid_post")
    }
    fits = measure_fits(model(), crossing() | saes, tokens())
    assert [fit.name for fit in fits] == [
        "mlp.0",
        "attn_out.1",
        "mlp.1",
        "resid_post.1",
        "resid_pre.1",
        "mlp.2",
    ]
    assert max(fit.fvu for fit in fits) < 1e-20


def test_what_is_said_when_the_check_is_off():
    assert "not tried" in UNCHECKED
