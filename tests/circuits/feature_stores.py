"""Small feature stores for tests, made by a real scan of a small random model."""

from pathlib import Path

import torch

from circuits import SAE, Dictionary, SplicedModel, Transcoder
from circuits.feature_store import CorpusSettings, FeatureStore, ScanSettings
from circuits.feature_store.scan import scan
from tests.circuits.training_models import random_rows, small_gpt2

SETTINGS = ScanSettings(top_k=4, before=3, after=2, bands=3, per_band=2, partners=3, batch_rows=3)
CORPUS = CorpusSettings(text="given", n_tokens=20 * 12, context=12)
F = 10


def dictionaries(seed: int = 0) -> dict[str, Dictionary]:
    """Two transcoders and an SAE of width 16; feature 9 of the first is never active."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def tensors() -> dict[str, torch.Tensor]:
        return {
            "W_enc": random(16, F),
            "W_dec": random(F, 16),
            "b_enc": random(F),
            "b_dec": random(16),
        }

    first = tensors()
    first["b_enc"][9] = -1000.0
    threshold = torch.full((F,), 0.5)
    return {
        "mlp.0": Transcoder(**first, activation="topk", k=3),
        "mlp.1": Transcoder(**tensors(), activation="jumprelu", threshold=threshold),
        "resid_post.0": SAE(**tensors(), site="resid_post"),
    }


def corpus_rows(n_rows: int = 20) -> torch.Tensor:
    """Rows that begin with BOS (0); one is padded, one has BOS in its middle."""
    rows = random_rows(n_rows, 12).to(torch.int32)
    rows[1, 7:] = -1
    rows[2, 5] = 0
    return rows


def example_spliced(seed: int = 0) -> SplicedModel:
    """`small_gpt2()` with `dictionaries(seed)`."""
    return SplicedModel(small_gpt2(), dictionaries(seed))


def example_store(folder: Path) -> FeatureStore:
    """A store of `example_spliced()` on `corpus_rows()`."""
    return scan(example_spliced(), CORPUS, folder, rows=corpus_rows(), settings=SETTINGS)
