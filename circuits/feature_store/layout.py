"""What lies in a store's folder: one safetensors file a dictionary, the tokens, a manifest.

    manifest.json         version, model, dictionaries with their fingerprints, corpus, settings
    tokens.safetensors    `tokens` [row, context] int32, padded with -1
    mlp.0.safetensors     the tables below, first axis the feature

Tables of a dictionary of F features (`shapes_of`):

    n_active, n_counted [F] int64           sum [F] float64     maximum [F] float32
    histogram [F, bin] int64                octave [F] int16    `floor(log2 maximum)`
    top_place, sample_place [F, k]          int64, `row * context + pos`, -1 where there is none
    top_values, sample_values [F, k, window] float32, the peak at `before`, 0 outside the row
    partner_id [F, m] int32                 counted over all dictionaries in order, -1 for none
    partner_count [F, m] int32              positions together, of `n_counted`

Samples lie band after band, the highest octave first, `per_band` places each.
"""

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

__all__ = [
    "DTYPES",
    "MANIFEST_NAME",
    "N_BINS",
    "VERSION",
    "CorpusSettings",
    "DictionaryRecord",
    "Manifest",
    "ScanSettings",
    "histogram_edges",
    "shapes_of",
]

VERSION = 1
MANIFEST_NAME = "manifest.json"
N_BINS = 48
DTYPES = {
    "n_active": torch.int64,
    "n_counted": torch.int64,
    "sum": torch.float64,
    "maximum": torch.float32,
    "histogram": torch.int64,
    "octave": torch.int16,
    "top_place": torch.int64,
    "top_values": torch.float32,
    "sample_place": torch.int64,
    "sample_values": torch.float32,
    "partner_id": torch.int32,
    "partner_count": torch.int32,
}


class ScanSettings(BaseModel):
    """What is kept of each feature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    top_k: int = Field(default=20, ge=1, description="contexts of the largest activations")
    before: int = Field(default=16, ge=0, description="tokens of a context before its peak")
    after: int = Field(default=8, ge=0, description="tokens of a context after its peak")
    bands: int = Field(
        default=4, ge=1, description="octaves of activation to sample; the last reaches to 0"
    )
    per_band: int = Field(default=5, ge=1, description="contexts sampled from each band")
    partners: int = Field(
        default=10, ge=1, description="features most often active together, to keep"
    )
    coactivation_entries: int = Field(
        default=2**25,
        ge=1,
        description="most entries (active feature, token) held for co-activation, 4 bytes each; "
        "where the corpus has more, tokens are sampled",
    )
    partner_tokens: int = Field(
        default=512, ge=1, description="most tokens a feature's partners are counted on"
    )
    batch_rows: int = Field(default=16, ge=1, description="rows of text a forward pass")

    @property
    def window(self) -> int:
        """Positions of a context."""
        return self.before + 1 + self.after


class CorpusSettings(BaseModel):
    """Which text, as rows of tokens; see `circuits.training.text.read_rows`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = Field(
        default="sample",
        description="`sample` (text sampled from the model), a .txt, .jsonl, .jsonl.gz, .jsonl.xz "
        "or .safetensors file, a folder of .txt files, or the hub name of a dataset",
    )
    n_tokens: int = Field(default=1_000_000, ge=1, description="most tokens of text")
    context: int = Field(default=128, ge=2, description="tokens a row of text, the first one BOS")
    pack: bool = Field(default=True, description="join documents into full rows")
    seed: int = Field(default=0, ge=0, description="seed of sampled text and of the order of rows")


class DictionaryRecord(BaseModel):
    """One scanned dictionary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_features: int = Field(ge=1)
    fingerprint: str = Field(description="of its weights: `circuits.feature_store.fingerprints`")
    sha256: str = Field(description="of the file with its tables")


class Manifest(BaseModel):
    """What a store is of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    model: str
    dictionaries: dict[str, DictionaryRecord] = Field(min_length=1)
    names: tuple[str, ...] = Field(description="the dictionaries in order; gives partners' ids")
    corpus: CorpusSettings
    settings: ScanSettings
    n_rows: int = Field(ge=1)
    n_tokens: int = Field(ge=0, description="positions that count")
    n_coactivation_tokens: int = Field(ge=0, description="of these, held for co-activation")
    tokens_sha256: str


def histogram_edges() -> Float[Tensor, " edge"]:
    """Half octaves from 2^-12 to 2^12."""
    halves = torch.arange(N_BINS + 1, dtype=torch.float64) / 2 - 12
    return torch.exp2(halves).float()


def shapes_of(n_features: int, settings: ScanSettings) -> dict[str, tuple[int, ...]]:
    """Shape of every table of a dictionary."""
    n, window = n_features, settings.window
    n_samples, n_partners = settings.bands * settings.per_band, settings.partners
    return {
        "n_active": (n,),
        "n_counted": (n,),
        "sum": (n,),
        "maximum": (n,),
        "histogram": (n, N_BINS),
        "octave": (n,),
        "top_place": (n, settings.top_k),
        "top_values": (n, settings.top_k, window),
        "sample_place": (n, n_samples),
        "sample_values": (n, n_samples, window),
        "partner_id": (n, n_partners),
        "partner_count": (n, n_partners),
    }
