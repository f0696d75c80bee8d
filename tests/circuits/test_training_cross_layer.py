"""Training of cross-layer transcoders: gradients, folding, the run from text to files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from circuits.activations import topk
from circuits.checkpoints import load_folder
from circuits.dictionaries import CrossLayerTranscoder, Dictionary, Transcoder
from circuits.training import TrainingConfig, entries, one_pass, train, train_many
from circuits.training.architectures.auxk import AuxK
from circuits.training.architectures.base import FeatureRule
from circuits.training.architectures.cross_layer import (
    CrossLayer,
    cross_layer_error,
    pack,
    unpack,
)
from circuits.training.architectures.jumprelu import JumpReLU
from circuits.training.architectures.penalties import Penalty, PenaltyKind
from circuits.training.architectures.topk import TopK
from circuits.training.checkpoint import read_checkpoint
from circuits.training.config import DictionaryConfig
from circuits.training.cross_layer import CrossLayerLearner
from circuits.training.learner import Learner
from circuits.training.places import dictionary_names, keys_of
from circuits.training.plan import plan_training
from circuits.training.step import Moment, Step
from tests.circuits.training_models import random_rows, small_gpt2
from tests.circuits.training_problems import rectangle

Parts = list[dict[str, Tensor]]
L, D, F, N = 3, 4, 10, 40
K, WEIGHT, WIDTH = 3.0, 0.7, 0.3
DEAD = torch.tensor([1, 4, 10, 19, 20, 21, 22, 29])
NO_DEAD = torch.tensor([], dtype=torch.long)

both_paths = pytest.mark.parametrize("share", [0.0, 2.0], ids=["dense", "sparse"])
both_skips = pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])


def _problem(seed: int, *, skip: bool = False, n_layers: int = L) -> tuple[Parts, Tensor, Tensor]:
    """Parameters of each layer, inputs and targets in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parts = []
    for layer in range(n_layers):
        part = {
            "W_enc": normal(F, D),
            "W_dec": normal(F, (n_layers - layer) * D),
            "b_enc": normal(F),
            "b_dec": normal(D),
        }
        parts.append(part | ({"W_skip": normal(D, D)} if skip else {}))
    return parts, normal(N, n_layers * D), normal(N, n_layers * D)


def _error(parts: Parts, x: Tensor, activations: list[Tensor], y: Tensor) -> Tensor:
    """`y_hat - y` of every layer, by the formula: [token, layer, d]."""
    xs = x.view(N, -1, D)
    layers = []
    for m, part in enumerate(parts):
        y_hat = part["b_dec"].expand(N, D)
        if "W_skip" in part:
            y_hat = y_hat + xs[:, m] @ part["W_skip"]
        for below in range(m + 1):
            W_dec = parts[below]["W_dec"].view(F, -1, D)
            y_hat = y_hat + activations[below] @ W_dec[:, m - below]
        layers.append(y_hat)
    return torch.stack(layers, 1) - y.view(N, -1, D)


def _leaves(parts: Parts) -> Parts:
    return [{name: t.clone().requires_grad_() for name, t in part.items()} for part in parts]


def _pre(q: dict[str, Tensor], x: Tensor, layer: int) -> Tensor:
    return x.view(N, -1, D)[:, layer] @ q["W_enc"].T + q["b_enc"]


def _squared(error: Tensor) -> Tensor:
    return error.flatten(1).square().sum(1).mean()


def _check(step: Step, leaves: Parts, loss: Tensor, error: Tensor, a: list[Tensor]) -> None:
    loss.backward()
    wanted = pack([{n: t.grad for n, t in part.items() if t.grad is not None} for part in leaves])
    assert step.gradients.keys() == wanted.keys() == leaves[0].keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            step.gradients[name],
            gradient,
            rtol=1e-10,
            atol=1e-12,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    assert step.loss == pytest.approx(error.square().mean().item(), rel=1e-12)
    assert step.l0 == pytest.approx(sum((x > 0).sum().item() for x in a) / N / len(a))
    assert torch.equal(step.fired, torch.cat([(x > 0).any(0) for x in a]))


@both_skips
@pytest.mark.parametrize("dead", [NO_DEAD, DEAD], ids=["alive", "dead"])
def test_topk_gradients(skip: bool, dead: Tensor) -> None:
    parts, x, y = _problem(0, skip=skip)
    aux_k, coefficient = 2, 0.5
    whole = CrossLayer(TopK(3, AuxK(aux_k, coefficient)))
    step = whole.step(pack(parts), {}, x, y, Moment(dead))
    q = _leaves(parts)
    z = [_pre(part, x, i) for i, part in enumerate(q)]
    a = [topk(each, 3) for each in z]
    error = _error(q, x, a, y)
    loss = _squared(error)
    for i, part in enumerate(q):
        own = dead[dead // F == i] % F
        if len(own):
            few = z[i][:, own].topk(min(aux_k, len(own)), dim=1)
            revived = torch.zeros_like(z[i][:, own]).scatter(1, few.indices, few.values.relu())
            missed = error[:, i:].detach().flatten(1)
            weight = coefficient * min(len(own) / aux_k, 1)
            loss = loss + weight * _squared(revived @ part["W_dec"][own] + missed)
    _check(step, q, loss, error, a)


@both_skips
@both_paths
@pytest.mark.parametrize("kind", ["l0_target", "l0", "l1"])
def test_jumprelu_gradients(
    kind: PenaltyKind, share: float, skip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Straight-through parts are written as terms of value 0 with the wanted gradient."""
    monkeypatch.setitem(entries.DENSE_SHARE, "cpu", share)
    parts, x, y = _problem(1, skip=skip)
    generator = torch.Generator().manual_seed(2)
    for part in parts:
        part["threshold"] = 0.2 + torch.rand(F, generator=generator, dtype=torch.float64)
    rule = JumpReLU(Penalty(kind, K, WEIGHT), WIDTH, 0.1)
    step = CrossLayer(rule).step(pack(parts), {}, x, y, Moment(NO_DEAD, ramp=0.5))
    q = _leaves(parts)
    a, l0 = [], []
    for i, part in enumerate(q):
        z, t = _pre(part, x, i), part["threshold"]
        held = t.detach()
        gate = (z > held).double()
        through = -rectangle((z.detach() - held) / WIDTH) / WIDTH * (t - held)
        a.append(z * gate + held * through)
        l0.append((gate + through).sum(1).mean())
    error = _error(q, x, a, y)
    loss = _squared(error)
    for i, part in enumerate(q):
        width = (L - i) * D
        loss = (
            loss
            + 0.5
            * WEIGHT
            * {
                "l0_target": width * (l0[i] / K - 1) ** 2,
                "l0": width * l0[i],
                "l1": width**0.5 * (a[i] * part["W_dec"].norm(dim=1)).sum(1).mean(),
            }[kind]
        )
    _check(step, q, loss, error, a)


def test_every_layer_adapts_a_weight_of_its_own() -> None:
    parts, x, y = _problem(5)
    for i, part in enumerate(parts):
        part["threshold"] = torch.full((F,), 0.3 + i, dtype=torch.float64)
    before = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    memory = {"penalty": before.clone()}
    adapted = CrossLayer(JumpReLU(Penalty("l0", K, None), WIDTH, 0.1))
    found = adapted.step(pack(parts), memory, x, y, Moment(NO_DEAD)).gradients["threshold"]
    for i, part in enumerate(parts):
        l0 = (_pre(part, x, i) > part["threshold"]).sum(1).double().mean()
        excess = (l0 / K).log().clamp(-1, 1)
        torch.testing.assert_close(memory["penalty"][i], before[i] * (0.02 * excess).exp())
        weight = (before[i] * (2 * excess).exp()).clamp_max(3 / K).item()
        fixed = CrossLayer(JumpReLU(Penalty("l0", K, weight), WIDTH, 0.1))
        wanted = fixed.step(pack(parts), {}, x, y, Moment(NO_DEAD)).gradients["threshold"]
        torch.testing.assert_close(found.chunk(L)[i], wanted.chunk(L)[i])


def test_thresholds_stay_above_half_the_kernel_in_every_layer() -> None:
    p = {**pack(_problem(6)[0]), "threshold": torch.linspace(0, 1, L * F, dtype=torch.float64)}
    wanted = p["threshold"].clamp_min(WIDTH / 2)
    CrossLayer(JumpReLU(Penalty("l0", K, WEIGHT), WIDTH, 0.1)).constrain(p)
    assert torch.equal(p["threshold"], wanted)


def test_error_by_hand() -> None:
    """Two layers of width 1 with a feature each: 3 and 5 active, writing 2, 10 and 100."""

    def numbers(*values: float) -> Tensor:
        return torch.tensor([values])

    parts = [
        {"W_enc": numbers(1.0), "b_enc": numbers(0.0)[0], "W_dec": numbers(2.0, 10.0)},
        {"W_enc": numbers(1.0), "b_enc": numbers(1.0)[0], "W_dec": numbers(100.0)},
    ]
    for part, bias in zip(parts, (0.5, 0.25), strict=True):
        part["b_dec"] = torch.tensor([bias])
    x, y = numbers(3.0, 4.0), numbers(1.0, 2.0)
    rule = TopK(1, AuxK(1, 0.0))
    xs = x.chunk(2, dim=1)
    codes = [rule.encode(part, each, Moment(NO_DEAD)) for part, each in zip(parts, xs, strict=True)]
    error = cross_layer_error(parts, xs, codes, y)
    assert error.tolist() == [[3 * 2 + 0.5 - 1, 3 * 10 + 5 * 100 + 0.25 - 2]]


def test_packing_keeps_every_number_in_its_layer() -> None:
    parts, _, _ = _problem(3, skip=True)
    found = unpack(pack(parts))
    assert len(found) == L
    for part, wanted in zip(found, parts, strict=True):
        assert part.keys() == wanted.keys()
        assert all(torch.equal(part[name], wanted[name]) for name in wanted)


def test_unpacked_parameters_are_views() -> None:
    whole = pack(_problem(3)[0])
    for part in unpack(whole):
        for tensor in part.values():
            tensor.zero_()
    assert not any(tensor.any() for tensor in whole.values())


@pytest.mark.parametrize(
    "rule",
    [TopK(3, AuxK(2, 1.0)), JumpReLU(Penalty("l0_target", K, WEIGHT), WIDTH, 0.1)],
    ids=["topk", "jumprelu"],
)
def test_shares_of_a_batch_average_to_the_whole(rule: FeatureRule) -> None:
    """What processes exchange: gradients, and the mean of L0 of every layer."""
    parts, x, y = _problem(4)
    for part in parts:
        if isinstance(rule, JumpReLU):
            part["threshold"] = torch.full((F,), 0.3, dtype=torch.float64)
    step = CrossLayer(rule).step
    means: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        means.append(value)
        return value

    whole = step(pack(parts), {}, x, y, Moment(DEAD, mean=note))
    replies = iter([*means, *means])
    halves = [
        step(pack(parts), {}, *each, Moment(DEAD, mean=lambda _: next(replies)))
        for each in zip(x.split(N // 2), y.split(N // 2), strict=True)
    ]
    assert len(means) == (L if isinstance(rule, JumpReLU) else 0)
    for name, gradient in whole.gradients.items():
        mean = sum(half.gradients[name] for half in halves) / 2
        torch.testing.assert_close(mean, gradient, rtol=1e-10, atol=1e-12)


SMALL = DictionaryConfig(
    n_features=60,
    k=4,
    n_tokens=40 * 64,
    batch_size=64,
    lr=1e-2,
    clip_norm=1.0,
    dead_after_tokens=320,
)


def _settings(**changes: Any) -> DictionaryConfig:
    return DictionaryConfig.model_validate(SMALL.model_dump() | changes)


def _layered(n_layers: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Raw activations [token, layer, d], whose layers differ in mean and size by far."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2048, n_layers, 8, generator=generator)
    mixed = torch.tanh(x.cumsum(1) @ torch.randn(8, 8, generator=generator))
    size = 10.0 ** torch.arange(n_layers).view(-1, 1)
    return 3 * x + size, size * (mixed + 2)


def _learn(learner: Learner, x: Tensor, y: Tensor) -> list[Step]:
    steps = []
    with torch.no_grad():
        for number in range(learner.config.n_steps):
            rows = torch.arange(64) + number * 64
            steps.append(learner.learn(x[rows % len(x)], y[rows % len(x)], number))
    return steps


@pytest.mark.parametrize(
    "changes",
    [
        {"k": 1, "dead_after_tokens": 64, "skip": True},
        {"k": 1, "dead_after_tokens": 64, "encode_dtype": "bfloat16"},
        {"architecture": "jumprelu", "skip": True},
        {"architecture": "jumprelu", "penalty": "l0"},
    ],
    ids=["topk", "bfloat16", "jumprelu", "adapted"],
)
def test_one_layer_is_a_plain_transcoder_bit_for_bit(changes: dict[str, Any]) -> None:
    config = _settings(**changes)
    x, y = _layered(1)
    whole = CrossLayerLearner.start(config, "cross_layer", x, y, seed=5)
    plain = Learner.start(config, "mlp", x[:, 0], y[:, 0], seed=5)
    found, wanted = _learn(whole, x, y), _learn(plain, x[:, 0], y[:, 0])
    assert [(s.loss, s.l0) for s in found] == [(s.loss, s.l0) for s in wanted]
    for name, tensor in plain.state().items():
        assert torch.equal(whole.state()[name].flatten(), tensor.flatten()), name
    assert len(plain.dead) or config.architecture == "jumprelu", "AuxK did nothing in both"
    (cross,), one = whole.dictionaries(), plain.dictionary()
    assert isinstance(cross, CrossLayerTranscoder)
    assert isinstance(one, Transcoder)
    assert torch.equal(cross.W_dec[:, 0], one.W_dec)
    assert (cross.activation, cross.k) == (one.activation, one.k)
    for name in ("W_enc", "b_enc", "b_dec", "threshold", "W_skip"):
        mine, its = getattr(cross, name), getattr(one, name)
        assert type(mine) is type(its)
        assert mine is None or torch.equal(mine, its), name


@both_skips
@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_saved_weights_do_on_raw_data_what_was_trained(architecture: str, skip: bool) -> None:
    x, y = _layered(L)
    config = _settings(architecture=architecture, skip=skip)
    learner = CrossLayerLearner.start(config, "cross_layer", x, y, seed=0)
    steps = _learn(learner, x, y)
    assert steps[-1].loss < 0.7 * steps[0].loss
    x, y = x[:64], y[:64]
    scaled, target = learner.scaling.inputs(x.flatten(1)), learner.scaling.targets(y.flatten(1))
    parts = unpack(learner.parameters)
    rule = CrossLayerLearner._architecture_of(config, learner.parameters)
    assert isinstance(rule, CrossLayer)
    xs = scaled.chunk(L, dim=1)
    codes = []
    for part, each in zip(parts, xs, strict=True):
        codes.append(rule.rule.encode(part, each, Moment(NO_DEAD)))
    wanted = cross_layer_error(parts, xs, codes, target) / learner.scaling.y_scale
    dictionaries = learner.dictionaries()
    found = torch.stack(_reconstructions(dictionaries, x), 1) - y
    assert [each.n_writes for each in dictionaries] == [3, 2, 1]
    size = wanted.view(-1, L, 8).abs().amax((0, 2)).view(-1, 1)
    torch.testing.assert_close(found / size, wanted.view(-1, L, 8) / size, rtol=0, atol=2e-5)


def _reconstructions(dictionaries: list[Dictionary], x: Tensor) -> list[Tensor]:
    """`y_hat` of every layer from raw inputs [token, layer, d]."""
    a = [each.encode(x[:, i]) for i, each in enumerate(dictionaries)]
    found = []
    for m, own in enumerate(dictionaries):
        below = (a[i] @ dictionaries[i].decoder(m - i) for i in range(m))
        found.append(own.decode(a[m], x[:, m]) + sum(below))
    return found


def test_every_layer_is_scaled_by_its_own_number() -> None:
    x, y = _layered(L)
    scaling = CrossLayerLearner.start(SMALL, "cross_layer", x, y, seed=0).scaling
    scaled = scaling.targets(y.flatten(1)).view(-1, L, 8)
    torch.testing.assert_close(scaled.mean((0, 2)), torch.zeros(L), rtol=0, atol=1e-5)
    torch.testing.assert_close(scaled.square().mean((0, 2)), torch.ones(L), rtol=1e-4, atol=0)
    assert all(len(part.unique()) == 1 for part in scaling.y_scale.chunk(L))


def test_training_starts_at_the_mean_and_layers_differ() -> None:
    x, y = _layered(L)
    parts = unpack(CrossLayerLearner.start(SMALL, "cross_layer", x, y, seed=0).parameters)
    assert [tuple(part["W_dec"].shape) for part in parts] == [(60, 24), (60, 16), (60, 8)]
    assert not any(part["W_dec"].any() for part in parts)
    assert not torch.equal(parts[0]["W_enc"], parts[1]["W_enc"])


def test_features_fire_at_the_rate_wanted_on_the_inputs_of_their_own_layer() -> None:
    x, y = _layered(L)
    config = _settings(architecture="jumprelu", start_rate=3.0)
    learner = CrossLayerLearner.start(config, "cross_layer", x, y, seed=0)
    xs = learner.scaling.inputs(x.flatten(1)).chunk(L, dim=1)
    for part, x_l in zip(unpack(learner.parameters), xs, strict=True):
        rates = (x_l @ part["W_enc"].T + part["b_enc"] > part["threshold"]).float().mean(0)
        torch.testing.assert_close(rates, torch.full((60,), 3 * 4 / 60), rtol=0, atol=2e-3)


def test_a_layer_learns_what_only_features_below_know() -> None:
    """The upper layer's input is noise; its target is features of the lower input."""
    generator = torch.Generator().manual_seed(0)
    on = (torch.rand(4096, 8, generator=generator) < 0.2).float()
    noise = torch.randn(4096, 8, generator=generator)
    x = torch.stack([on, noise], 1)
    y = torch.stack([noise, 7 * on], 1)
    config = _settings(k=2, n_features=24, n_tokens=300 * 64, clip_norm=None)
    learner = CrossLayerLearner.start(config, "cross_layer", x, y, seed=0)
    _learn(learner, x, y)
    error = torch.stack(_reconstructions(learner.dictionaries(), x), 1) - y
    fvu = error.square().mean((0, 2)) / (y - y.mean(0)).square().mean((0, 2))
    assert fvu[1] < 0.2
    assert fvu[0] > 0.5


CONFIG = TrainingConfig(
    model="small",
    cross_layer=True,
    n_features=48,
    k=4,
    n_tokens=20 * 64,
    batch_size=64,
    context=12,
    n_eval_rows=8,
    model_batch_rows=3,
    buffer_tokens=150,
    activation_cache_gb=0.0,
    lr=1e-2,
    clip_norm=1.0,
    dead_after_tokens=300,
    checkpoint_every=3,
)
ROWS = random_rows(40)


def _run(out: Path, stop_after: int | None = None, **changes: Any):
    config = TrainingConfig.model_validate(CONFIG.model_dump() | changes)
    return train(config, small_gpt2(), out=out, tokens=ROWS, progress=False, stop_after=stop_after)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("changes", [{}, {"architecture": "jumprelu", "penalty": "l0"}])
def test_a_resumed_run_ends_with_the_same_bytes(changes: dict[str, Any], tmp_path: Path) -> None:
    _run(tmp_path / "whole", **changes)
    for stop in (7, 8):
        assert _run(tmp_path / "parts", stop, **changes) is None
    _run(tmp_path / "parts", **changes)
    assert _contents(tmp_path / "parts") == _contents(tmp_path / "whole")
    names = ["config.json", "metrics.json", "mlp.0.safetensors", "mlp.1.safetensors"]
    assert sorted(_contents(tmp_path / "whole")) == [*names, "tokens.safetensors"]


def test_only_the_first_tokens_scale_a_cross_layer_transcoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the first chunk scales a plain one, so a limit changes nothing there."""
    means: dict[tuple[bool, int], Tensor] = {}
    for limit in (24, 1000):
        monkeypatch.setattr(one_pass, "_SCALING_TOKENS", limit)
        for cross_layer in (False, True):
            out = tmp_path / f"{limit}{cross_layer}"
            _run(out, 1, cross_layer=cross_layer)
            found = read_checkpoint(out, "cpu")
            assert found is not None
            state = found[1]["cross_layer.0-1" if cross_layer else "mlp.0"]
            means[cross_layer, limit] = state["scaling.y_mean"]
    assert torch.equal(means[False, 24], means[False, 1000])
    assert torch.equal(means[True, 1000][:16], means[False, 1000])
    assert not torch.equal(means[True, 24], means[True, 1000])


def test_files_are_a_whole_for_the_layers_asked(tmp_path: Path) -> None:
    _run(tmp_path / "all", architecture="jumprelu")
    _run(tmp_path / "top", layers=(1,), skip=True)
    found, top = load_folder(tmp_path / "all"), load_folder(tmp_path / "top")
    assert {name: each.n_writes for name, each in found.items()} == {"mlp.0": 2, "mlp.1": 1}
    assert {name: each.n_writes for name, each in top.items()} == {"mlp.1": 1}
    assert all(isinstance(each, CrossLayerTranscoder) for each in [*found.values(), *top.values()])
    assert top["mlp.1"].W_skip is not None


def test_other_variants_beside_it_change_nothing(tmp_path: Path) -> None:
    configs = {
        "cross": CONFIG,
        "plain": CONFIG.model_copy(update={"cross_layer": False}),
        "sae": CONFIG.model_copy(update={"cross_layer": False, "sites": ("resid_post",)}),
    }
    train_many(configs, small_gpt2(), out=tmp_path / "many", tokens=ROWS, progress=False)
    _run(tmp_path / "alone")
    for name in ("mlp.0.safetensors", "mlp.1.safetensors", "metrics.json"):
        alone, beside = (tmp_path / each / name for each in ("alone", "many/cross"))
        assert beside.read_bytes() == alone.read_bytes(), name


def test_training_recovers_cross_entropy(tmp_path: Path) -> None:
    """Against mean ablation of all layers: one step recovers little, many a good part."""
    config = CONFIG.model_copy(
        update={"lr": 3e-3, "k": 8, "n_text_tokens": 3000, "activation_cache_gb": 1.0}
    )
    few, many = (
        train(
            config.model_copy(update={"n_tokens": steps * 64}),
            small_gpt2(),
            out=tmp_path / str(steps),
            progress=False,
        )
        for steps in (1, 400)
    )
    assert few is not None
    assert many is not None
    start, end = (report.together["mlp"].recovered_mean for report in (few, many))
    assert start is not None
    assert end is not None
    assert end > 0.5
    assert end > start + 0.3
    for before, after in zip(few.dictionaries, many.dictionaries, strict=True):
        assert after.fvu < 0.6 * before.fvu


def test_a_dry_run_counts_what_is_trained() -> None:
    plan = plan_training({"": CONFIG, "plain": _plain()}, small_gpt2())
    d, f = 16, 48
    assert plan.parameters[""] == 2 * (f * d + f + d) + (2 + 1) * f * d
    assert plan.dictionaries == {"": 2, "plain": 2}
    assert plan.step_bytes == 5 * 64 * 2 * f


def _plain() -> TrainingConfig:
    return CONFIG.model_copy(update={"cross_layer": False})


def test_keys() -> None:
    assert keys_of(CONFIG, "small", 4) == ["cross_layer.0-3"]
    some = CONFIG.model_copy(update={"layers": (2, 1)})
    assert keys_of(some, "small", 4) == ["cross_layer.1-2"]
    assert dictionary_names("cross_layer.9-11") == ["mlp.9", "mlp.10", "mlp.11"]
    with pytest.raises(ValueError, match="layers 0 to 1"):
        keys_of(some, "small", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sites": ("resid_post",)}, "at the site mlp alone, got sites"),
        ({"sites": ("mlp", "attn_out")}, "at the site mlp alone"),
        ({"architecture": "batchtopk"}, "topk or jumprelu, got 'batchtopk'"),
        ({"layers": (0, 2)}, r"without gaps, each once, got \(0, 2\)"),
        ({"layers": (0, 0)}, "without gaps, each once"),
        ({"layers": ()}, "without gaps, each once"),
    ],
)
def test_settings_that_cannot_be_trained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingConfig.model_validate(CONFIG.model_dump() | changes)


def test_other_architectures_are_refused_without_a_model_too() -> None:
    x, y = _layered(L)
    with pytest.raises(ValueError, match="architecture topk or jumprelu, got 'relu'"):
        CrossLayerLearner.start(_settings(architecture="relu"), "cross_layer", x, y, seed=0)


def test_a_folder_with_a_plain_run_is_refused(tmp_path: Path) -> None:
    _run(tmp_path, 1, cross_layer=False)
    with pytest.raises(ValueError, match=r"other settings \(cross_layer False not True"):
        _run(tmp_path)
