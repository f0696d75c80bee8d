"""Interventions against the spliced model, direct edits, and closed forms."""

from collections.abc import Iterator

import pytest
import torch

from attribution import Node, NodeTable
from circuits import Intervention, SplicedModel
from circuits.sites import Site
from graphs.interventions import (
    ablate,
    find_nodes,
    intervene,
    parse_nodes,
    steer,
    swap,
)
from graphs.interventions.changes import Change, as_group
from graphs.interventions.compiling import OtherValues, compile_changes
from graphs.interventions.running import run_frozen, run_live
from tests import models
from tests.transcoder_places import norms_in_float64, spliced

TOKENS = torch.stack([models.TOKENS, models.TOKENS.flip(0)])
OTHER = torch.tensor([[3, 18, 5, 7, 42, 9, 31], [8, 9, 42, 6, 5, 17, 3]])
PLACES = [("gpt2", "each"), ("gpt2", "crossing_skip"), ("gpt2", "crossing_among_saes")]
PLACES += [("gemma2", "among_saes"), ("gemma2", "crossing"), ("neox_parallel", "behind")]
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def _norms() -> Iterator[None]:
    with norms_in_float64():
        yield


@pytest.fixture(params=PLACES, ids="-".join)
def model(request: pytest.FixtureRequest) -> SplicedModel:
    return spliced(*request.param)


@pytest.fixture
def plain() -> SplicedModel:
    """GPT-2 with a transcoder in layer 1 alone; layers 0 and 2 have their own MLPs."""
    return spliced("gpt2", "one")


def feature(model: SplicedModel, place: int, index: int, pos: int) -> Node:
    """A feature of the `place`-th dictionary."""
    write, placement = list(model.placements.items())[place]
    return Node(kind="feature", layer=write.layer, site=placement.site, pos=pos, feature=index)


def active(model: SplicedModel, place: int, pos: int) -> Node:
    """One that the first prompt uses at `pos`."""
    write = list(model.placements)[place]
    a = model.state(TOKENS).activations[write][0, pos]
    return feature(model, place, int(a.argmax()), pos)


def logits(model: SplicedModel, edits: dict) -> torch.Tensor:
    """Of the plain model, under direct edits."""
    return model.model.run(TOKENS, edits=edits)[0][:, -1]


def test_features_change_as_in_the_spliced_model(model: SplicedModel) -> None:
    last = len(model.placements) - 1
    nodes = [active(model, place, 2) for place in (0, last)]
    everywhere, held = feature(model, 0, 3, -1), active(model, last, 1)
    changes = [
        ablate(nodes[0]),
        steer(everywhere, "add", 0.7),
        steer(held, "set", 1.5),
        steer(feature(model, 0, 7, 4), "multiply", -2.0),
    ]
    first, final = (list(model.placements)[place] for place in (0, last))
    same = [
        Intervention(first, nodes[0].feature, "ablate", positions=[2]),
        Intervention(first, 3, "add", 0.7),
        Intervention(final, held.feature, "set", 1.5, [1]),
        Intervention(first, 7, "scale", -2.0, [4]),
    ]
    live = intervene(model, TOKENS, changes)
    wanted = model.run(TOKENS, "exact", interventions=same).logits[:, -1]
    torch.testing.assert_close(live.after, wanted, **TIGHT)
    assert (live.after - live.before).abs().max() > 1e-3
    frozen = intervene(model, TOKENS, changes, attention="frozen")
    wanted = model.run(TOKENS, "frozen", interventions=same).logits[:, -1]
    torch.testing.assert_close(frozen.after, wanted, **TIGHT)
    assert (frozen.after - live.after).abs().max() > 1e-6


def test_without_errors_the_model_runs_on_reconstructions(model: SplicedModel) -> None:
    """Errors of all dictionaries at all positions ablated: mode `replace`, which has none."""
    errors = [
        Node(kind="error", layer=write.layer, site=placement.site, pos=-1)
        for write, placement in model.placements.items()
    ]
    outcome = intervene(model, TOKENS, [ablate(errors)])
    wanted = model.run(TOKENS, "replace").logits[:, -1]
    torch.testing.assert_close(outcome.after, wanted, **TIGHT)


def test_no_change_is_the_model_itself(model: SplicedModel) -> None:
    state = model.state(TOKENS)
    torch.testing.assert_close(run_live(model, TOKENS, {}).logits, state.logits[:, -1], **TIGHT)
    frozen = run_frozen(model, state, TOKENS, {})
    torch.testing.assert_close(frozen.logits, state.logits[:, -1], **TIGHT)
    for site, a in frozen.activations.items():
        torch.testing.assert_close(a, state.activations[site], **TIGHT)


def test_all_tokens_swapped_is_the_other_prompt(model: SplicedModel) -> None:
    outcome = intervene(model, TOKENS, [swap("token")], other=OTHER)
    wanted = model.model.run(OTHER)[0][:, -1]
    torch.testing.assert_close(outcome.after, wanted, **TIGHT)
    torch.testing.assert_close(outcome.before, model.model.run(TOKENS)[0][:, -1], **TIGHT)


def test_an_error_takes_its_other_value(model: SplicedModel) -> None:
    """The highest one alone, also where features of dictionaries below write beside it."""
    write, placement = list(model.placements.items())[-1]
    gap = model.state(OTHER).errors[write][:, 3] - model.state(TOKENS).errors[write][:, 3]

    def edit(y: torch.Tensor) -> torch.Tensor:
        y = y.clone()
        y[:, 3] += gap
        return y

    name = f"error.{placement.site}{write.layer}@3"
    outcome = intervene(model, TOKENS, [ablate(name, "corrupted")], other=OTHER)
    torch.testing.assert_close(outcome.after, logits(model, {write: edit}), **TIGHT)
    assert float(gap.abs().max()) > 1e-6


@pytest.mark.parametrize("value", ["zero", "mean", "corrupted"])
def test_unreplaced_mlps_and_tokens_take_their_value(plain: SplicedModel, value: str) -> None:
    state = plain.state(OTHER)
    mlp, embed = Site("mlp_raw_out", 0), Site("embed")

    def other(site: Site) -> torch.Tensor:
        found = state.values[site][:, 3]
        match value:
            case "zero":
                return torch.zeros_like(found)
            case "mean":
                return found.mean(0, keepdim=True)
        return found

    def edit(site: Site):
        def change(y: torch.Tensor) -> torch.Tensor:
            y = y.clone()
            y[:, 3] = other(site)
            return y

        return change

    given = None if value == "zero" else OTHER
    for name, site in (("sublayer.mlp0@3", mlp), ("token@3", embed)):
        outcome = intervene(plain, TOKENS, [ablate(name, value)], other=given)  # type: ignore[arg-type]
        torch.testing.assert_close(outcome.after, logits(plain, {site: edit(site)}), **TIGHT)
        assert (outcome.after - outcome.before).abs().max() > 1e-3


def test_a_mean_is_over_other_prompts_however_many(plain: SplicedModel) -> None:
    node, (write,) = active(plain, 0, 2), plain.placements
    three = torch.cat([OTHER, TOKENS[:1]])
    outcome = intervene(plain, TOKENS, [ablate(node, "mean")], other=three)
    mean = plain.state(three).activations[write][:, 2, node.feature].mean()
    assert outcome.activations_after[write][:, 2, node.feature].tolist() == pytest.approx(
        [float(mean)] * 2
    )


def test_each_prompt_takes_the_value_of_its_own_counterpart(plain: SplicedModel) -> None:
    node, (write,) = feature(plain, 0, 0, -1), plain.placements
    outcome = intervene(plain, TOKENS, [swap(node)], other=OTHER)
    wanted = plain.state(OTHER).activations[write][:, :, 0]
    torch.testing.assert_close(outcome.activations_after[write][:, :, 0], wanted, **TIGHT)
    assert not torch.equal(wanted[0], wanted[1])


def test_a_multiplied_vector(plain: SplicedModel) -> None:
    mlp = Site("mlp_raw_out", 2)
    outcome = intervene(plain, TOKENS, [steer("sublayer.mlp2", "multiply", 3.0)])
    torch.testing.assert_close(outcome.after, logits(plain, {mlp: lambda y: 3 * y}), **TIGHT)
    frozen = intervene(plain, TOKENS, [steer("sublayer.mlp0", "multiply", 1.0)], attention="frozen")
    torch.testing.assert_close(frozen.after, frozen.before, **TIGHT)


def test_partners_trade_the_values_of_this_prompt() -> None:
    """Also where one lies above the other: neither gets what the trade made of it."""
    model = spliced("gpt2", "each")
    low, high = active(model, 0, 2), active(model, 2, 5)
    sites = list(model.placements)
    clean = model.state(TOKENS).activations
    outcome = intervene(model, TOKENS, [swap(low, high)])
    low_after = outcome.activations_after[sites[0]][:, 2, low.feature]
    high_after = outcome.activations_after[sites[2]][:, 5, high.feature]
    torch.testing.assert_close(low_after, clean[sites[2]][:, 5, high.feature], **TIGHT)
    torch.testing.assert_close(high_after, clean[sites[0]][:, 2, low.feature], **TIGHT)
    assert float(low_after[0]) != float(high_after[0])


def test_tokens_trade_places(plain: SplicedModel) -> None:
    traded = TOKENS.clone()
    traded[:, [1, 4]] = TOKENS[:, [4, 1]]
    outcome = intervene(plain, TOKENS, [swap("token@1", "token@4")])
    torch.testing.assert_close(outcome.after, plain.model.run(traded)[0][:, -1], **TIGHT)


def test_measures_of_an_outcome(plain: SplicedModel) -> None:
    change = [steer("mlp.1.0", "set", 4.0)]
    outcome = intervene(plain, TOKENS, change)
    p, q = outcome.before.log_softmax(-1), outcome.after.log_softmax(-1)
    torch.testing.assert_close(outcome.kl, (p.exp() * (p - q)).sum(-1), **TIGHT)
    likeliest = p.argmax(-1)
    for found, log_p in ((outcome.metric_before, p), (outcome.metric_after, q)):
        torch.testing.assert_close(found, log_p[[0, 1], likeliest], **TIGHT)
    ids, probabilities = outcome.top_after(3)
    assert ids[0].tolist() == q[0].argsort(descending=True)[:3].tolist()
    torch.testing.assert_close(probabilities, q.exp().gather(1, ids), **TIGHT)
    assert outcome.top_before(1)[0][:, 0].tolist() == likeliest.tolist()
    own = intervene(plain, TOKENS, change, metric=lambda x: x[:, 5] - x[:, 9])
    wanted = (outcome.after - outcome.before)[:, 5] - (outcome.after - outcome.before)[:, 9]
    torch.testing.assert_close(own.effect, wanted, **TIGHT)
    with pytest.raises(ValueError, match="k must be from 1 to 50"):
        outcome.top_before(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "nothing to change"),
        ([ablate("mlp1.16@2")], "has features 0 to 15, got 16"),
        ([ablate("mlp0.3@2")], "no dictionary at 'mlp.0'"),
        ([ablate("mlp1.3@7")], "mlp1.3@7 is at position 7, .* positions 0 to 6"),
        ([ablate("mlp1.3@2,mlp1.3@2")], "once, but mlp1.3@2 is named twice"),
        ([ablate("mlp1.3@2"), steer("mlp.1.3", "add", 1.0)], "mlp1.3 is also in mlp1.3@2"),
        ([swap("mlp1.3@2", "mlp1.3@2")], "mlp1.3@2 is named twice"),
        ([ablate("error.mlp1"), ablate("error.mlp1@3")], "error.mlp1@3 is also in error.mlp1"),
        ([ablate("sublayer.mlp1@2")], "no MLP without a dictionary .* there are mlp0, mlp2"),
        ([ablate("error.mlp2@2")], "no dictionary at 'mlp.2'"),
        ([ablate("token@1", "mean")], "mean values come from other prompts"),
        ([swap("mlp1.3@2")], "corrupted values come from other prompts"),
    ],
)
def test_changes_that_cannot_be_made(
    plain: SplicedModel, changes: list[Change], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        intervene(plain, TOKENS, changes)


@pytest.mark.parametrize("kind", ["position", "bias", "output"])
def test_constants_and_outputs_cannot_be_changed(plain: SplicedModel, kind: str) -> None:
    node = Node(kind=kind, layer=0, site="mlp", pos=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"is a {kind}; features, errors"):
        intervene(plain, TOKENS, [ablate(node)])


def test_other_prompts_must_line_up(plain: SplicedModel) -> None:
    for other in (OTHER[:, :5], OTHER[:1]):
        with pytest.raises(ValueError, match="must line up with these token by token"):
            intervene(plain, TOKENS, [swap("token@1")], other=other)
    with pytest.raises(ValueError, match="must line up"):
        intervene(plain, TOKENS, [ablate("token@1", "mean")], other=OTHER[:, :5])


def test_changes_that_make_no_sense() -> None:
    for how in ("add", "set"):
        with pytest.raises(ValueError, match=f"not steered by '{how}'"):
            steer("error.mlp1@2", how, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one partner a node, got 2 nodes and 1"):
        swap(["mlp1.3@2", "mlp1.4@2"], "mlp1.5@2")
    with pytest.raises(ValueError, match="cannot trade values"):
        swap("mlp1.3@2", "token@2")
    with pytest.raises(ValueError, match="cannot trade values"):
        swap("mlp1.3@2", "mlp.1.4")
    with pytest.raises(ValueError, match="at least one node"):
        ablate([])


def test_rows_are_changed_alike_and_only_where_asked(plain: SplicedModel) -> None:
    """The compiled map of one added number: two rows, one position, one index."""
    maps = compile_changes(plain, [steer("mlp1.3@2", "add", 0.5)], 2, 7, OtherValues())
    ((kind, site), change), *rest = maps.items()
    assert (kind, site, rest) == ("feature", Site("mlp_raw_out", 1), [])
    moved = change(torch.zeros(2, 7, 16, dtype=torch.float64))
    assert moved.nonzero().tolist() == [[0, 2, 3], [1, 2, 3]]
    assert moved[0, 2, 3] == 0.5


def test_names_of_nodes() -> None:
    def read(text: str) -> list[tuple]:
        return [(n.kind, n.site, n.layer, n.feature, n.pos) for n in parse_nodes(text)]

    assert read("mlp2.345@8") == read("mlp.2.345@8") == [("feature", "mlp", 2, 345, 8)]
    assert read("resid_post.0.7") == [("feature", "resid_post", 0, 7, -1)]
    assert read("mlp_out1.7") == [("feature", "mlp_out", 1, 7, -1)]
    assert read("error.attn_out1@0, sublayer.mlp3") == [
        ("error", "attn_out", 1, -1, 0),
        ("sublayer", "mlp", 3, -1, -1),
    ]
    assert read("token@4,token") == [("token", "embed", -1, -1, 4), ("token", "embed", -1, -1, -1)]
    for bad in ("mlp2", "mlp2.3@-1", "position@3", "error.mlp", "L2.F17", "", "mlp2.3@"):
        with pytest.raises(ValueError, match="no node that can be changed is called"):
            parse_nodes(bad)


@pytest.mark.parametrize(
    "node",
    [
        Node(kind="feature", layer=1, site="resid_pre", pos=3, feature=9),
        Node(kind="error", layer=0, site="mlp_out", pos=0),
        Node(kind="sublayer", layer=11, site="mlp", pos=12),
        Node(kind="token", layer=-1, site="embed", pos=5),
    ],
    ids=lambda node: node.kind,
)
def test_an_id_reads_back_as_its_node(node: Node) -> None:
    assert parse_nodes(node.id) == (node,)
    assert as_group([node, node.id]) == (node, node)


def test_names_find_the_nodes_of_a_table() -> None:
    def of(feature: int, pos: int) -> Node:
        return Node(kind="feature", layer=1, site="mlp", pos=pos, feature=feature, activation=2.0)

    token = Node(kind="token", layer=-1, site="embed", pos=2, feature=77)
    table = NodeTable([of(3, 1), of(4, 2), of(3, 2), token])
    assert [n.id for n in find_nodes(table, "mlp.1.3")] == ["mlp1.3@1", "mlp1.3@2"]
    assert find_nodes(table, "mlp1.4@2,token@2") == (of(4, 2), token)
    with pytest.raises(ValueError, match=r"none of the graph's 4 nodes is called 'mlp1.4@1'.*mlp1"):
        find_nodes(table, "mlp1.4@1")
    with pytest.raises(ValueError, match=r"is called 'error\.mlp1'"):
        find_nodes(table, "error.mlp1")
