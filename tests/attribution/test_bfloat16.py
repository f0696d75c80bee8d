"""Models in bfloat16: weights and values are rounded, sums are not."""

import pytest
import torch

from attribution import LogitDifference, attribute
from circuits import SplicedModel, load_dictionaries, load_model
from tests import models

PROMPT = "The war lasted from the year 1732 to the year 17"


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_rows_add_up_to_the_rounding_of_the_model(architecture: str):
    model = load_model(models.hf_model(architecture), models.word_tokenizer(), dtype=torch.bfloat16)
    trace = attribute(SplicedModel(model, models.MIXTURES["mixed"]), models.TOKENS)
    assert trace.edges.dtype == torch.float32
    assert trace.conservation_error() < 0.05  # one part in 256 is lost at every sum of the stream


def test_edges_are_those_of_float32_up_to_rounding():
    dictionaries = load_dictionaries("tiny")
    whole, half = (
        attribute(
            SplicedModel(load_model("tiny", dtype=dtype), dictionaries),
            PROMPT,
            LogitDifference("45", "20"),
        )
        for dtype in (torch.float32, torch.bfloat16)
    )
    # A feature near its threshold may switch; errors then take over what it carried.
    explained, shared = ({node.id for node in table} for table in (half.targets, half.sources))
    rows = [n.id for n in whole.targets if n.id in explained]
    columns = [n.id for n in whole.sources if n.id in shared and n.kind != "error"]
    assert len(rows) > 0.95 * len(whole.targets)
    one, other = (
        trace.edges[[trace.targets.row(i) for i in rows]][
            :, [trace.sources.row(i) for i in columns]
        ]
        for trace in (whole, half)
    )
    assert (one - other).abs().max() < 0.01 * one.abs().max()
    assert not torch.equal(one, other)
