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
