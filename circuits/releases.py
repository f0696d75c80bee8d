"""Published dictionaries by name: one table, `releases.json`."""

from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from circuits.conventions import Convention

__all__ = ["Release", "releases"]

_FILES = {
    "saelens": ("{path}/cfg.json", "{path}/sae_weights.safetensors"),
    "gemma-scope": ("{path}/params.npz",),
    "gemma-scope-2": ("{path}/config.json", "{path}/params.safetensors"),
    "transcoder-circuits": ("{path}",),
    "circuit-tracer": ("config.yaml", "layer_{layer}.safetensors"),
    "circuit-tracer, cross-layer": (
        *("config.yaml", "W_enc_{layer}.safetensors", "W_dec_{layer}.safetensors"),
    ),
    "sparsify": ("{path}/cfg.json", "{path}/sae.safetensors"),
    "dictionary-learning": ("{path}/config.json", "{path}/ae.pt"),
}


class Release(BaseModel):
    """One set of published dictionaries for one model.

    Where each lies is either listed in `places`, or follows from `template` for the layers 0 to
    `n_layers` - 1 of `site`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="as `load_dictionaries` takes it")
    repository: str = Field(description="on the Hugging Face hub")
    format: str = Field(description="name of its checkpoint format")
    model: str = Field(description="as `load_model` takes it")
    what: str = Field(description="kind, size and activation, in a line")
    licence: str = Field(description="as the repository states it; empty if unknown here")
    cross_layer: bool = Field(False, description="whether it is a cross-layer transcoder")
    places: dict[str, str] = Field({}, description="SITE.LAYER -> path in the repository")
    site: str = Field("", description="of all, where there is a template")
    template: str = Field("", description="path in the repository, with {layer}")
    n_layers: int = Field(0, ge=0, description="how many layers the template is for")
    convention: Convention | None = Field(
        None, description="of its inputs, where its files do not say it or say it wrongly"
    )
    input_norms: dict[str, float] = Field(
        {}, description="SITE.LAYER -> mean norm of the inputs, where the weights do not hold it"
    )

    @property
    def paths(self) -> dict[str, str]:
        """SITE.LAYER -> path of its file or folder in the repository, in the order of layers."""
        if self.places:
            return dict(self.places)
        layers = range(self.n_layers)
        return {f"{self.site}.{i}": self.template.format(layer=i) for i in layers}

    def files(self, place: str) -> tuple[str, ...]:
        """The files that the dictionary at `place` needs."""
        layer = place.rpartition(".")[2]
        kind = f"{self.format}, cross-layer" if self.cross_layer else self.format
        return tuple(name.format(path=self.paths[place], layer=layer) for name in _FILES[kind])


@lru_cache(maxsize=1)
def releases() -> dict[str, Release]:
    """Every published set that is known by name."""
    records = (Path(__file__).parent / "releases.json").read_text(encoding="utf-8")
    return {release.name: release for release in _TABLE.validate_json(records).releases}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    releases: list[Release]


_TABLE = TypeAdapter(_Table)
