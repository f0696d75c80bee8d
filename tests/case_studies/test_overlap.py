"""`circuits overlap`: circuits read, lined up, compared, and what the command leaves."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from attribution import Node, NodeTable, attribute
from case_studies.commands.errors import reporting_errors
from case_studies.commands.overlap import command
from case_studies.overlaps.aligning import align, name_prompt
from case_studies.overlaps.comparing import Comparison, OverlapRecord, PlaceRecord, compare
from case_studies.overlaps.config import OverlapConfig
from case_studies.overlaps.page import overlap_figure
from case_studies.overlaps.pools import active_nodes, study_pool
from case_studies.overlaps.reading import read_circuits
from case_studies.overlaps.report import PAIR_COLUMNS, finding, pair_cells, report
from case_studies.study_config import StudyConfig
from case_studies.tasks import GreaterThanTask, TaskPrompt
from circuits import SplicedModel, Transcoder, load_dictionaries, load_model
from circuits.checkpoints import save_dictionary
from graphs import CircuitGraph, GraphMetadata
from graphs.task_circuits import collapse

OUT = Node(kind="output", layer=2, site="logit", pos=0)


SHORT = {"s": 0, "end": 2}


def at(pos: int, index: int | None = None, layer: int = 0) -> Node:
    """A token, or a feature."""
    if index is None:
        return Node(kind="token", layer=-1, site="embed", pos=pos, feature=3)
    return Node(kind="feature", layer=layer, site="mlp", pos=pos, feature=index, activation=1.0)


def graph_of(
    edges: Mapping[tuple[Node, Node], float],
    n_pos: int,
    *,
    roles: Mapping[str, int] | None = None,
    model: str = "toy",
    **notes: str,
) -> CircuitGraph:
    ends = {node.id: node for pair in edges for node in pair}
    nodes = NodeTable(list(ends.values()))
    if roles is not None:
        notes["roles"] = json.dumps(roles)
    return CircuitGraph(
        nodes=nodes,
        edge_target=torch.tensor([nodes.row(target.id) for _, target in edges]),
        edge_source=torch.tensor([nodes.row(source.id) for source, _ in edges]),
        edge_attribution=torch.tensor(list(edges.values()), dtype=torch.float64),
        metadata=GraphMetadata(
            model=model, prompt="p", tokens=("x",) * n_pos, n_layers=2, target="logit", notes=notes
        ),
    )


def short(
    roles: Mapping[str, int] | None = SHORT, model: str = "toy", **notes: str
) -> CircuitGraph:
    """Three tokens: subject, end, and what lies between."""
    edges = {(at(0), at(1, 5)): 1.0, (at(1, 5), at(2, 6, 1)): 2.0, (at(2, 6, 1), OUT): 4.0}
    return graph_of(edges, 3, roles=roles, model=model, **notes)


def long(model: str = "toy", **notes: str) -> CircuitGraph:
    """Four tokens: the same, with a longer gap, in which feature 5 is active twice."""
    edges = {
        (at(0), at(2, 5)): 3.0,
        (at(1, 5), at(3, 6, 1)): 1.0,
        (at(2, 5), at(3, 6, 1)): 1.0,
        (at(3, 7), OUT): 8.0,
        (at(3, 6, 1), OUT): -2.0,
    }
    return graph_of(edges, 4, roles={"s": 0, "end": 3}, model=model, **notes)


def save(folder: Path, graph: CircuitGraph, study: StudyConfig | None = None, suffix: str = ""):
    folder.mkdir(exist_ok=True)
    graph.save(folder / f"graph{suffix}.json")
    if study is not None:
        record = {"command": "study", "settings": study.model_dump(mode="json")}
        (folder / "config.json").write_text(json.dumps(record))
    return str(folder)


def no_model(model: str, dictionaries: str) -> SplicedModel:
    raise AssertionError(f"asked for {model} with {dictionaries}")


def compared(*places: str, **options) -> Comparison:
    config = OverlapConfig(circuits=places, **options)
    return compare(config, read_circuits(places), no_model)


class TestReading:
    def test_all_groups_of_a_folder(self, tmp_path):
        study = StudyConfig(task="ioi")
        folder = save(tmp_path / "one", short(), study)
        save(tmp_path / "one", long(), suffix="-BABA")
        other = tmp_path / "two" / "mine.json"
        other.parent.mkdir()
        long(group="ABBA").save(other)
        found = read_circuits([folder, str(other)])
        assert [c.name for c in found] == ["one", "one/BABA", "two/ABBA"]
        assert [c.group for c in found] == [None, "BABA", "ABBA"]
        assert [c.study for c in found] == [study, study, None]
        assert [c.graph.n_edges for c in found] == [3, 5, 5]
        assert found[0].position_names == ("s", "between s and end", "end")

    def test_folders_of_one_name_are_told_apart(self, tmp_path):
        places = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            places.append(save(tmp_path / name / "run", short()))
        assert [c.name for c in read_circuits(places)] == [f"{p}/graph.json" for p in places]

    def test_graphs_by_role_bring_their_names(self, tmp_path):
        by_role = collapse(short(), "abc", "cba")
        first, _ = read_circuits([save(tmp_path / "a", by_role), save(tmp_path / "b", short())])
        assert first.position_names == ("c", "b", "a")

    def test_graphs_without_roles_have_none(self, tmp_path):
        plain = save(tmp_path / "a", short(roles=None)), save(tmp_path / "b", short())
        assert [c.position_names is None for c in read_circuits(plain)] == [True, False]

    def test_settings_of_other_commands_are_no_study(self, tmp_path):
        places = save(tmp_path / "a", short()), save(tmp_path / "b", short())
        (tmp_path / "a" / "config.json").write_text('{"command": "attribute", "settings": {}}')
        assert read_circuits(places)[0].study is None

    @pytest.mark.parametrize(
        "text", ["{", "[]", '{"settings": {}}', '{"command": "study", "settings": {"task": "x"}}']
    )
    def test_malformed_settings_are_refused(self, tmp_path, text):
        places = save(tmp_path / "a", short()), save(tmp_path / "b", short())
        (tmp_path / "b" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"b/config\.json should hold the settings of a study"):
            read_circuits(places)

    def test_refusals(self, tmp_path):
        one = save(tmp_path / "a", short())
        with pytest.raises(ValueError, match="at least two circuits to compare, got 1 in"):
            read_circuits([one])
        with pytest.raises(ValueError, match=r"graph\.json twice"):
            read_circuits([one, f"{one}/graph.json"])
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match=r"empty holds no graph\.json"):
            read_circuits([one, str(tmp_path / "empty")])
        with pytest.raises(FileNotFoundError):
            read_circuits([one, str(tmp_path / "nowhere.json")])
        bad = save(tmp_path / "b", short(roles=None).with_notes(roles="[1]"))
        with pytest.raises(ValueError, match=r"note `roles` should be JSON, role -> position"):
            read_circuits([one, bad])[1].position_names  # noqa: B018


class TestAligning:
    @pytest.fixture
    def saved(self, tmp_path):
        return read_circuits([save(tmp_path / "a", short()), save(tmp_path / "b", long())])

    @pytest.fixture
    def without(self, tmp_path):
        plain = short(roles=None)
        return read_circuits([save(tmp_path / "a", plain), save(tmp_path / "b", short())])

    @pytest.mark.parametrize("positions", ["auto", "role"])
    def test_by_role(self, saved, positions):
        found = align(saved, positions)
        assert found.by == "role"
        assert found.columns == ("s", "between s and end", "end")
        ids = [[node.id for node in graph.nodes] for graph in found.graphs]
        assert ids[0] == ["token@0", "mlp0.5@1", "mlp1.6@2", "output.logit"]
        assert set(ids[1]) == {*ids[0], "mlp0.7@2"}

    def test_by_position_where_one_has_no_roles(self, without):
        found = align(without, "auto")
        assert (found.by, found.columns) == ("position", ("0", "1", "2"))

    def test_anywhere(self, saved):
        found = align(saved, "any")
        assert found.columns == ("any position",)
        ids = {node.id for node in found.graphs[1].nodes}
        assert ids == {"token@0", "mlp0.5@0", "mlp1.6@0", "mlp0.7@0", "output.logit"}

    def test_refusals(self, saved, without):
        with pytest.raises(ValueError, match=r"circuits of \[3, 4\] positions do not line up"):
            align(saved, "position")
        with pytest.raises(ValueError, match=r"a/graph\.json does not say which position"):
            align(without, "role")

    def test_names_of_a_prompt(self):
        assert name_prompt("role", {"s": 1, "end": 2}, 3) == ("before s", "s", "end")
        assert name_prompt("position", {"s": 1, "end": 2}, 3) == ("0", "1", "2")
        assert name_prompt("any", {"s": 1, "end": 2}, 3) == ("any position",) * 3


class TestComparing:
    def test_by_role(self, tmp_path):
        found = compared(save(tmp_path / "a", short()), save(tmp_path / "b", long()))
        (pair,) = found.record.pairs
        assert (pair.a, pair.b, pair.chance) == ("a", "b", None)
        assert pair.overlap is not None
        assert (pair.overlap.nodes.n_shared, pair.overlap.node_jaccard) == (3, 3 / 4)
        assert pair.overlap.edge_jaccard == 3 / 4
        # 1 of 3, 2 of 2, |-2| of 4, and 8 that one has
        assert pair.overlap.weighted_jaccard == pytest.approx(5 / 17)
        assert pair.overlap.sign_agreement == pytest.approx(2 / 3)
        # a: one path, thirds. b: 8 of 10 by feature 7; 2 of 10 by the path
        low, high = (0.2, 0.2, 0.2), 0.8
        total = sum(low) + high
        assert pair.profile_overlap == pytest.approx(sum(x / total for x in low))
        assert found.record.places == [
            PlaceRecord(layer=-1, column="s", n_all=1, n_some=0),
            PlaceRecord(layer=0, column="between s and end", n_all=1, n_some=0),
            PlaceRecord(layer=0, column="end", n_all=0, n_some=1),
            PlaceRecord(layer=1, column="end", n_all=1, n_some=0),
        ]
        assert found.shared is not None
        assert (found.shared.n_nodes, found.shared.n_edges) == (4, 3)
        assert [c.n_nodes for c in found.record.circuits] == [4, 5]

    def test_every_pair_is_compared(self, tmp_path):
        places = [save(tmp_path / name, graph) for name, graph in
                  [("a", short()), ("b", long()), ("c", short())]]  # fmt: skip
        steps = []
        config = OverlapConfig(circuits=tuple(places))
        found = compare(config, read_circuits(places), no_model, lambda *n: steps.append(n))
        pairs = [(p.a, p.b, p.overlap and p.overlap.node_jaccard) for p in found.record.pairs]
        assert pairs == [("a", "b", 3 / 4), ("a", "c", 1.0), ("b", "c", 3 / 4)]
        assert steps == [(1, 3), (2, 3), (3, 3)]
        compare(config, read_circuits(places[:2]), no_model, lambda *n: steps.append(n))
        assert steps[3:] == [(1, 1)]

    def test_two_models_have_a_profile_alone(self, tmp_path):
        found = compared(save(tmp_path / "a", short()), save(tmp_path / "b", long(model="other")))
        (pair,) = found.record.pairs
        assert (pair.overlap, pair.chance) == (None, None)
        assert pair.profile_overlap == pytest.approx(0.6 / 1.4)
        assert {(p.n_all, p.n_some) for p in found.record.places} == {(1, 0)}
        assert finding(found.record).startswith("a and b, two models: 43% of the influence")
        assert "| a, b |  |  |  |  |  |  |  |  |  |  | 0.43 |" in report(found.record)

    def test_dictionaries_of_two_models_are_not_matched(self, tmp_path):
        places = [
            save(tmp_path / name, short(model=name), StudyConfig(task="ioi", dictionaries=name))
            for name in ("a", "b")
        ]
        found = compared(*places)
        assert found.record.matches == []
        assert [c.dictionaries for c in found.record.circuits] == ["a", "b"]

    def test_tasks_without_a_common_output_share_no_circuit(self, tmp_path):
        other = Node(kind="output", layer=2, site="difference", pos=0)
        second = graph_of({(at(1, 5), other): 1.0}, 3, roles=SHORT)
        found = compared(save(tmp_path / "a", short()), save(tmp_path / "b", second))
        assert found.shared is None
        assert found.record.pairs[0].overlap is not None
        assert found.record.pairs[0].overlap.nodes.n_shared == 1

    def test_features_of_other_dictionaries_are_matched(self, tmp_path):
        """The second set is the first in another order, but for a feature of its own."""
        generator = torch.Generator().manual_seed(0)
        order = [3, 4, 5, 6, 7, 0, 1, 2]
        for layer in (0, 1):
            W_enc, W_dec = (torch.randn(8, 32, generator=generator) for _ in range(2))
            other_dec = W_dec[order].clone()
            other_dec[4] = torch.randn(32, generator=generator)  # 7 of the first set
            b_enc, b_dec = torch.zeros(8), torch.zeros(32)
            for name, enc, dec in [("d1", W_enc, W_dec), ("d2", W_enc[order], other_dec)]:
                folder = tmp_path / name
                folder.mkdir(exist_ok=True)
                path = folder / f"mlp.{layer}.safetensors"
                save_dictionary(
                    Transcoder(enc.T.contiguous(), dec, b_enc, b_dec),
                    path,
                    layer=layer,
                    model="toy",
                )
        moved = {5: 2, 6: 3, 7: 4}
        edges = {
            (at(0), at(1, moved[5])): 1.0,
            (at(1, moved[5]), at(2, moved[6], 1)): 2.0,
            (at(2, moved[6], 1), OUT): 4.0,
            (at(0, moved[7]), OUT): 1.0,
        }
        second = graph_of(edges, 3, roles=SHORT)
        a, b = (
            save(
                tmp_path / name,
                graph,
                StudyConfig(task="ioi", model="toy", dictionaries=str(tmp_path / d)),
            )
            for name, graph, d in [("a", short(), "d1"), ("b", second, "d2")]
        )
        found = compared(a, b, chance=False, min_similarity=0.9)
        overlap = found.record.pairs[0].overlap
        assert overlap is not None
        assert (overlap.nodes.n_a, overlap.nodes.n_b, overlap.nodes.n_shared) == (3, 4, 3)
        assert overlap.edge_jaccard == 3 / 4
        assert [(m.place, m.n_features, m.n_pairs) for m in found.record.matches] == [
            ("mlp.0", (8, 8), 7),
            ("mlp.1", (8, 8), 7),
        ]
        assert "| mlp.0 | 8 | 8 | 7 | 1.00 |" in report(found.record)
        loose = compared(a, b, chance=False, min_similarity=0.3)
        assert [m.n_pairs for m in loose.record.matches] == [8, 8]
        # the feature without a partner is called neither 4 nor 7
        third = save(tmp_path / "c", graph_of({(at(0, 4), OUT): 1.0, (at(0, 7), OUT): 1.0}, 3,
                     roles=SHORT), StudyConfig(task="ioi", model="toy",
                     dictionaries=str(tmp_path / "d1")))  # fmt: skip
        three = compared(a, b, third, chance=False, min_similarity=0.9)
        assert three.record.pairs[2].overlap is not None
        assert three.record.pairs[2].overlap.nodes.n_shared == 0

    def test_the_figure(self, tmp_path):
        found = compared(save(tmp_path / "a", short()), save(tmp_path / "b<b", long()))
        figure = overlap_figure(found.record, title="a <b> c")
        panels: Any = figure.data
        nodes, edges, in_all, in_some = panels
        assert list(nodes.z) == list(edges.z) == [[1.0, 0.75], [0.75, 1.0]]
        part = graph_of({(at(0), at(1, 5)): 1.0, (at(1, 5), OUT): 2.0}, 3, roles=SHORT)
        other = compared(save(tmp_path / "a", short()), save(tmp_path / "c", part))
        matrices: Any = overlap_figure(other.record, title="x").data[:2]
        assert [matrix.z[0][1] for matrix in matrices] == [2 / 3, 1 / 4]
        assert list(nodes.x) == ["a", "b&lt;b"]
        assert list(in_all.y) == ["input", "0", "1"]
        assert list(in_all.x) == ["s", "between s and end", "end"]
        assert list(in_all.z) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
        assert list(in_some.z) == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
        assert list(in_some.text) == [["", "", ""], ["", "", "1"], ["", "", ""]]
        assert in_all.zmax == in_some.zmax == 1
        assert figure.layout["title"]["text"] == "<b>a &lt;b&gt; c</b>"


STUDY = StudyConfig(task="greater-than", n_discovery=3, seed=4)


@pytest.fixture(scope="module")
def spliced() -> SplicedModel:
    return SplicedModel(load_model("tiny"), load_dictionaries("tiny"))


@pytest.fixture(scope="module")
def prompts(spliced) -> list[TaskPrompt]:
    """Those that the study draws."""
    return GreaterThanTask().prompts(spliced.model, 3, seed=5, aligned_group="two-digit")


@pytest.fixture(scope="module")
def studies(spliced, prompts, tmp_path_factory) -> list[str]:
    """Two circuits of features in use on the study's prompts: of layers 0 and 1, and 1 and 2."""
    folder = tmp_path_factory.mktemp("studies")
    places, n_pos = [], len(prompts[0].clean_tokens)
    found = active_nodes(spliced, prompts, range(n_pos))
    for name, layers in (("low", (0, 1)), ("high", (1, 2))):
        kept = [n for n in found if n.kind == "feature" and n.layer in layers and not n.feature % 7]
        edges = {(node, OUT): 1.0 for node in kept}
        graph = graph_of(edges, n_pos, roles=prompts[0].roles, model="tiny")
        places.append(save(folder / name, graph, STUDY))
    return places


def test_the_pool_is_what_traces_find(spliced, prompts, studies):
    """Every feature, error and unreplaced MLP that a trace of any of the prompts has, by role."""
    alignment = align(read_circuits(studies), "role")
    wanted = set()
    for prompt in prompts:
        trace = attribute(spliced, prompt.clean_tokens, GreaterThanTask().target(prompt))
        names = name_prompt("role", prompt.roles, len(prompt.clean_tokens))
        for node in trace.sources:
            if node.kind in ("feature", "error", "sublayer"):
                column = alignment.columns.index(names[node.pos])
                wanted.add(node.model_copy(update={"pos": column}).id)
    found = [node.id for node in study_pool(STUDY, None, spliced, alignment)]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    other = STUDY.model_copy(update={"seed": 9})
    assert wanted != {n.id for n in study_pool(other, "two-digit", spliced, alignment)}


def test_prompts_of_another_study_are_refused(spliced, tmp_path):
    alignment = align(
        read_circuits([save(tmp_path / "a", short()), save(tmp_path / "b", long())]), "role"
    )
    with pytest.raises(ValueError, match=r"is config\.json of the study that made graph\.json"):
        study_pool(STUDY, None, spliced, alignment)


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(reporting_errors(command))
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "220"})


def test_command_leaves_numbers_page_and_report(studies, tmp_path):
    done = run(*studies, "--out", str(tmp_path), "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert record == json.loads((tmp_path / "overlap.json").read_text())
    assert {p.name for p in tmp_path.iterdir()} == {
        *("config.json", "overlap.json", "overlap.html", "graph.json", "report.md")
    }
    (pair,) = record["pairs"]
    first, second = (CircuitGraph.load(f"{place}/graph.json") for place in studies)
    shared = {n.layer for n in first.nodes if n.kind == "feature"} & {
        n.layer for n in second.nodes if n.kind == "feature"
    }
    assert shared == {1}
    layers = pair["overlap"]["by_layer"]
    assert layers["1"]["n_a"] == layers["1"]["n_b"] == layers["1"]["n_shared"] > 0
    assert layers["0"]["n_shared"] == layers["2"]["n_shared"] == 0
    chance = pair["chance"]
    assert chance["n_shared"] == layers["1"]["n_shared"]
    assert 0 < chance["expected_shared"] < chance["n_shared"]
    assert chance["p_value"] < 1e-3
    assert chance["n_pool_a"] == chance["n_pool_b"] > pair["overlap"]["nodes"]["n_a"]
    page = (tmp_path / "overlap.html").read_text()
    assert not re.search(r"<(script|link)[^>]+(src|href)=.?https?:", page)
    text = (tmp_path / "report.md").read_text()
    cells = pair_cells(OverlapRecord.model_validate(record))
    assert {len(row) for row in cells} == {len(PAIR_COLUMNS)}
    named = dict(zip(PAIR_COLUMNS, cells[0], strict=True))
    assert named["features…"] == str(chance["n_shared"])
    assert named["equal signs"] == "100%"
    strict = pair["chance_per_position"]
    assert chance["expected_shared"] < strict["expected_shared"] < strict["n_shared"]
    assert f"| {chance['n_shared']} | {chance['expected_shared']:.1f} ±" in text
    assert f"| {strict['expected_shared']:.1f} ± {strict['spread']:.1f} |" in text
    assert json.loads((tmp_path / "config.json").read_text())["command"] == "overlap"
    assert CircuitGraph.load(tmp_path / "graph.json").metadata.notes["set"].startswith("inters")


def test_command_prints_a_table(studies):
    done = run(*studies, "--no-chance", "--positions", "any")
    assert done.exit_code == 0, done.output
    assert "low and high share" in done.stdout
    assert "low, high" in done.stdout


def test_command_refuses(studies, tmp_path):
    for arguments, message in [
        ([studies[0]], "at least two circuits"),
        ([*studies, "--min-similarity", "2"], "--min-similarity"),
        ([*studies, "--positions", "nowhere"], "nowhere"),
        ([studies[0], str(tmp_path / "none.json")], "none.json"),
    ]:
        done = run(*arguments)
        assert done.exit_code == 2, done.output
        assert message in done.stderr
