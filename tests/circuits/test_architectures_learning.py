"""Every architecture learns, holds its L0, and becomes a dictionary that does what it did."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from circuits.activations import jumprelu
from circuits.dictionaries import SAE, Transcoder
from circuits.training.architectures import architecture_of
from circuits.training.architectures.batchtopk import BatchTopK
from circuits.training.architectures.matryoshka import Matryoshka
from circuits.training.architectures.penalties import Penalty
from circuits.training.config import ArchitectureName, DictionaryConfig, PenaltyName
from circuits.training.initial import fire_at_rate
from circuits.training.learner import Learner
from circuits.training.step import Moment
from tests.circuits.training_problems import NO_DEAD, learn, moment, problem, sparse_data

EVERY: list[ArchitectureName] = [
    "relu",
    "tied",
    "gated",
    "topk",
    "batchtopk",
    "matryoshka",
    "jumprelu",
]
KINDS = ("sae", "transcoder", "skip")


def _raw(seed: int, n: int = 600) -> tuple[Tensor, Tensor]:
    """Inputs and targets far from scaled: means of 3 and -2, deviations of up to 5 and 0.2."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator) * torch.linspace(0.5, 5, 8) + 3
    y = 0.05 * F.relu(x @ torch.randn(8, 6, generator=generator)) - 2
    return x, y


def test_a_gated_decoder_does_not_shrink_while_magnitudes_make_up_for_it() -> None:
    x, _ = sparse_data(4096, 16, 32, 2.0)
    config = DictionaryConfig(
        architecture="gated", n_features=64, k=4, batch_size=256, n_tokens=256 * 400, lr=2e-2
    )
    learner, _ = learn(config, "resid_post", x, x)
    assert learner.parameters["W_dec"].norm(dim=1).mean() > 0.5


@pytest.mark.parametrize(
    ("name", "kind", "unit"),
    [
        ("tied", "sae", False),
        *((name, kind, False) for name in EVERY if name != "tied" for kind in KINDS),
        *((name, kind, True) for name in ("relu", "gated") for kind in KINDS),
    ],
)
def test_the_dictionary_does_on_raw_data_what_the_step_did_on_scaled_data(
    name: ArchitectureName, kind: str, unit: bool
) -> None:
    config = DictionaryConfig(
        architecture=name,
        n_features=24,
        k=3,
        skip=kind == "skip",
        unit_decoder=unit,
        batch_size=300,
        n_tokens=300 * 50,
        lr=1e-2,
    )
    x, y = _raw(0)
    site = "resid_post" if kind == "sae" else "mlp"
    y = x if kind == "sae" else y
    learner, _ = learn(config, site, x, y, n_steps=30)
    few, wanted = x[:300], y[:300]
    if name in ("batchtopk", "matryoshka"):  # a threshold between the batch's last in and first out
        z = learner.dictionary().pre_activations(few).flatten().sort(descending=True).values
        learner.memory["threshold"] = (z[3 * 300 - 1] + z[3 * 300]).double() / 2
    dictionary = learner.dictionary()
    assert isinstance(dictionary, SAE if kind == "sae" else Transcoder)
    assert (dictionary.W_skip is not None) == (kind == "skip")
    a = dictionary.encode(few)
    error = (dictionary(few) - wanted) * learner.scaling.y_scale
    with torch.no_grad():
        step = learner.learn(few, wanted, 30)
    assert step.loss == pytest.approx(error.square().mean().item(), rel=2e-4)
    assert step.l0 == pytest.approx((a > 0).sum().item() / 300, abs=0.01)
    assert 0.5 < step.l0 < 12


def test_a_gated_dictionary_becomes_exactly_a_jumprelu_one() -> None:
    p, x, _ = problem(0, skip=False)
    generator = torch.Generator().manual_seed(1)
    p["b_mag"] = torch.randn(20, generator=generator, dtype=torch.float64)
    p["r"] = torch.randn(20, generator=generator, dtype=torch.float64)
    read = x @ p["W_enc"].T
    wanted = (read + p["b_enc"] > 0) * (read * p["r"].exp() + p["b_mag"]).relu()
    gated = architecture_of(DictionaryConfig(architecture="gated", n_features=20, k=3), 4)
    finished = gated.finish(p, {})
    assert finished.parameters.keys() == {"W_enc", "W_dec", "b_enc", "b_dec"}
    assert finished.threshold is not None
    assert 4 < (finished.threshold == 0).sum() < 16
    z = x @ finished.parameters["W_enc"].T + finished.parameters["b_enc"]
    torch.testing.assert_close(jumprelu(z, finished.threshold), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "most_missed", "least_found"),
    [
        ("relu", 0.35, 0.9),  # L1 shrinks
        ("tied", 0.22, 0.8),
        ("gated", 0.22, 0.85),
        ("topk", 0.1, 0.9),
        ("batchtopk", 0.1, 0.9),
        ("matryoshka", 0.1, 0.0),  # its first features have to be mixtures
        ("jumprelu", 0.1, 0.9),
    ],
)
def test_every_architecture_recovers_a_sparse_dictionary(
    name: ArchitectureName, most_missed: float, least_found: float
) -> None:
    """32 directions of 16 dimensions, about two at a time, in 500 steps."""
    x, atoms = sparse_data(4096, 16, 32, 2.0)
    config = DictionaryConfig(
        architecture=name,
        n_features=64,
        k=4,
        batch_size=512,
        n_tokens=512 * 500,
        lr=1e-2,
        dead_after_tokens=5000,
    )
    learner, steps = learn(config, "resid_post", x, x)
    fvu = sum(step.loss for step in steps[-20:]) / 20
    assert fvu < most_missed
    decoder = F.normalize(learner.dictionary().W_dec, dim=1)
    best = (decoder @ atoms.T).amax(0)
    assert (best > 0.9).float().mean() >= least_found
    assert steps[-1].l0 == pytest.approx(4, abs=0.5)


@pytest.mark.parametrize(
    ("name", "penalty"),
    [("relu", "l1"), ("relu", "l0"), ("gated", "l1"), ("jumprelu", "l1"), ("jumprelu", "l0")],
)
def test_an_adapted_penalty_brings_l0_to_k_and_holds_it(
    name: ArchitectureName, penalty: PenaltyName
) -> None:
    x, _ = sparse_data(4096, 32, 64, 10.0)
    config = DictionaryConfig(
        architecture=name,
        penalty=penalty,
        n_features=128,
        k=6,
        batch_size=512,
        n_tokens=512 * 500,
        lr=3e-3,
    )
    _, steps = learn(config, "resid_post", x, x)
    l0 = torch.tensor([step.l0 for step in steps])
    assert l0[0] > 18
    last = l0[-len(l0) // 3 :]
    assert last.mean().item() == pytest.approx(6, rel=0.1)
    assert last.min() > 4.5
    assert last.max() < 8
    assert l0.min() > 4  # nor does it fall far below k on the way


def test_an_adapted_weight_grows_above_k_and_shrinks_below() -> None:
    p, x, y = problem(0, skip=False)
    architecture = architecture_of(DictionaryConfig(architecture="relu", k=3, n_features=20), 4)
    memory: dict[str, Tensor] = {}
    architecture.begin(p, memory, x)
    start = memory["penalty"].item()
    for shift, grows in ((5.0, True), (-5.0, False)):
        memory["penalty"].fill_(start)
        architecture.step(p | {"b_enc": p["b_enc"] + shift}, memory, x, y, moment())
        assert (memory["penalty"].item() > start) is grows
    with_others = Moment(dead=NO_DEAD, mean=lambda l0: torch.full_like(l0, 3.0))
    memory["penalty"].fill_(start)
    architecture.step(p | {"b_enc": p["b_enc"] + 5}, memory, x, y, with_others)
    assert memory["penalty"].item() == start, "L0 is that of all processes"


def test_an_adapted_weight_has_a_bound() -> None:
    penalty, memory = Penalty("l1", 4.0, None), {}
    penalty.begin(memory)
    p, x, y = problem(0, skip=False)
    architecture = architecture_of(DictionaryConfig(architecture="relu", k=1, n_features=20), 4)
    architecture.begin(p, memory, x)
    p["b_enc"] += 5
    for _ in range(400):
        architecture.step(p, memory, x, y, moment())
    assert memory["penalty"].item() == pytest.approx(10)


def test_a_noisy_off_state_makes_relu_fire_falsely_and_err_and_jumprelu_neither() -> None:
    """One feature, on at 1 to 2 with probability 0.3, else noise around 0 (B7)."""
    generator = torch.Generator().manual_seed(0)
    on = torch.rand(8192, 1, generator=generator) < 0.3
    value = torch.rand(8192, 1, generator=generator) + 1
    y = torch.where(on, value, 0.0)
    x = torch.where(on, value, 0.25 * torch.randn(8192, 1, generator=generator).clamp(-3.2, 3.2))
    quality = {}
    for name, penalty in (("relu", "l1"), ("jumprelu", "l0")):
        config = DictionaryConfig(
            architecture=name,  # type: ignore[arg-type]
            penalty=penalty,  # type: ignore[arg-type]
            penalty_weight=0.02,
            n_features=1,
            k=1,
            batch_size=1024,
            n_tokens=1024 * 600,
            lr=1e-2,
        )
        learner, _ = learn(config, "mlp", x, y)
        dictionary = learner.dictionary()
        false = (dictionary.encode(x)[~on] > 0).float().mean().item()
        quality[name] = false, (dictionary(x) - y)[on].abs().max().item()
    assert quality["relu"][0] > 0.03
    assert quality["relu"][1] > 0.1
    assert quality["jumprelu"][0] < 0.002
    assert quality["jumprelu"][1] < 0.03


def test_dictionaries_start_with_the_wanted_firing_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 8, generator=generator)
    p = {"W_enc": torch.randn(3000, 8, generator=generator)}
    fire_at_rate(p, x, rate=0.05, threshold=0.3)
    rates = (x @ p["W_enc"].T + p["b_enc"] > 0.3).float().mean(0)
    torch.testing.assert_close(rates, torch.full((3000,), 0.05), atol=2e-3, rtol=0.0)


@pytest.mark.parametrize("name", ["relu", "gated"])
def test_a_unit_decoder_starts_and_stays_at_norm_1(name: ArchitectureName) -> None:
    x, y = _raw(1)
    config = DictionaryConfig(
        architecture=name, unit_decoder=True, n_features=24, k=3, batch_size=100, n_tokens=10_000
    )
    learner = Learner.start(config, "mlp", x, y, seed=3)
    first = learner.parameters["W_dec"].clone()
    torch.testing.assert_close(first.norm(dim=1), torch.ones(24))
    assert (first @ first.T - torch.eye(24)).abs().max() < 0.99
    again = Learner.start(config, "mlp", x, y, seed=3).parameters["W_dec"]
    other = Learner.start(config, "mlp", x, y, seed=4).parameters["W_dec"]
    assert torch.equal(again, first)
    assert not torch.equal(other, first)
    learner, _ = learn(config, "mlp", x, y, n_steps=5)
    torch.testing.assert_close(learner.parameters["W_dec"].norm(dim=1), torch.ones(24))
    tied = Learner.start(config, "resid_post", x, x, seed=3)
    assert torch.equal(tied.parameters["W_dec"], tied.parameters["W_enc"])


@pytest.mark.parametrize("name", EVERY)
def test_a_learner_goes_on_from_its_state_as_if_never_stopped(name: ArchitectureName) -> None:
    x, _ = sparse_data(1024, 8, 16, 2.0)
    config = DictionaryConfig(
        architecture=name, penalty=None, n_features=24, k=2, batch_size=256, n_tokens=256 * 40
    )
    learner, _ = learn(config, "resid_post", x, x, n_steps=6)
    saved = {key: tensor.clone() for key, tensor in learner.state().items()}
    resumed = Learner.from_state(config, "resid_post", saved)
    with torch.no_grad():
        for step in range(6, 10):
            learner.learn(x[:256], x[:256], step)
            resumed.learn(x[:256], x[:256], step)
    for key, tensor in learner.state().items():
        assert torch.equal(tensor, resumed.state()[key]), key


def test_what_cannot_be_is_refused() -> None:
    x, y = _raw(2)
    tied = DictionaryConfig(architecture="tied", n_features=24, k=3)
    with pytest.raises(ValueError, match=r"tied.*SAE.*got a transcoder.*site other than mlp"):
        Learner.start(tied, "mlp", x, y, seed=0)
    with pytest.raises(ValueError, match="gated dictionaries take the penalty l1, got l0"):
        architecture_of(DictionaryConfig(architecture="gated", penalty="l0"), 4)
    with pytest.raises(ValueError, match=r"unit_decoder is for relu and gated, got.*'topk'"):
        architecture_of(DictionaryConfig(architecture="topk", unit_decoder=True), 4)
    with pytest.raises(ValueError, match="l0_target holds L0 by itself; give it a weight"):
        Penalty("l0_target", 3.0, None)


def test_settings_reach_the_architecture() -> None:
    config = DictionaryConfig(architecture="matryoshka", k=5, aux_k=7, group_shares=(0.5, 0.5))
    made = architecture_of(config, 16)
    assert isinstance(made, Matryoshka)
    assert made.group_shares == (0.5, 0.5)
    assert (made.whole.k, made.whole.aux.k, made.whole.aux.coefficient) == (5, 7, 1 / 32)
    default = architecture_of(DictionaryConfig(architecture="batchtopk"), 16)
    assert isinstance(default, BatchTopK)
    assert default.aux.k == 8
