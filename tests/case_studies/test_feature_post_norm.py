"""`circuits feature` on a model with post-norms: what has no weights-only form is said so."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from case_studies.cli import app
from circuits.checkpoints import save_dictionary
from tests import models


def run(folder: Path, architecture: str, feature: str, *flags: str) -> Result:
    """On a saved model with one dictionary at each of the lower two layers."""
    models.hf_model(architecture).save_pretrained(folder / "model")
    models.word_tokenizer().save_pretrained(folder / "model")
    site = feature.split(".")[0]
    (folder / "dictionaries").mkdir()
    for layer in range(2):
        made = models.transcoder(seed=layer) if site == "mlp" else models.sae(site, seed=layer)
        path = folder / "dictionaries" / f"{site}.{layer}.safetensors"
        save_dictionary(made, path, layer=layer, model="x")
    places = ["--model", str(folder / "model"), "--dictionaries", str(folder / "dictionaries")]
    return CliRunner().invoke(app, ["feature", feature, *places, *flags], env={"COLUMNS": "200"})


def record(folder: Path, architecture: str, feature: str) -> dict[str, Any]:
    result = run(folder, architecture, feature, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_transcoder_under_a_post_norm_has_what_it_reads_and_says_what_it_lacks(tmp_path: Path):
    printed = record(tmp_path, "gemma2", "mlp.0.3")
    assert len(printed["deembedding"]) == 10
    assert "normalises what the MLP of layer 0 writes (a post-norm)" in printed["logits_note"]
    assert printed["downstream"] == []
    (why,) = printed["missing"]["downstream"]
    assert "normalises what mlp.0 writes, with an input-dependent denominator" in why


def test_its_tables_and_its_page_say_so_too(tmp_path: Path):
    shown = run(tmp_path, "gemma2", "mlp.0.3", "--out", str(tmp_path / "out"))
    page = (tmp_path / "out" / "mlp.0.3.html").read_text()
    for text in (shown.stdout.replace("\n", " "), page):
        assert "normalises what the MLP of layer 0 writes (a post-norm)" in text
        assert "normalises what mlp.0 writes, with an input-dependent denominator" in text


@pytest.mark.parametrize(
    ("architecture", "feature"), [("gemma2", "resid_post.0.3"), ("llama_gqa", "mlp.0.3")]
)
def test_what_no_post_norm_stands_behind_is_whole(tmp_path: Path, architecture: str, feature: str):
    printed = record(tmp_path, architecture, feature)
    assert "downstream" not in printed["missing"]
    assert len(printed["downstream"]) == 10
    assert "logits_note" not in printed


def test_an_sae_on_a_sublayer_s_output_has_no_de_embedding_and_says_why(tmp_path: Path):
    printed = record(tmp_path, "gpt2", "attn_out.1.3")
    for key in ("deembedding", "deembedding_extended"):
        assert key not in printed
        assert "reads a sublayer's output, not the residual stream" in printed["missing"][key]
    assert len(printed["promoted"]) == 10
