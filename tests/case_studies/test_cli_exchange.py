"""`circuits exchange`."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from case_studies.commands.errors import reporting_errors
from case_studies.commands.exchange import command
from graphs.exchange import FORMS, GraphView, import_graph
from tests.graphs.exchanged import assert_same

MADE = Path(__file__).parents[1] / "fixtures" / "circuit_tracer_graphs" / "pruned.json"


def _run(*args: str | Path):
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("exchange")(reporting_errors(command))
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_from_another_program_through_every_form_and_back(tmp_path: Path):
    first = import_graph(MADE)
    source, view = MADE, tmp_path / "view.json"
    done = _run(MADE, "--out", tmp_path / "graph.json", "--save-view", view)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("wrote 25 nodes and 118 edges to")
    assert "left out" not in done.stdout
    assert GraphView.model_validate_json(view.read_text()) == first.view
    for form in FORMS:
        out = tmp_path / f"{form}.json"
        done = _run(source, "--to", form, "--out", out, "--json")
        assert done.exit_code == 0, done.output
        left_out = source == MADE
        record = {"edges": 118, "file": str(out), "form": form, "nodes": 25}
        assert json.loads(done.stdout) == record | {"view_left_out": left_out}
        assert_same(import_graph(out).graph, first.graph)
        source = out
    out = tmp_path / "again.json"
    flags = ("--to", "attribution-graph", "--view", view, "--scan", "gemma-2-2b", "--out", out)
    done = _run(tmp_path / "graph.json", *flags)
    assert done.exit_code == 0, done.output
    assert import_graph(out).view == first.view
    assert json.loads(out.read_text())["metadata"]["scan"] == "gemma-2-2b"


def test_what_is_left_out_is_said(tmp_path: Path):
    done = _run(MADE, "--to", "graphml", "--out", tmp_path / "g.graphml")
    assert "left out; keep them with --save-view" in done.stdout
    done = _run(MADE, "--to", "attribution-graph", "--out", tmp_path / "g.json")
    assert "left out" not in done.stdout
    assert import_graph(tmp_path / "g.json").view == import_graph(MADE).view


def test_layers_can_be_said(tmp_path: Path):
    done = _run(MADE, "--n-layers", "5", "--out", tmp_path / "g.json")
    assert done.exit_code == 0, done.output
    assert import_graph(tmp_path / "g.json").graph.metadata.n_layers == 5


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (("--to", "dot"), "form must be one of circuitloom"),
        (("--n-layers", "0"), "--n-layers: Input should be greater than or equal to 1, got 0"),
        (("--to", "graphml", "--scan", "x"), "graphml holds neither a view nor a scan"),
        (("--view", MADE), "metadata: Extra inputs are not permitted"),
    ],
)
def test_bad_flags(flags: tuple[str | Path, ...], fault: str, tmp_path: Path):
    done = _run(MADE, *flags, "--out", tmp_path / "g.json")
    assert done.exit_code == 2
    assert fault in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_files(tmp_path: Path):
    done = _run(tmp_path / "none.json", "--out", tmp_path / "g.json")
    assert done.exit_code == 2
    assert "none.json: No such file" in done.stderr
    (tmp_path / "bad.json").write_text("{}")
    done = _run(tmp_path / "bad.json", "--out", tmp_path / "g.json")
    assert done.exit_code == 2
    assert "bad.json: metadata: Field required" in done.stderr
