"""Models taken apart into heads and MLPs: which ones, which not, and one block by hand."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from circuits import Site, SubjectModel, load_model
from graphs.heads import EdgeRunner
from graphs.heads.decomposed import Block, _unembed, decompose, normalise
from tests import models
from tests.graphs.heads_reference import pairs

D = torch.float64
GPT2: dict[str, Any] = {
    "vocab_size": models.D_VOCAB,
    "n_embd": models.D_MODEL,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 12,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GROUPED: dict[str, Any] = {
    "vocab_size": models.D_VOCAB,
    "hidden_size": models.D_MODEL,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
CONFIGS: dict[str, Any] = {
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED),
    "mistral": lambda: transformers.MistralConfig(sliding_window=2, **GROUPED),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt2_by_layer": lambda: transformers.GPT2Config(scale_attn_by_inverse_layer_idx=True, **GPT2),
}


def hf_model(name: str) -> Any:
    """A random model in float64, no gain at 1 and no bias at 0."""
    config = CONFIGS[name]()
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf: Any = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in hf.parameters():
                parameter.mul_(3.0)
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return hf.double().eval()


def subject(hf: Any) -> SubjectModel:
    return load_model(hf, models.word_tokenizer(), dtype=D)


@pytest.mark.parametrize("name", ["mistral", "gpt2_by_layer"])
def test_windows_and_scales_of_a_layer(name: str) -> None:
    """Heads that see two tokens; heads whose scores are divided by the layer's number."""
    model, (clean, corrupted) = subject(hf_model(name)), pairs()
    run = EdgeRunner.on_prompts(model, clean, corrupted)
    gap = 1e-5 if name == "mistral" else 1e-9  # transformers' RMS norms are float32
    assert (run.full_logits - model.run(clean)[0][:, -1]).abs().max() < gap
    allowed = run.parts.blocks[1].allowed
    assert allowed.sum(1).tolist() == ([1, 2, 2, 2, 2] if name == "mistral" else [1, 2, 3, 4, 5])


def test_norms_of_queries_and_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="normalises queries and keys; want one that does not"):
        decompose(subject(hf_model("qwen3")), pairs()[0])


def test_norms_behind_sublayers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"\(ln1_post\).*heads do not add up"):
        decompose(subject(hf_model("gemma3")), pairs()[0])


def test_a_model_of_other_logits_is_refused() -> None:
    """Its first block hands on something else than what its attention and MLP write."""
    hf = hf_model("gpt2")
    model, tokens = SubjectModel.from_transformers(hf, name="doubled"), pairs()[0]
    assert len(decompose(model, tokens).blocks) == 2

    def doubled(block: Any, inputs: Any, output: Any) -> Any:
        return (2 * output[0], *output[1:]) if isinstance(output, tuple) else 2 * output

    hf.transformer.h[0].register_forward_hook(doubled)
    with pytest.raises(ValueError, match=r"'doubled' .* other logits .*\(relative gap .*1e-05"):
        decompose(model, tokens)


def test_a_model_without_attention_scores_is_refused() -> None:
    model = subject(hf_model("gpt2"))
    model.score_sites = lambda layer: []
    with pytest.raises(ValueError, match="does not show its attention scores; load it eagerly"):
        decompose(model, pairs()[0])


def test_caps_of_logits() -> None:
    model = models.subject("gemma2", D)
    tokens, last = pairs()[0], Site("resid_post", model.n_layers - 1)
    logits, found = model.run(tokens, capture=[last])
    norm = model.norm("final")
    assert norm is not None
    rebuilt = _unembed(model, norm, model.norm_eps("final"), found[last][:, -1])
    assert model.logit_softcap == 9
    torch.testing.assert_close(rebuilt, logits[:, -1], rtol=1e-5, atol=1e-5)


def test_biases_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject(hf_model("gpt2"))
    parts, bias = decompose(model, pairs()[0]), torch.arange(models.D_VOCAB).double()
    stream = torch.randn(2, models.D_MODEL, generator=torch.Generator().manual_seed(0)).double()
    without = parts.unembed(stream)
    monkeypatch.setattr(SubjectModel, "b_U", property(lambda model: bias))
    torch.testing.assert_close(parts.unembed(stream), without + bias)


def test_bare_norms_by_hand() -> None:
    x = torch.tensor([[1.0, 3.0, 5.0]]).double()
    want = torch.tensor([[-2.0, 0.0, 2.0]]).double() / (8 / 3 + 0.5) ** 0.5
    torch.testing.assert_close(normalise(x, centred=True, eps=0.5), want)
    want = x / (35 / 3 + 0.5) ** 0.5
    torch.testing.assert_close(normalise(x, centred=False, eps=0.5), want)


def block(**changes: Any) -> Block:
    """One head of width 1 on a stream of width 3, over two positions; no rotation."""
    one = torch.ones(1, 1).double()
    none = torch.zeros(2, 0).double()
    settings: dict[str, Any] = {
        "W_in": torch.zeros(3, 3, 1).double(),
        "b_in": torch.zeros(3, 1).double(),
        "W_O": one.expand(1, 1, 3),
        "b_O": torch.zeros(3).double(),
        "allowed": torch.ones(2, 2, dtype=torch.bool).tril(),
        "cos": none,
        "sin": none,
        "score_scale": 1.0,
        "softcap": 0.0,
        "centred": True,
        "eps": 0.5,
        "mlp": torch.zeros_like,
    }
    return Block(**(settings | changes))


@pytest.mark.parametrize("centred", [True, False])
def test_the_denominator_is_what_a_norm_divides_by(centred: bool) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    one = block(centred=centred)
    middle = x - x.mean(-1, keepdim=True) if centred else x
    torch.testing.assert_close(one.normalise(x) * one.denominator(x), middle)


def attended(one: Block, q: list[float]) -> Tensor:
    """Keys 1 and 2, values 0 and 1: the weight on the second position, of each query."""
    k, v = torch.tensor([[1.0, 2.0], [0.0, 1.0]]).double().reshape(2, 1, 1, 2, 1)
    return one.attend(torch.tensor(q).double().reshape(1, 1, -1, 1), k, v)[0, 0, :, 0]


def sigmoid(x: float) -> float:
    return 1 / (1 + torch.tensor(-x).double().exp().item())


def test_attention_by_hand() -> None:
    """Scores q k: the second query's differ by q; the first sees itself alone."""
    assert attended(block(), [3.0, 0.7]).tolist() == pytest.approx([0.0, sigmoid(0.7)])
    assert attended(block(score_scale=0.5), [3.0, 0.7]).tolist() == pytest.approx(
        [0.0, sigmoid(0.35)]
    )
    assert attended(block(), [0.7]).tolist() == pytest.approx([sigmoid(0.7)])  # the last query
    cap = 2 * (torch.tensor([0.7, 1.4]).double() / 2).tanh()
    assert attended(block(softcap=2.0), [3.0, 0.7]).tolist() == pytest.approx(
        [0.0, sigmoid(float(cap[1] - cap[0]))]
    )
