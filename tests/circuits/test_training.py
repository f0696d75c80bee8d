"""Whole training runs on small random models."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from circuits import load_dictionaries, load_model
from circuits.training import TrainingConfig, train
from circuits.training.display import Progress, summary
from circuits.training.learner import Learner
from circuits.training.scaling import fit_scaling, fold
from tests.circuits.training_models import random_rows, small_gpt2, small_llama

BASE = {
    "model": "small",
    "n_features": 48,
    "k": 4,
    "n_tokens": 40 * 64,
    "batch_size": 64,
    "context": 12,
    "n_eval_rows": 8,
    "lr": 1e-2,
    "dead_after_tokens": 300,
    "checkpoint_every": 7,
}
ROWS = random_rows(40)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _files(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {path.name: load_file(path) for path in sorted(folder.glob("*.*.safetensors"))}


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
@pytest.mark.parametrize("cache_gb", [1.0, 0.0], ids=["cached", "streamed"])
def test_resume_ends_with_the_same_tensors(
    tmp_path: Path, architecture: str, cache_gb: float
) -> None:
    config = TrainingConfig(
        **BASE,
        architecture=architecture,
        sites=("mlp", "resid_post"),
        activation_cache_gb=cache_gb,
        buffer_tokens=150,
    )
    model = small_gpt2()
    train(config, model, out=tmp_path / "whole", tokens=ROWS, progress=False)
    stopped = train(
        config, model, out=tmp_path / "parts", tokens=ROWS, progress=False, stop_after=20
    )
    assert stopped is None
    assert not list((tmp_path / "parts").glob("*.*.safetensors"))
    train(config, small_gpt2(), out=tmp_path / "parts", progress=False)
    whole, parts = _files(tmp_path / "whole"), _files(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert len(whole) == 4
    for name, tensors in whole.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, parts[name][key]), f"{name} {key}"


def test_other_settings_are_refused_in_the_same_folder(tmp_path: Path) -> None:
    config = TrainingConfig(**BASE)
    train(config, small_gpt2(), out=tmp_path, tokens=ROWS, progress=False, stop_after=2)
    with pytest.raises(ValueError, match=r"other settings \(lr 0\.01 not 0\.02\)"):
        train(config.model_copy(update={"lr": 0.02}), small_gpt2(), out=tmp_path, progress=False)


def test_a_folder_with_unreadable_settings_is_refused(tmp_path: Path) -> None:
    config = TrainingConfig(**BASE)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON .*; use another folder"):
        train(config, small_gpt2(), out=tmp_path, tokens=ROWS, progress=False)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no settings of a training run"):
        train(config, small_gpt2(), out=tmp_path, tokens=ROWS, progress=False)


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    config = TrainingConfig(**BASE)
    train(config, small_gpt2(), out=tmp_path, tokens=ROWS, progress=False, stop_after=2)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged"):
        train(config, small_gpt2(), out=tmp_path, progress=False)


def test_a_finished_run_returns_its_report_and_leaves_the_documented_files(tmp_path: Path) -> None:
    config = TrainingConfig(**BASE, layers=(1,), skip=True)
    report = train(config, small_llama(), out=tmp_path, tokens=ROWS, progress=False)
    assert train(config, small_llama(), out=tmp_path, progress=False) == report
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"mlp.1.safetensors", "config.json", "metrics.json", "tokens.safetensors"}
    (loaded,) = load_dictionaries(tmp_path).values()
    assert loaded.W_skip is not None
    assert loaded.k == 4


@pytest.mark.parametrize(("architecture", "site"), [("topk", "mlp"), ("jumprelu", "resid_post")])
def test_training_lowers_the_error_and_holds_the_sparsity(
    tmp_path: Path, architecture: str, site: str
) -> None:
    config = TrainingConfig(
        **{**BASE, "n_tokens": 300 * 64}, architecture=architecture, sites=(site,), layers=(0,)
    )
    report = train(config, small_gpt2(), out=tmp_path, tokens=ROWS, progress=False)
    assert report is not None
    (record,) = report.dictionaries
    assert record.fvu < 0.5
    assert 2 < record.l0 < 8
    assert record.cross_entropy.recovered_mean > 0.5


def test_layers_outside_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has layers 0 to 1, got \\[2\\]"):
        train(
            TrainingConfig(**BASE, layers=(2,)),
            small_gpt2(),
            out=tmp_path,
            tokens=ROWS,
            progress=False,
        )


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    config = TrainingConfig(**BASE)
    with pytest.raises(ValueError, match="fills 8 rows of 12 tokens; want more than the 8"):
        train(config, small_gpt2(), out=tmp_path, tokens=ROWS[:8], progress=False)


def test_config_refuses_what_cannot_be() -> None:
    with pytest.raises(ValidationError, match="only transcoders"):
        TrainingConfig(**BASE, skip=True, sites=("resid_post",))
    with pytest.raises(ValidationError, match="k must be at most n_features 48, got 49"):
        TrainingConfig(**{**BASE, "k": 49})
    with pytest.raises(ValidationError, match="extra"):
        TrainingConfig(**BASE, unknown=1)


def test_folded_weights_do_on_raw_data_what_the_scaled_ones_do_on_scaled() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator) * torch.tensor([1.0, 5, 0.1, 2, 30, 1]) + 4
    y = torch.randn(500, 3, generator=generator) * 7 - 2
    scaling = fit_scaling(x, y, tied=False)
    torch.testing.assert_close(scaling.inputs(x).std(0, correction=0), torch.ones(6))
    assert scaling.targets(y).square().mean().item() == pytest.approx(1.0, rel=1e-4)
    p = {
        "W_enc": torch.randn(9, 6, generator=generator),
        "W_dec": torch.randn(9, 3, generator=generator),
        "b_enc": torch.randn(9, generator=generator),
        "b_dec": torch.randn(3, generator=generator),
        "W_skip": torch.randn(6, 3, generator=generator),
    }
    raw = fold(p, scaling)
    xs = scaling.inputs(x)
    z = xs @ p["W_enc"].T + p["b_enc"]
    torch.testing.assert_close(x @ raw["W_enc"] + raw["b_enc"], z, rtol=1e-4, atol=1e-4)
    scaled_out = z.relu() @ p["W_dec"] + p["b_dec"] + xs @ p["W_skip"]
    raw_out = z.relu() @ raw["W_dec"] + raw["b_dec"] + x @ raw["W_skip"]
    torch.testing.assert_close(scaling.targets(raw_out), scaled_out, rtol=1e-4, atol=1e-4)


def test_a_dead_feature_comes_back_through_auxk() -> None:
    config = TrainingConfig(**{**BASE, "n_features": 8, "k": 2}, aux_coefficient=0.5)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator)
    learner = Learner.start(config, "resid_post", x, x, seed=0)
    learner.parameters["W_enc"][3] *= 0.01
    learner._silent[3] = config.dead_after_tokens
    assert learner.dead.tolist() == [3]
    before = learner.parameters["W_enc"][3].norm().item()
    for step in range(30):
        learner.learn(x[:64], x[:64], step)
    assert learner.parameters["W_enc"][3].norm().item() > 2 * before


def test_training_that_diverges_says_so_and_saves_nothing(tmp_path: Path) -> None:
    config = TrainingConfig(**{**BASE, "lr": 1e30}, layers=(0,))
    with pytest.raises(ValueError, match=r"mlp\.0 diverged: its loss is .*; want a smaller lr"):
        train(config, small_gpt2(), out=tmp_path, tokens=ROWS, progress=False)
    assert not list(tmp_path.glob("mlp*"))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(40,), (40, 11)])
def test_tokens_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tokens = ROWS.flatten()[: torch.Size(shape).numel()].view(shape)
    with pytest.raises(ValueError, match=r"tokens must be rows of 12 ids \(context\), got \(40"):
        train(TrainingConfig(**BASE), small_gpt2(), out=tmp_path, tokens=tokens, progress=False)


def test_a_context_beyond_the_model_is_refused(tmp_path: Path) -> None:
    config = TrainingConfig(**{**BASE, "context": 25})
    with pytest.raises(ValueError, match=r"context 25 is longer than .* reads, 24"):
        train(config, small_gpt2(), out=tmp_path, tokens=random_rows(40, 25), progress=False)


def test_a_model_in_bfloat16_gives_dictionaries_in_float32(tmp_path: Path) -> None:
    model = load_model(small_gpt2()._bridge.original_model, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    config = TrainingConfig(**BASE, layers=(1,), dtype="bfloat16")
    report = train(config, model, out=tmp_path, tokens=ROWS, progress=False)
    assert report is not None
    assert report.dictionaries[0].fvu < 0.9
    assert _files(tmp_path)["mlp.1.safetensors"]["W_enc"].dtype == torch.float32


def test_a_model_elsewhere_than_the_settings_say_is_refused(tmp_path: Path) -> None:
    config = TrainingConfig(**BASE, dtype="bfloat16")
    with pytest.raises(ValueError, match="the model has dtype float32, but the settings say bfloa"):
        train(config, small_gpt2(), out=tmp_path, tokens=ROWS, progress=False)


def test_news_tell_the_stages_in_order(tmp_path: Path) -> None:
    news: list[Progress] = []
    config = TrainingConfig(**BASE, layers=(0,), n_text_tokens=480)
    train(config, small_gpt2(), out=tmp_path, progress=news.append)
    stages = list(dict.fromkeys(each.stage.split(" (")[0] for each in news))
    assert stages == ["reading text", "running the model", "training", "measuring fidelity"]
    steps = [each for each in news if each.stage.startswith("training")]
    assert [each.done for each in steps] == [10, 20, 30, 40]
    assert steps[-1].numbers.keys() == {"mlp.0"}
    assert all(each.done <= each.total for each in news)
    assert summary(steps[-1]).endswith("(mean of 1)")
