"""`circuits attention`: tables that add up to the model's own scores, and clear refusals."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from attribution.qk.scores import attention_contrast, attention_row, attention_score
from case_studies.cli import app
from circuits import SplicedModel, load_dictionaries, load_model
from circuits.checkpoints import save_dictionary
from circuits.sites import Site
from tests import models
from tests.case_studies.task_models import write_dictionaries, write_model

PROMPT = "When Mary and Peter went to the store, Peter gave a drink to"
HEAD = ["--layer", "1", "--head", "1"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    write_model(folder / "model")
    (folder / "dictionaries").mkdir()
    write_dictionaries(folder / "dictionaries")
    return folder


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With post-norms and a softcap on its scores, which are large enough to feel it."""
    folder = tmp_path_factory.mktemp("gemma2")
    large = models.hf_model("gemma2")
    with torch.no_grad():
        large.model.layers[1].self_attn.q_proj.weight.mul_(50)
    large.save_pretrained(folder / "model")
    models.word_tokenizer().save_pretrained(folder / "model")
    (folder / "dictionaries").mkdir()
    path = folder / "dictionaries" / "mlp.0.safetensors"
    save_dictionary(models.transcoder("relu"), path, layer=0, model="x")
    return folder


@pytest.fixture(scope="module")
def spliced(gpt2: Path) -> SplicedModel:
    return load(gpt2)


def load(folder: Path) -> SplicedModel:
    return SplicedModel(
        load_model(str(folder / "model")), load_dictionaries(str(folder / "dictionaries"))
    )


def run(folder: Path, *arguments: str) -> Result:
    places = ["--model", str(folder / "model"), "--dictionaries", str(folder / "dictionaries")]
    return CliRunner().invoke(app, ["attention", *arguments, *places], env={"COLUMNS": "200"})


def printed(folder: Path, *arguments: str) -> dict[str, Any]:
    result = run(folder, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def tables(output: str) -> list[list[list[str]]]:
    """Rows of every table on stdout, headings first."""
    found: list[list[list[str]]] = []
    for line in output.splitlines():
        cells = [cell.strip() for cell in re.split("[┃│]", line)[1:-1]]
        if line.startswith("┃"):
            found.append([cells])
        elif line.startswith("│"):
            found[-1].append(cells)
    return found


def check_columns_add_up(output: str, total: float) -> None:
    """Every column of values on stdout, to the decimals shown."""
    n_columns = 0
    for columns, *rows in tables(output):
        for i, name in enumerate(columns):
            if name == "value":
                shown = [row[i] for row in rows if row[i]]
                values, decimals = [float(x) for x in shown], len(shown[-1].partition(".")[2])
                slack = len(values) * 10.0**-decimals
                assert sum(values[:-1]) == pytest.approx(values[-1], abs=slack)
                assert values[-1] == pytest.approx(total, abs=0.6 * 10.0**-decimals)
                n_columns += 1
    assert n_columns == 3


def test_a_score_is_the_model_s_and_its_parts_add_up(gpt2: Path, spliced: SplicedModel) -> None:
    record = printed(gpt2, PROMPT, *HEAD, "--query", "10", "--key", "2", "--top", "5")
    library = attention_score(spliced, PROMPT, 1, 1, key=2, query=10)
    state = spliced.state(spliced.model.tokenize(PROMPT)[None])
    pattern = float(state.values[Site("pattern", 1)][0, 1, 10, 2])
    assert record["pattern"] == pytest.approx(pattern, rel=1e-5)
    assert record["score"] == pytest.approx(library.model_score, rel=1e-4, abs=1e-6)
    assert (record["query_token"], record["key_token"]) == (" Peter", " Mary")
    assert len(record["pairs"]) == len(record["by_key_source"]) == 5
    assert record["n_other_pairs"] == library.pairs.numel() - 5
    total = sum(pair["value"] for pair in record["pairs"]) + record["other_pairs"]
    assert total == pytest.approx(record["score"], rel=1e-6)
    for pair in record["pairs"]:
        q = library.query_sources.row(pair["query_source"])
        k = library.key_sources.row(pair["key_source"])
        assert pair["value"] == pytest.approx(float(library.pairs[q, k]), rel=1e-4)
        assert pair["value"] == pytest.approx(pair["prompt_part"] * pair["weights_part"])
        assert pair["share"] == pytest.approx(pair["value"] / record["score"], rel=1e-5)
        assert pair["key"] == 2


def test_each_side_is_summed_over_the_other(gpt2: Path, spliced: SplicedModel) -> None:
    record = printed(gpt2, PROMPT, *HEAD, "--key", "2", "--top", "4")
    library = attention_score(spliced, PROMPT, 1, 1, key=2)
    sides = [
        ("by_query_source", library.query_sources, library.pairs.sum(1)),
        ("by_key_source", library.key_sources, library.pairs.sum(0)),
    ]
    for side, nodes, sums in sides:
        sizes = sums.abs().sort(descending=True).values[:4].tolist()
        assert [abs(s["value"]) for s in record[side]] == pytest.approx(sizes, rel=1e-4)
        for source in record[side]:
            expected = float(sums[nodes.row(source["source"])])
            assert source["value"] == pytest.approx(expected, rel=1e-4)


def test_what_a_prompt_has_made_is_told_from_weights(gpt2: Path) -> None:
    record = printed(gpt2, PROMPT, *HEAD, "--key", "2", "--top", "2000")
    made = ("error", "sublayer")
    for pair in record["pairs"]:
        ends = (pair["query_source"], pair["key_source"])
        assert pair["weights_only"] is not any(end.startswith(made) for end in ends)
    assert {pair["weights_only"] for pair in record["pairs"]} == {True, False}
    assert record["n_other_pairs"] == 0
    largest = max(abs(pair["value"]) for pair in record["pairs"])
    assert abs(record["other_pairs"]) < 1e-6 * largest
    assert record["labels"]["token@2"] == "' Mary'"
    features = [end for pair in record["pairs"] for end in (pair["key_source"],) if "mlp0." in end]
    assert re.fullmatch(r"(reads|says) .*", record["labels"][features[0]])


def test_the_printed_columns_add_up_to_the_score(gpt2: Path, spliced: SplicedModel) -> None:
    result = run(gpt2, PROMPT, *HEAD, "--key", "2", "--top", "4")
    assert result.exit_code == 0, result.output
    score = attention_score(spliced, PROMPT, 1, 1, key=2).score
    check_columns_add_up(result.stdout, score)
    first = result.stdout.splitlines()[0]
    assert "head 1.1 at 14 ' to' looks at 2 ' Mary': score" in first
    sides, pairs = tables(result.stdout)
    assert (sides[-2][0], sides[-1][0], sides[-1][3]) == ("others", "the score", "the score")
    assert pairs[-1][-1] == "100.0%"
    marked = [row[4].endswith(" *") for row in pairs[1:-2]]
    record = printed(gpt2, PROMPT, *HEAD, "--key", "2", "--top", "4")
    assert marked == [not pair["weights_only"] for pair in record["pairs"]]


def test_heads_go_by_their_usual_name(gpt2: Path) -> None:
    result = run(gpt2, PROMPT, *HEAD, "--key", "2", "--top", "2000")
    assert "head 0.1@14" in result.stdout
    assert "sublayer" not in result.stdout


def test_a_contrast_is_the_log_ratio_of_attention(gpt2: Path, spliced: SplicedModel) -> None:
    flags = ["--query", "12", "--key", "-5", "--instead-of", "2"]
    record = printed(gpt2, PROMPT, *HEAD, *flags, "--top", "3000")
    here, there = record["here"], record["there"]
    assert (here["key"], here["key_token"], there["key"]) == (10, " Peter", 2)
    ratio = math.log(here["pattern"] / there["pattern"])
    assert record["difference"] == pytest.approx(ratio, rel=1e-4, abs=1e-5)
    assert record["log_ratio"] == record["difference"]
    contrast = attention_contrast(spliced, PROMPT, 1, 1, here=10, there=2, query=12)
    assert record["query"] == 12
    for pair in record["pairs"]:
        score, sign = (contrast.here, 1) if pair["key"] == 10 else (contrast.there, -1)
        q = score.query_sources.row(pair["query_source"])
        k = score.key_sources.row(pair["key_source"])
        expected = sign * float(score.pairs[q, k])
        assert pair["value"] == pytest.approx(expected, rel=1e-3, abs=1e-7)
    of_bias = {pair["key"] for pair in record["pairs"] if "@" not in pair["key_source"]}
    assert of_bias == {2, 10}
    assert len(record["pairs"]) == contrast.here.pairs.numel() + contrast.there.pairs.numel()


def test_a_contrast_s_sides_are_summed_with_their_signs(gpt2: Path, spliced: SplicedModel) -> None:
    flags = ["--key", "10", "--instead-of", "2", "--top", "200"]
    record = printed(gpt2, PROMPT, *HEAD, *flags)
    contrast = attention_contrast(spliced, PROMPT, 1, 1, here=10, there=2)
    for side in ("by_query_source", "by_key_source"):
        total = sum(source["value"] for source in record[side])
        largest = max(abs(pair["value"]) for pair in record["pairs"])
        assert total == pytest.approx(record["difference"], rel=1e-5, abs=1e-6 * largest)
    for source in record["by_key_source"]:
        score, sign = (contrast.here, 1) if source["key"] == 10 else (contrast.there, -1)
        expected = sign * float(score.pairs.sum(0)[score.key_sources.row(source["source"])])
        assert source["value"] == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_the_printed_columns_of_a_contrast_add_up(gpt2: Path) -> None:
    flags = ["--key", "10", "--instead-of", "2"]
    result = run(gpt2, PROMPT, *HEAD, *flags, "--top", "2000")
    record = printed(gpt2, PROMPT, *HEAD, *flags)
    check_columns_add_up(result.stdout, record["difference"])
    assert result.stdout.splitlines()[1].startswith("rather than at 2 ' Mary': score ")
    assert f"log(attention at 10 / attention at 2) = {record['log_ratio']:+.4g};" in result.stdout
    assert "bias.mlp0 at 2" in result.stdout
    assert "bias.mlp0 at 10" in result.stdout


def test_a_row_lists_keys_by_attention(gpt2: Path, spliced: SplicedModel) -> None:
    record = printed(gpt2, PROMPT, *HEAD, "--query", "6")
    row = attention_row(spliced, PROMPT, 1, 1, query=6)
    assert [key["pattern"] for key in record["keys"]] == pytest.approx(
        row.pattern.sort(descending=True).values.tolist(), rel=1e-5
    )
    assert sum(key["pattern"] for key in record["keys"]) == pytest.approx(1.0, rel=1e-5)
    for key in record["keys"]:
        i = row.keys.tolist().index(key["key"])
        assert key["score"] == pytest.approx(float(row.scores[i]), rel=1e-4, abs=1e-6)
        best = int(row.by_key_source[i].abs().argmax())
        assert key["strongest"][0]["source"] == row.key_sources[i][best].id
        expected = float(row.by_key_source[i][best])
        assert key["strongest"][0]["value"] == pytest.approx(expected, rel=1e-4)


def test_a_printed_row_sums_up_the_keys_it_leaves_out(gpt2: Path) -> None:
    result = run(gpt2, PROMPT, *HEAD, "--query", "6", "--top", "3")
    (table,) = tables(result.stdout)
    assert [row[0] for row in table[4:]] == ["4 others"]
    assert sum(float(row[2].removesuffix("%")) for row in table[1:]) == pytest.approx(100, abs=0.3)
    tokens = {row[0]: row[1] for row in table[1:4]}
    record = printed(gpt2, PROMPT, *HEAD, "--query", "6")
    shown = record["keys"][:3]
    assert tokens == {str(key["key"]): repr(key["key_token"]) for key in shown}


def test_a_softcap_is_told_and_constants_under_a_post_norm_are_the_prompt_s(gemma2: Path) -> None:
    prompt = " the war gave Mary"
    place = ["--layer", "1", "--head", "0"]
    record = printed(gemma2, prompt, *place, "--key", "1", "--top", "2000")
    assert record["softcap"] == 4.0
    assert record["capped_score"] == pytest.approx(4 * math.tanh(record["score"] / 4))
    assert abs(record["capped_score"]) < abs(record["score"])
    of_mlp = [p for p in record["pairs"] if p["query_source"] == "bias.mlp0"]
    tokens = (f"token@{record['query']}", "token@1")
    of_query = [p for p in record["pairs"] if (p["query_source"], p["key_source"]) == tokens]
    assert of_mlp
    assert not any(pair["weights_only"] for pair in of_mlp)
    assert [pair["weights_only"] for pair in of_query] == [True]
    text = run(gemma2, prompt, *place, "--key", "1").stdout
    assert f"The softcap makes the score {record['capped_score']:+.4g}." in text
    flags = [*place, "--key", "1", "--instead-of", "2"]
    contrast = printed(gemma2, prompt, *flags)
    ratio = math.log(contrast["here"]["pattern"] / contrast["there"]["pattern"])
    assert contrast["log_ratio"] == pytest.approx(ratio, rel=1e-4)
    assert abs(contrast["log_ratio"] - contrast["difference"]) > 1e-2
    line = f"{contrast['log_ratio']:+.4g} after the softcap;"
    assert line in run(gemma2, prompt, *flags).stdout


@pytest.mark.parametrize(
    ("flags", "kind"),
    [([], "row"), (["--key", "2"], "score"), (["--key", "2", "--instead-of", "4"], "contrast")],
)
def test_out_leaves_three_files(gpt2: Path, tmp_path: Path, flags: list[str], kind: str) -> None:
    out = tmp_path / "new" / kind
    result = run(gpt2, PROMPT, *HEAD, *flags, "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {"config.json", "metrics.json", "report.md"}
    record = json.loads(result.stdout)
    assert record["kind"] == kind
    assert record["conservation_error"] < 1e-4
    assert json.loads((out / "metrics.json").read_text()) == {"version": 1, **record}
    config = json.loads((out / "config.json").read_text())
    assert (config["command"], config["settings"]["head"]) == ("attention", 1)
    report = (out / "report.md").read_text()
    assert report.startswith("# ")
    assert "head 1.1 at 14 ' to'" in report
    assert "| --- |" in report


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer", "7", "--head", "0"], "has layers 0 to 1, got layer 7"),
        (["--layer", "1", "--head", "2"], "layer 1 has heads 0 to 1, got head 2"),
        ([*HEAD, "--key", "15"], "key must be in [-15, 15), got 15"),
        ([*HEAD, "--query", "-16"], "query must be in [-15, 15), got -16"),
        ([*HEAD, "--query", "4", "--key", "9"], "the mask of layer 1 hides key 9 from query 4"),
        ([*HEAD, "--instead-of", "2"], "--instead-of needs a --key"),
        ([*HEAD, "--key", "2", "--instead-of", "2"], "are both 2; give two positions"),
        ([*HEAD, "--key", "2", "--instead-of", "-13"], "--key and --instead-of are both"),
        ([*HEAD, "--sites", "resid_post"], "holds no dictionary for sites"),
        ([*HEAD, "--top", "0"], "--top: Input should be greater than or equal to 1"),
    ],
)
def test_bad_input_is_refused(gpt2: Path, flags: list[str], message: str) -> None:
    result = run(gpt2, PROMPT, *flags)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_a_head_has_to_be_named(gpt2: Path) -> None:
    result = run(gpt2, PROMPT, "--layer", "1")
    assert result.exit_code == 2
    assert "--head" in result.stderr
