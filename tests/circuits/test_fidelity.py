"""Fidelity in a model: perfect, useless and by an independent computation."""

import json
import math
import weakref
from functools import cache

import pytest
import torch

from circuits import SAE, SplicedModel, SubjectModel, Transcoder, load_model
from circuits.dictionaries import CrossLayerTranscoder
from circuits.fidelity import (
    FidelityReport,
    KLDivergence,
    cross_entropy,
    evaluate,
    evaluate_many,
)
from circuits.fidelity.edits import constants, splices
from circuits.sites import Site
from tests import models
from tests.circuits.training_models import random_rows, small_gpt2

DOUBLE = torch.float64
D = models.D_MODEL
OUT = [Site("mlp_raw_out", layer) for layer in range(models.N_LAYERS)]


@cache
def subject(architecture: str = "gpt2") -> SubjectModel:
    """With weights large enough for every ablation to matter."""
    hf = models.hf_model(architecture, DOUBLE)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return load_model(hf, dtype=DOUBLE)


@cache
def text(architecture: str = "gpt2", n_rows: int = 7, context: int = 12) -> torch.Tensor:
    """Rows sampled from the model itself, so that any ablation costs it something."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(n_rows, 1, dtype=torch.long)
    with torch.no_grad():
        for _ in range(context - 1):
            logits, _ = subject(architecture).run(rows)
            drawn = logits[:, -1].softmax(-1).multinomial(1, generator=generator)
            rows = torch.cat([rows, drawn], 1)
    return rows


def constant(value: torch.Tensor, n_features: int = 4) -> Transcoder:
    """A transcoder without a live feature: it writes `value` whatever it reads."""
    width = len(value)
    zeros = torch.zeros
    return Transcoder(
        zeros(width, n_features), zeros(n_features, width), zeros(n_features), value
    ).to(dtype=value.dtype)  # type: ignore[return-value]


def target_mean(layer: int, keep: torch.Tensor) -> torch.Tensor:
    _, values = subject().run(text(), capture=[OUT[layer]])
    return values[OUT[layer]][keep].mean(0)


def all_but_first() -> torch.Tensor:
    keep = torch.ones_like(text(), dtype=torch.bool)
    keep[:, 0] = False
    return keep


def some_masked() -> torch.Tensor:
    """Holes in the middle of rows, and padding at their ends."""
    keep = all_but_first()
    keep[0, 4] = keep[2, 7] = keep[3, 5] = False
    keep[1, 8:] = keep[5, 10:] = False
    return keep


def numbers(record: object) -> list[float]:
    """All numbers of a record or report, in its order."""
    found: list[float] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                walk(value[key])
        elif isinstance(value, list):
            for each in value:
                walk(each)
        elif isinstance(value, int | float):
            found.append(float(value))

    walk(json.loads(record.model_dump_json()))  # type: ignore[attr-defined]
    return found


def assert_same(one: object, other: object, tolerance: float = 1e-9) -> None:
    assert numbers(one) == pytest.approx(numbers(other), rel=tolerance, abs=tolerance)


def test_cross_entropy_counts_kept_pairs_only() -> None:
    logits = torch.zeros(1, 4, 8)
    tokens = torch.tensor([[0, 1, 2, 3]])
    keep = torch.tensor([[False, True, True, False]])
    total, count = cross_entropy(logits, tokens, keep)
    assert count == 1
    assert total == pytest.approx(math.log(8))


def test_cross_entropy_sums_more_tokens_than_a_chunk_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 90, 20, generator=generator)
    tokens = torch.randint(20, (3, 90), generator=generator)
    keep = torch.ones(3, 90, dtype=torch.bool)
    total, count = cross_entropy(logits, tokens, keep)
    expected = -logits.double().log_softmax(-1)[:, :-1].gather(2, tokens[:, 1:, None]).sum()
    assert count == 3 * 89
    assert total == pytest.approx(float(expected), rel=1e-12)


def test_perfect_dictionaries_lose_nothing() -> None:
    sites = ("resid_post.0", "resid_post.1", "mlp_out.1", "attn_out.2")
    perfect = {key: models.perfect_sae(key.rpartition(".")[0]).to(dtype=DOUBLE) for key in sites}
    report = evaluate(SplicedModel(subject(), perfect), text(), batch_rows=4)
    assert report.n_tokens == 7 * 11
    assert report.n_predictions == 7 * 10
    for record in report.dictionaries:
        assert record.fvu < 1e-20
        assert record.explained_variance == pytest.approx(1, abs=1e-12)
        assert record.cosine == pytest.approx(1, abs=1e-12)
        assert record.l2_ratio == pytest.approx(1, abs=1e-12)
        assert record.reconstruction_bias == pytest.approx(1, abs=1e-12)
        assert record.l0 == D
        assert record.dead_share < 0.1
        for recovered in (record.cross_entropy, record.kl):
            assert recovered.recovered_mean == pytest.approx(1, abs=1e-9)
            assert recovered.recovered_zero == pytest.approx(1, abs=1e-9)
        assert record.kl.spliced == pytest.approx(0, abs=1e-12)
    assert report.together["resid_post"].recovered_mean == pytest.approx(1, abs=1e-9)
    assert report.together_kl["resid_post"].spliced == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("layer", range(3))
def test_predicting_the_mean_is_mean_ablation(layer: int) -> None:
    keep = some_masked()
    spliced = SplicedModel(subject(), {layer: constant(target_mean(layer, keep))})
    (record,) = evaluate(spliced, text(), keep=keep).dictionaries
    assert record.fvu == pytest.approx(1, abs=1e-9)
    assert record.explained_variance == pytest.approx(0, abs=1e-9)
    assert record.l0 == 0
    assert record.dead_share == 1
    assert sum(record.density.counts) == 0
    assert record.cross_entropy.spliced == pytest.approx(record.cross_entropy.mean_ablated, 1e-12)
    assert record.cross_entropy.recovered_mean == pytest.approx(0, abs=1e-9)
    assert record.kl.recovered_mean == pytest.approx(0, abs=1e-9)
    assert record.cross_entropy.zero_ablated != pytest.approx(record.cross_entropy.spliced, 1e-4)


@pytest.mark.parametrize("layer", range(3))
def test_predicting_zero_is_zero_ablation(layer: int) -> None:
    keep = some_masked()
    spliced = SplicedModel(subject(), {layer: constant(torch.zeros(D, dtype=DOUBLE))})
    (record,) = evaluate(spliced, text(), keep=keep).dictionaries
    assert record.cosine == 0
    assert record.l2_ratio == 0
    assert record.reconstruction_bias is None
    assert record.cross_entropy.spliced == record.cross_entropy.zero_ablated
    assert record.cross_entropy.recovered_zero == 0
    assert record.kl.recovered_zero == 0
    assert record.kl.spliced == record.kl.zero_ablated > 0


def loss_and_kl(logits: torch.Tensor, clean: torch.Tensor, keep: torch.Tensor) -> tuple[float, ...]:
    """Position by position, with nothing of ours."""
    losses, divergences = [], []
    rows = text()
    for row in range(len(rows)):
        for pos in range(rows.shape[1] - 1):
            if keep[row, pos] and keep[row, pos + 1]:
                log_q, log_p = logits[row, pos].log_softmax(0), clean[row, pos].log_softmax(0)
                losses.append(-log_q[rows[row, pos + 1]])
                divergences.append(
                    torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
                )
    return float(torch.stack(losses).mean()), float(torch.stack(divergences).mean())


@pytest.mark.parametrize("masked", [False, True])
def test_every_number_of_a_transcoder_by_an_independent_computation(masked: bool) -> None:
    keep = some_masked() if masked else all_but_first()
    dictionary = models.transcoder("jumprelu", skip=True).to(dtype=DOUBLE)
    spliced = SplicedModel(subject(), {1: dictionary})
    (record,) = evaluate(spliced, text(), keep=keep if masked else None).dictionaries
    read = Site("mlp_in", 1)
    clean, values = subject().run(text(), capture=[read, OUT[1]])
    x, y = values[read], values[OUT[1]]
    a = dictionary.encode(x)
    y_hat = a @ dictionary.W_dec + dictionary.b_dec + x @ dictionary.W_skip
    target, guess, active = y[keep], y_hat[keep], (a[keep] != 0).double()
    density, n = active.mean(0), len(target)
    variance = (target - target.mean(0)).square().sum()
    fvu = (target - guess).square().sum() / variance
    assert record.l0 == pytest.approx(float(active.sum() / n), rel=1e-12)
    assert record.n_features == models.N_FEATURES
    assert record.dead_share == float((density == 0).double().mean())
    assert record.density.above_1_percent == float((density > 0.01).double().mean())
    assert record.density.above_10_percent == float((density > 0.1).double().mean())
    assert sum(record.density.counts) == int((density > 0).sum())
    assert record.fvu == pytest.approx(float(fvu), rel=1e-10)
    assert record.explained_variance == pytest.approx(float(1 - fvu), rel=1e-9)
    cosines = torch.nn.functional.cosine_similarity(target, guess)
    assert record.cosine == pytest.approx(float(cosines.mean()), rel=1e-10)
    ratio = (guess.norm(dim=1) / target.norm(dim=1)).mean()
    assert record.l2_ratio == pytest.approx(float(ratio), rel=1e-10)
    bias = guess.square().sum() / (guess * target).sum()
    assert record.reconstruction_bias == pytest.approx(float(bias), rel=1e-10)
    replaced = {
        "spliced": y_hat,
        "mean_ablated": target.mean(0).expand_as(y),
        "zero_ablated": torch.zeros_like(y),
    }
    own, _ = loss_and_kl(clean, clean, keep)
    assert record.cross_entropy.clean == pytest.approx(own, rel=1e-10)
    for name, value in replaced.items():
        edited = torch.where(keep[..., None], value, y)
        logits, _ = subject().run(text(), edits={OUT[1]: lambda _, new=edited: new})
        loss, kl = loss_and_kl(logits, clean, keep)
        assert getattr(record.cross_entropy, name) == pytest.approx(loss, rel=1e-10)
        assert getattr(record.kl, name) == pytest.approx(kl, rel=1e-9)
    losses, divergences = record.cross_entropy, record.kl
    for kind in ("mean", "zero"):
        loss, kl = (getattr(each, f"{kind}_ablated") for each in (losses, divergences))
        recovered = (loss - losses.spliced) / (loss - losses.clean)
        assert getattr(losses, f"recovered_{kind}") == pytest.approx(recovered, rel=1e-12)
        assert getattr(divergences, f"recovered_{kind}") == pytest.approx(
            1 - divergences.spliced / kl, rel=1e-12
        )


@pytest.mark.parametrize("site", ["resid_post", "attn_out", "mlp_out"])
def test_what_an_sae_costs_by_an_independent_computation(site: str) -> None:
    keep, place = some_masked(), Site(site, 1)  # type: ignore[arg-type]
    dictionary = models.sae(site).to(dtype=DOUBLE)
    report = evaluate(SplicedModel(subject(), {f"{site}.1": dictionary}), text(), keep=keep)
    clean, values = subject().run(text(), capture=[place])
    y = values[place]
    edited = torch.where(keep[..., None], dictionary(y), y)
    logits, _ = subject().run(text(), edits={place: lambda _: edited})
    loss, kl = loss_and_kl(logits, clean, keep)
    assert abs(loss - report.together[site].clean) > 1e-3
    assert report.together[site].spliced == pytest.approx(loss, rel=1e-10)
    assert report.dictionaries[0].kl.spliced == pytest.approx(kl, rel=1e-9)


def test_a_transcoder_is_judged_on_its_target_not_its_input() -> None:
    """An identity on the MLP's input is no reconstruction of its output."""
    eye = models.perfect_sae("mlp_out").to(dtype=DOUBLE)
    identity = Transcoder(eye.W_enc, eye.W_dec, eye.b_enc, eye.b_dec)
    (record,) = evaluate(SplicedModel(subject(), {0: identity}), text()).dictionaries
    assert record.fvu > 0.5
    assert record.kl.spliced > 1e-3


@pytest.mark.parametrize(
    ("architecture", "mixture"),
    [("gpt2", "mixed"), ("gpt2", "skip"), ("neox_parallel", "transcoders"), ("gemma2", "mixed")],
)
def test_cutting_the_text_into_other_batches_changes_nothing(
    architecture: str, mixture: str
) -> None:
    spliced = SplicedModel(subject(architecture), models.MIXTURES[mixture])
    rows, keep = text(architecture), some_masked()
    whole = evaluate(spliced, rows, keep=keep, batch_rows=7)
    assert_same(evaluate(spliced, rows, keep=keep, batch_rows=3), whole)


def test_what_the_left_out_positions_hold_changes_nothing() -> None:
    """Padding: nothing before it sees it, so any token there gives the same numbers."""
    keep = some_masked()
    keep[:, 9:] = False
    rows = text().clone()
    spliced = SplicedModel(subject(), models.MIXTURES["mixed"])
    before = evaluate(spliced, rows, keep=keep)
    rows[:, 9:] = torch.arange(3) + 40
    rows[1, 8] = 17
    assert_same(evaluate(spliced, rows, keep=keep), before, tolerance=1e-12)


def test_huge_values_at_left_out_positions_change_nothing() -> None:
    torch.manual_seed(0)
    hf = models.hf_model("gpt2", DOUBLE)
    with torch.no_grad():
        hf.transformer.wte.weight[49] = 1e150
    model = load_model(hf, dtype=DOUBLE)
    rows = text().clone()
    rows[rows == 49] = 48
    keep = all_but_first()
    keep[:, 10:] = False
    spliced = SplicedModel(model, models.MIXTURES["residual"])
    before = evaluate(spliced, rows, keep=keep)
    rows[:, 10:] = 49
    assert_same(evaluate(spliced, rows, keep=keep), before, tolerance=1e-12)


def test_left_out_positions_keep_their_true_value_bit_for_bit() -> None:
    keep = some_masked()
    broken = models.transcoder("relu")
    broken.b_dec.fill_(math.nan)
    site = OUT[1]
    rows = text()
    _, values = subject().run(rows, capture=[site])
    for edits in (
        splices(SplicedModel(subject(), {1: broken}), [site], keep),
        constants({site: torch.full((D,), math.inf, dtype=DOUBLE)}, keep),
    ):
        _, edited = subject().run(rows, edits=edits, capture=[site])
        assert torch.equal(edited[site][~keep], values[site][~keep])
        assert not edited[site][keep].isfinite().any()


def test_together_is_all_at_once_each_reading_what_is_below() -> None:
    first, second = (models.transcoder("relu", seed=s).to(dtype=DOUBLE) for s in (0, 1))
    report = evaluate(SplicedModel(subject(), {0: first, 2: second}), text())
    keep = all_but_first()[..., None]
    seen: dict[int, torch.Tensor] = {}

    def remember(layer: int):
        return lambda x: seen.setdefault(layer, x)

    edits = {
        Site("mlp_in", 0): remember(0),
        OUT[0]: lambda y: torch.where(keep, first(seen[0]), y),
        Site("mlp_in", 2): remember(2),
        OUT[2]: lambda y: torch.where(keep, second(seen[2]), y),
    }
    clean, _ = subject().run(text())
    logits, _ = subject().run(text(), edits=edits)
    loss, kl = loss_and_kl(logits, clean, all_but_first())
    assert report.together["mlp"].spliced == pytest.approx(loss, rel=1e-10)
    assert report.together_kl["mlp"].spliced == pytest.approx(kl, rel=1e-10)
    means = {OUT[i]: target_mean(i, all_but_first()) for i in (0, 2)}
    logits, _ = subject().run(text(), edits=constants(means, all_but_first()))
    loss, kl = loss_and_kl(logits, clean, all_but_first())
    assert report.together["mlp"].mean_ablated == pytest.approx(loss, rel=1e-10)
    assert report.together_kl["mlp"].mean_ablated == pytest.approx(kl, rel=1e-10)


def test_kinds_of_site_are_taken_together_apart() -> None:
    report = evaluate(SplicedModel(subject(), models.MIXTURES["mixed"]), text())
    assert (
        set(report.together)
        == set(report.together_kl)
        == {
            *("mlp", "attn_out", "resid_post", "mlp_out"),
        }
    )
    alone = {d.name: d for d in report.dictionaries}
    assert report.together["resid_post"] == alone["resid_post.0"].cross_entropy
    assert report.together_kl["mlp_out"] == alone["mlp_out.1"].kl
    assert report.together["mlp"] not in [d.cross_entropy for d in report.dictionaries]


def test_many_candidates_say_what_each_says_alone_in_fewer_passes(monkeypatch) -> None:
    candidates = {
        "a": SplicedModel(subject(), {1: models.transcoder("relu")}),
        "b": SplicedModel(subject(), {1: models.transcoder("topk", seed=3)}),
        "c": SplicedModel(subject(), models.MIXTURES["transcoders"]),
    }
    alone = {name: evaluate(spliced, text()) for name, spliced in candidates.items()}
    runs, run = [0], SubjectModel.run

    def counted(self, *args, **kwargs):
        runs[0] += 1
        return run(self, *args, **kwargs)

    monkeypatch.setattr(SubjectModel, "run", counted)
    news: list[tuple[int, int]] = []
    together = evaluate_many(
        candidates, text(), batch_rows=4, progress=lambda *done_of: news.append(done_of)
    )
    # 2 clean; splices: 1 + 1 + 3 + all three; mean and zero: three layers + all three.
    assert runs[0] == 2 * (2 + 6 + 2 * 4)
    assert news == [(i + 1, runs[0]) for i in range(runs[0])]
    for name, report in alone.items():
        assert_same(together[name], report, tolerance=1e-11)
        assert [d.name for d in together[name].dictionaries] == [
            d.name for d in report.dictionaries
        ]


def cross_layer() -> dict[int, CrossLayerTranscoder]:
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=DOUBLE)

    return {
        layer: CrossLayerTranscoder(
            W_enc=random(D, 20),
            W_dec=0.3 * random(20, 3 - layer, D),
            b_enc=0.1 * random(20),
            b_dec=0.1 * random(D),
        )
        for layer in range(3)
    }


def test_a_cross_layer_transcoder_is_the_sum_of_what_is_written_to_a_layer() -> None:
    parts = cross_layer()
    shuffled = {layer: parts[layer] for layer in (2, 0, 1)}
    report = evaluate(SplicedModel(subject(), shuffled), text())
    keep = all_but_first()
    reads = [Site("mlp_in", layer) for layer in range(3)]
    clean, values = subject().run(text(), capture=[*reads, *OUT])

    def rebuilt(layer: int, inputs: list[torch.Tensor]) -> torch.Tensor:
        written = parts[layer].b_dec
        for lower in range(layer + 1):
            a = (inputs[lower] @ parts[lower].W_enc + parts[lower].b_enc).relu()
            written = written + a @ parts[lower].W_dec[:, layer - lower]
        return written

    for record in report.dictionaries:
        layer = int(record.name.removeprefix("mlp."))
        y, y_hat = values[OUT[layer]], rebuilt(layer, [values[read] for read in reads])
        target = y[keep]
        fvu = (target - y_hat[keep]).square().sum() / (target - target.mean(0)).square().sum()
        assert record.fvu == pytest.approx(float(fvu), rel=1e-10)
        edited = torch.where(keep[..., None], y_hat, y)
        logits, _ = subject().run(text(), edits={OUT[layer]: lambda _, new=edited: new})
        loss, kl = loss_and_kl(logits, clean, keep)
        assert record.cross_entropy.spliced == pytest.approx(loss, rel=1e-10)
        assert record.kl.spliced == pytest.approx(kl, rel=1e-10)
    inputs: list[torch.Tensor] = []

    def splice(layer: int):
        return lambda y: torch.where(keep[..., None], rebuilt(layer, inputs), y)

    def remember(x: torch.Tensor) -> torch.Tensor:
        inputs.append(x)
        return x

    edits = dict.fromkeys(reads, remember) | {OUT[layer]: splice(layer) for layer in range(3)}
    logits, _ = subject().run(text(), edits=edits)
    assert report.together["mlp"].spliced == pytest.approx(
        loss_and_kl(logits, clean, keep)[0], rel=1e-10
    )


def test_activations_of_few_layers_are_held_at_once(monkeypatch) -> None:
    """Features are many: those of a layer that writes only to itself are dropped when used."""
    held: list[weakref.ref[torch.Tensor]] = []
    encode, most = Transcoder.encode, [0]

    def watched(self: Transcoder, x: torch.Tensor) -> torch.Tensor:
        most[0] = max(most[0], sum(each() is not None for each in held))
        held.append(weakref.ref(a := encode(self, x)))
        return a

    monkeypatch.setattr(Transcoder, "encode", watched)
    evaluate(SplicedModel(subject(), models.MIXTURES["transcoders"]), text(), batch_rows=7)
    assert len(held) == 3 + 3 + 3  # statistics, alone, together
    assert most[0] == 1


def test_an_ablation_that_costs_nothing_leaves_nothing_to_recover() -> None:
    model, rows = small_gpt2(), random_rows(32)  # random text: here the MLP only hurts
    (record,) = evaluate(SplicedModel(model, {1: constant(torch.ones(16))}), rows).dictionaries
    assert record.cross_entropy.mean_ablated < record.cross_entropy.clean
    assert record.cross_entropy.recovered_mean is None
    assert record.cross_entropy.recovered_zero is None
    assert record.kl.recovered_mean is not None


def test_float32_is_within_float32_of_float64() -> None:
    reports = [
        evaluate(
            SplicedModel(models.subject("gpt2", dtype), models.MIXTURES["transcoders"]), text()
        )
        for dtype in (torch.float32, DOUBLE)
    ]
    for single, double in zip(*(report.dictionaries for report in reports), strict=True):
        assert single.fvu == pytest.approx(double.fvu, rel=1e-5)
        assert single.kl.spliced == pytest.approx(double.kl.spliced, rel=1e-4)
        assert single.cross_entropy.spliced == pytest.approx(double.cross_entropy.spliced, rel=1e-5)


def test_a_report_survives_its_file() -> None:
    report = evaluate(SplicedModel(subject(), models.MIXTURES["mixed"]), text())
    assert FidelityReport.model_validate_json(report.model_dump_json()) == report
    assert json.loads(report.model_dump_json())["version"] == 2


def test_an_older_record_is_refused_with_what_to_do() -> None:
    old = '{"version": 1, "model": "x", "n_tokens": 1, "dictionaries": [], "together": {}}'
    with pytest.raises(
        ValueError, match=r"has version 1, want 2.*with `circuits evaluate`"
    ) as error:
        FidelityReport.model_validate_json(old)
    assert "http" not in str(error.value)
    assert "input_value" not in str(error.value)


def test_numbers_that_are_none_are_refused_in_records() -> None:
    with pytest.raises(ValueError, match="finite number"):
        KLDivergence(
            spliced=math.nan,
            mean_ablated=1.0,
            zero_ablated=1.0,
            recovered_mean=1.0,
            recovered_zero=1.0,
        )


def test_damaged_weights_are_named_before_the_long_part() -> None:
    broken = models.transcoder("relu")
    broken.W_dec[3] = math.inf
    spliced = SplicedModel(subject(), {0: models.transcoder("relu"), 2: broken})
    with pytest.raises(ValueError, match="dictionary at mlp_raw_out2 of x are not all finite"):
        evaluate_many({"x": spliced}, text())


@pytest.mark.parametrize(
    ("rows", "keep", "message"),
    [
        (torch.zeros(2, 5).long(), torch.zeros(2, 5).bool(), "position and its next token"),
        (torch.zeros(2, 2).long(), None, "position and its next token"),
        (torch.zeros(0, 5).long(), None, "position and its next token"),
        (torch.zeros(2, 5).long(), torch.ones(5, 2).bool(), r"same shape, got \(2, 5\) and \(5, 2"),
        (torch.zeros(5).long(), None, r"want tokens \[row, pos\].*got \(5,\) and None"),
        (torch.tensor([[0, 1, 2], [0, 50, 3]]), None, r"must be in \[0, 50\), got 0 to 50"),
        (torch.tensor([[0, 3, 1], [0, -1, 4]]), None, r"must be in \[0, 50\), got -1 to 4"),
        (torch.zeros(1, 25).long(), None, "reads at most 24"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_text_that_cannot_be_measured_is_refused(rows, keep, message: str) -> None:
    spliced = SplicedModel(subject(), {0: models.transcoder("relu")})
    with pytest.raises(ValueError, match=message):
        evaluate(spliced, rows, keep=keep)


def test_candidates_of_nothing_or_of_several_models_are_refused() -> None:
    one = SplicedModel(subject(), {0: models.transcoder("relu")})
    other = SplicedModel(models.subject("gpt2"), {0: models.transcoder("relu")})
    with pytest.raises(ValueError, match="must share one model"):
        evaluate_many({"a": one, "b": other}, text())
    for none in ({}, {"a": one, "b": SplicedModel(subject(), {})}):
        with pytest.raises(ValueError, match="no dictionary to evaluate"):
            evaluate_many(none, text())


def test_an_sae_and_a_transcoder_say_so_in_their_names() -> None:
    dictionaries = {"mlp.1": models.transcoder("relu"), "resid_post.1": models.sae("resid_post")}
    report = evaluate(SplicedModel(subject(), dictionaries), text())
    assert [d.name for d in report.dictionaries] == ["mlp.1", "resid_post.1"]
    assert isinstance(dictionaries["resid_post.1"], SAE)
