"""Text written with nodes changed, against texts written token by token by the spliced model."""

import pytest
import torch

from circuits import Intervention, SplicedModel
from graphs.interventions import ablate, continue_prompt, steer, swap
from tests.transcoder_places import spliced

PROMPT, OTHER = torch.arange(7), torch.tensor([30, 9, 42, 5, 5, 17, 3])


@pytest.fixture
def plain() -> SplicedModel:
    """GPT-2 with a transcoder in layer 1 alone."""
    return spliced("gpt2", "one")


def greedy(model: SplicedModel, tokens: torch.Tensor, n: int, changes: list[Intervention]):
    """The text written by `SplicedModel.run`, token by token."""
    text = tokens
    for _ in range(n):
        found = model.run(text[None], "exact", interventions=changes).logits[0, -1]
        text = torch.cat([text, found.argmax()[None]])
    return text[len(tokens) :].tolist()


def test_text_is_written_with_the_change_at_every_step(plain: SplicedModel) -> None:
    prompt, (write,) = PROMPT, plain.placements
    own = continue_prompt(plain, prompt, n_tokens=4).tolist()
    assert own == greedy(plain, prompt, 4, [])
    everywhere = continue_prompt(plain, prompt, [steer("mlp.1.3", "add", -30.0)], n_tokens=4)
    same = [Intervention(write, 3, "add", -30.0)]
    assert everywhere.tolist() == greedy(plain, prompt, 4, same) != own
    at_one = continue_prompt(plain, prompt, [steer("mlp1.3@6", "add", -30.0)], n_tokens=4)
    same = [Intervention(write, 3, "add", -30.0, [6])]
    assert at_one.tolist() == greedy(plain, prompt, 4, same)
    assert at_one.tolist() != everywhere.tolist()


def test_text_keeps_the_values_of_another_prompt(plain: SplicedModel) -> None:
    """All tokens swapped: the model writes what it writes after the other prompt."""
    found = continue_prompt(plain, PROMPT, [swap("token")], n_tokens=4, other=OTHER[None])
    assert found.tolist() == greedy(plain, OTHER, 4, [])
    assert found.tolist() != greedy(plain, PROMPT, 4, [])


def test_drawn_text_follows_its_seed_and_its_distribution(plain: SplicedModel) -> None:
    def draw(seed: int, temperature: float = 1.0, n: int = 3) -> list[int]:
        return continue_prompt(
            plain, PROMPT, n_tokens=n, temperature=temperature, seed=seed
        ).tolist()

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in range(5)}) > 1
    assert draw(3, temperature=1e-4) == greedy(plain, PROMPT, 3, [])
    p = plain.model.run(PROMPT[None])[0][0, -1].softmax(-1)
    for seed in range(4):
        u = float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
        (token,) = draw(seed, n=1)
        assert float(p[:token].sum()) <= u < float(p[: token + 1].sum())


def test_text_ends_with_the_token_that_ends_texts(plain: SplicedModel, monkeypatch) -> None:
    first, second, *_ = greedy(plain, PROMPT, 3, [])
    assert first != second
    monkeypatch.setattr(type(plain.model), "bos_token", second)
    found = continue_prompt(plain, PROMPT, n_tokens=9).tolist()
    assert found == [first, second]


def test_text_is_refused_where_it_does_not_fit(plain: SplicedModel) -> None:
    assert len(continue_prompt(plain, PROMPT, n_tokens=17)) == 17
    with pytest.raises(ValueError, match="want 1 to 17 tokens after a prompt of 7"):
        continue_prompt(plain, PROMPT, n_tokens=18)
    with pytest.raises(ValueError, match="got 0"):
        continue_prompt(plain, PROMPT, n_tokens=0)
    with pytest.raises(ValueError, match="temperature must not be negative"):
        continue_prompt(plain, PROMPT, temperature=-1.0)
    with pytest.raises(ValueError, match="positions 0 to 6"):
        continue_prompt(plain, PROMPT, [ablate("mlp1.3@7")], n_tokens=5)
