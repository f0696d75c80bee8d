"""What decides how dictionaries are trained: everything needed to repeat a run."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ArchitectureName", "DictionaryConfig", "PenaltyName", "TrainedSite", "TrainingConfig"]

TrainedSite = Literal["mlp", "resid_pre", "resid_post", "attn_out", "mlp_out"]
ArchitectureName = Literal["relu", "tied", "gated", "topk", "batchtopk", "matryoshka", "jumprelu"]
PenaltyName = Literal["l1", "l0", "l0_target"]


class DictionaryConfig(BaseModel):
    """Settings of dictionaries and their optimiser; nothing about where activations come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_features: int = Field(default=2304, ge=1, description="features a dictionary")
    architecture: ArchitectureName = Field(default="topk", description="how a dictionary is sparse")
    k: int = Field(
        default=32, ge=1, description="features a token: exact for topk, a mean for the others"
    )
    skip: bool = Field(default=False, description="whether transcoders get a linear skip")
    penalty: PenaltyName | None = Field(
        default=None,
        description="what makes relu, tied, gated and jumprelu sparse; None for the usual one (l1, "
        "for jumprelu l0_target)",
    )
    penalty_weight: float | None = Field(
        default=None,
        ge=0,
        description="weight of the penalty; None adapts it until L0 is k (l0_target: 0.3)",
    )
    penalty_warmup: float = Field(
        default=0.3, ge=0, le=1, description="share of steps a given weight grows over"
    )
    unit_decoder: bool = Field(
        default=False, description="relu and gated: keep decoder rows at norm 1 (plain L1)"
    )
    bandwidth: float = Field(
        default=0.1,
        gt=0,
        description="jumprelu: width of the kernel, in standard deviations of inputs",
    )
    group_shares: tuple[float, ...] = Field(
        default=(0.0625, 0.1875, 0.75),
        min_length=1,
        description="matryoshka: share of the features in each nested group, summing to 1",
    )
    start_rate: float = Field(
        default=4.0,
        gt=0,
        description="features a token at the start, in units of k (all but topk and its kin)",
    )

    n_tokens: int = Field(
        default=4_000_000, ge=1, description="tokens presented; texts repeat if shorter"
    )
    batch_size: int = Field(default=2048, ge=1, description="tokens an optimiser step")
    lr: float = Field(default=1e-3, gt=0, description="peak Adam learning rate")
    warmup: float = Field(default=0.02, ge=0, le=1, description="share of steps of linear warm-up")
    decay: float = Field(
        default=0.5, ge=0, le=1, description="share of steps of final linear decay to 0"
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="largest norm of a step's gradients; None for no limit"
    )
    aux_k: int | None = Field(
        default=None,
        ge=1,
        description="dead features AuxK uses a token; None for half the target's width",
    )
    aux_coefficient: float = Field(
        default=1 / 32, ge=0, description="topk and its kin: weight of the AuxK loss"
    )
    dead_after_tokens: int = Field(
        default=100_000,
        ge=1,
        description="tokens without firing after which a feature counts as dead",
    )
    encode_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="dtype of the encoder's product; with bfloat16 what it chose is computed again "
        "in float32",
    )
    seed: int = Field(default=0, ge=0, description="seed of weights at the start")

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return max(1, self.n_tokens // self.batch_size)

    @model_validator(mode="after")
    def _check(self) -> "DictionaryConfig":
        if self.k > self.n_features:
            raise ValueError(f"k must be at most n_features {self.n_features}, got {self.k}")
        if self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup and decay are shares of the same run, got {self.warmup} + {self.decay} > 1"
            )
        if abs(sum(self.group_shares) - 1) > 1e-6 or min(self.group_shares) <= 0:
            raise ValueError(f"group_shares must be positive and sum to 1, got {self.group_shares}")
        return self


class TrainingConfig(DictionaryConfig):
    """Settings of one training run; the same settings and text give the same dictionaries."""

    model: str = Field(description="name, hub name or folder of the subject model")
    device: Literal["cpu", "cuda"] | None = Field(
        default=None, description="where to train; None for where the model is loaded, the CPU"
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None,
        description="weights of the model; None for as it is loaded, float32. Dictionaries train "
        "in float32",
    )
    text: str = Field(
        default="sample",
        description="`sample` (text sampled from the model), a .txt, .jsonl, .jsonl.gz, .jsonl.xz "
        "or .safetensors file, a folder of .txt files, or the hub name of a dataset",
    )
    sites: tuple[TrainedSite, ...] = Field(
        default=("mlp",),
        min_length=1,
        description="`mlp` trains transcoders, every other site SAEs",
    )
    layers: tuple[int, ...] | None = Field(
        default=None, description="blocks to train at; None for all"
    )
    cross_layer: bool = Field(
        default=False,
        description="train one cross-layer transcoder: the features of each layer write to the MLP "
        "outputs of all layers from their own to the last trained (site mlp; topk or jumprelu)",
    )
    n_text_tokens: int = Field(
        default=500_000, ge=1, description="most distinct tokens of text; what `sample` makes"
    )
    context: int = Field(default=128, ge=2, description="tokens a row of text, the first one BOS")
    n_eval_rows: int = Field(
        default=32, ge=1, description="rows of text kept out of training, for fidelity"
    )
    pack: bool = Field(
        default=True,
        description="join documents into full rows; if false, each begins a row of its own",
    )
    data_seed: int = Field(
        default=0, ge=0, description="seed of sampled text and of the order of tokens"
    )
    buffer_tokens: int = Field(
        default=200_000, ge=1, description="tokens whose activations are shuffled together"
    )
    activation_cache_gb: float = Field(
        default=6.0,
        ge=0,
        description="memory for keeping all activations, in GB; where they do not fit, those of "
        "buffer_tokens are kept and each epoch runs the model again. Changes no result",
    )
    model_batch_rows: int = Field(
        default=16, ge=1, description="rows a forward pass of the subject model, shuffled as one"
    )
    checkpoint_every: int = Field(
        default=500, ge=1, description="optimiser steps between checkpoints"
    )
    save_dtype: Literal["float32", "float16"] = Field(
        default="float32", description="weights in the files"
    )

    @model_validator(mode="after")
    def _check_sites(self) -> "TrainingConfig":
        if self.skip and set(self.sites) != {"mlp"}:
            raise ValueError(f"only transcoders (site mlp) have a skip, got sites {self.sites}")
        if self.architecture == "tied" and "mlp" in self.sites:
            raise ValueError(
                "a tied dictionary reconstructs what it reads, so it is an SAE; want sites without "
                f"mlp, got {self.sites}"
            )
        return self

    @model_validator(mode="after")
    def _check_cross_layer(self) -> "TrainingConfig":
        if not self.cross_layer:
            return self
        if self.sites != ("mlp",):
            raise ValueError(
                f"a cross-layer transcoder is trained at the site mlp alone, got sites {self.sites}"
            )
        if self.architecture not in ("topk", "jumprelu"):
            raise ValueError(
                "cross-layer transcoders train with the architecture topk or jumprelu, got "
                f"{self.architecture!r}"
            )
        if self.layers is not None:
            run = range(min(self.layers, default=0), max(self.layers, default=-1) + 1)
            if not self.layers or sorted(self.layers) != list(run):
                raise ValueError(
                    "the layers of a cross-layer transcoder are a run without gaps, each once, got "
                    f"{self.layers}; give all from the first to the last, or leave layers out"
                )
        return self
