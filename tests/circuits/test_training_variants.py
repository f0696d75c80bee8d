"""Several configurations in one pass: each as if it were alone."""

from pathlib import Path

import pytest
import torch

from circuits.training import TrainingConfig, train, train_many
from circuits.training.data import shared_settings
from tests.circuits.training_models import random_rows, small_gpt2

ROWS = random_rows(40)
BASE = TrainingConfig(
    model="small",
    n_features=48,
    k=4,
    n_tokens=24 * 64,
    batch_size=64,
    context=12,
    n_eval_rows=8,
    model_batch_rows=3,
    buffer_tokens=150,
    activation_cache_gb=5e-5,
    lr=1e-2,
    dead_after_tokens=300,
    checkpoint_every=7,
)
"""All activations of one site fit into the cache, those of four do not."""
CONFIGS = {
    "topk": BASE,
    "jump": BASE.model_copy(update={"architecture": "jumprelu", "layers": (1,)}),
    "other": BASE.model_copy(update={"sites": ("resid_post", "mlp"), "n_features": 30, "seed": 3}),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def contents(folder: Path, *without: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in without}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("many")
    reports = train_many(CONFIGS, small_gpt2(), out=out, tokens=ROWS, progress=False)
    assert reports is not None
    assert {name: len(report.dictionaries) for name, report in reports.items()} == {
        "topk": 2,
        "jump": 1,
        "other": 4,
    }
    return out


@pytest.mark.parametrize("name", CONFIGS)
def test_files_have_the_bytes_of_a_run_of_its_own(name: str, many: Path, tmp_path: Path) -> None:
    train(CONFIGS[name], small_gpt2(), out=tmp_path, tokens=ROWS, progress=False)
    alone = contents(tmp_path)
    tokens = alone.pop("tokens.safetensors")
    assert contents(many / name) == alone
    assert (many / "tokens.safetensors").read_bytes() == tokens
    assert not (many / name / "checkpoint.safetensors").exists()


def test_a_layer_has_the_weights_it_has_among_fewer(many: Path, tmp_path: Path) -> None:
    config = BASE.model_copy(update={"layers": (1,)})
    train(config, small_gpt2(), out=tmp_path, tokens=ROWS, progress=False)
    name = "mlp.1.safetensors"
    assert (tmp_path / name).read_bytes() == (many / "topk" / name).read_bytes()


def test_configurations_can_be_added_and_continued_in_any_company(
    many: Path, tmp_path: Path
) -> None:
    def go(*names: str, stop_after: int | None = None) -> object:
        configs = {name: CONFIGS[name] for name in names}
        return train_many(
            configs,
            small_gpt2(),
            out=tmp_path,
            tokens=ROWS,
            progress=False,
            stop_after=stop_after,
        )

    assert go("topk", "jump", stop_after=9) is None
    assert go("topk", stop_after=15) is None
    assert go("topk", "jump", "other", stop_after=16) is None
    assert go("jump") is not None
    assert not list((tmp_path / "topk").glob("mlp.*"))
    assert go("topk", "jump", "other") is not None
    for name in CONFIGS:
        assert contents(tmp_path / name) == contents(many / name), name


def test_what_is_shared_must_be_equal(tmp_path: Path) -> None:
    other = BASE.model_copy(update={"n_tokens": 640})
    with pytest.raises(ValueError, match="n_tokens is 1536 for 'a' and 640 for 'b'; make it equal"):
        train_many({"a": BASE, "b": other}, small_gpt2(), out=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no configuration to train"):
        train_many({}, small_gpt2(), out=tmp_path, progress=False)


@pytest.mark.parametrize("field", ["text", "data_seed", "batch_size", "context", "model", "dtype"])
def test_settings_about_data_are_shared(field: str) -> None:
    assert field in shared_settings({"a": BASE})


@pytest.mark.parametrize("field", ["sites", "layers", "k", "lr", "seed", "skip", "n_features"])
def test_settings_about_dictionaries_are_not(field: str) -> None:
    assert field not in shared_settings({"a": BASE})


def test_a_folder_of_other_data_is_refused(many: Path) -> None:
    config = BASE.model_copy(update={"data_seed": 5})
    with pytest.raises(ValueError, match=r"other settings \(data_seed 0 not 5\)"):
        train_many({"new": config}, small_gpt2(), out=many, tokens=ROWS, progress=False)


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_names_that_are_no_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="becomes a folder, got"):
        train_many({name: BASE}, small_gpt2(), out=tmp_path, progress=False)
