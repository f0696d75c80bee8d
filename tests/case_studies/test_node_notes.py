"""Labels of nodes say what the weights say, whatever norm stands behind the feature."""

import pytest

from attribution import Node, NodeTable, promoted_and_suppressed
from case_studies.node_notes import describe_nodes
from circuits import SplicedModel
from tests import models


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2"])
def test_notes_promote_what_direct_logit_attribution_does(architecture: str):
    spliced = SplicedModel(models.subject(architecture), {"mlp.1": models.transcoder()})
    features = range(0, models.N_FEATURES, 5)
    nodes = NodeTable(
        [Node(kind="feature", layer=1, site="mlp", pos=0, feature=f) for f in features]
    )
    notes = describe_nodes(spliced, nodes)
    for node in nodes:
        note = notes[node.id]
        up, down = promoted_and_suppressed(spliced, "mlp.1", node.feature, top=len(note.promoted))
        assert list(note.promoted) == [token for token, _ in up]
        assert list(note.suppressed) == [token for token, _ in down]


@pytest.mark.parametrize(
    ("first", "wanted"),
    [(" year", "year"), ("\x12", "two"), ("\ufffd", "two"), ("  ", "two")],
)
def test_labels_show_the_first_token_that_can_be_printed(
    monkeypatch: pytest.MonkeyPatch, first: str, wanted: str
):
    spliced = SplicedModel(models.subject("gpt2"), {"mlp.1": models.transcoder()})
    words = [first, " two", " three"]
    monkeypatch.setattr(
        type(spliced.model), "token_strings", lambda self, ids: tuple(words[: len(ids)])
    )
    node = Node(kind="feature", layer=1, site="mlp", pos=0, feature=3)
    note = describe_nodes(spliced, NodeTable([node]), top=3)[node.id]
    assert note.label.split(" ", 1)[1] == wanted
    assert note.promoted[0] == first
