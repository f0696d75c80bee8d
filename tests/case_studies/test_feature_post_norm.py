"""`circuits feature` on a model with post-norms: refused in one line, before any work."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from case_studies.cli import app
from circuits.checkpoints import save_dictionary
from tests import models


def run(folder: Path, architecture: str, feature: str) -> Result:
    """On a saved model with one dictionary, which has no neighbour to be refused for."""
    models.hf_model(architecture).save_pretrained(folder / "model")
    models.word_tokenizer().save_pretrained(folder / "model")
    site, layer, _ = feature.split(".")
    (folder / "dictionaries").mkdir()
    made = models.transcoder() if site == "mlp" else models.sae(site)
    path = folder / "dictionaries" / f"{site}.{layer}.safetensors"
    save_dictionary(made, path, layer=int(layer), model="x")
    places = ["--model", str(folder / "model"), "--dictionaries", str(folder / "dictionaries")]
    return CliRunner().invoke(app, ["feature", feature, *places, "--json"], env={"COLUMNS": "200"})


def test_a_transcoder_under_a_post_norm_is_refused(tmp_path: Path):
    result = run(tmp_path, "gemma2", "mlp.0.3")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "normalises what mlp.0 writes (a post-norm), so its effect on logits" in result.stderr


@pytest.mark.parametrize(
    ("architecture", "feature"), [("gemma2", "resid_post.0.3"), ("llama_gqa", "mlp.0.3")]
)
def test_what_no_post_norm_stands_behind_is_shown(tmp_path: Path, architecture: str, feature: str):
    result = run(tmp_path, architecture, feature)
    assert result.exit_code == 0, result.output
    assert '"promoted"' in result.stdout
