"""What decides how dictionaries are trained: everything needed to repeat a run."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["TrainedSite", "TrainingConfig"]

TrainedSite = Literal["mlp", "resid_pre", "resid_post", "attn_out", "mlp_out"]


class TrainingConfig(BaseModel):
    """Settings of one training run; the same settings and text give the same dictionaries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="name, hub name or folder of the subject model")
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
    n_features: int = Field(default=2304, ge=1, description="features a dictionary")
    activation: Literal["topk", "jumprelu"] = Field(
        default="topk", description="activation function"
    )
    k: int = Field(default=32, ge=1, description="features a token: TopK's k, JumpReLU's target L0")
    skip: bool = Field(default=False, description="whether transcoders get a linear skip")

    n_tokens: int = Field(
        default=4_000_000, ge=1, description="tokens presented; texts repeat if shorter"
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

    batch_size: int = Field(default=2048, ge=1, description="tokens an optimiser step")
    lr: float = Field(default=1e-3, gt=0, description="peak Adam learning rate")
    warmup: float = Field(default=0.02, ge=0, le=1, description="share of steps of linear warm-up")
    decay: float = Field(
        default=0.5, ge=0, le=1, description="share of steps of final linear decay to 0"
    )
    aux_k: int | None = Field(
        default=None,
        ge=1,
        description="dead features AuxK uses a token; None for half the target's width",
    )
    aux_coefficient: float = Field(default=1 / 32, ge=0, description="weight of the AuxK loss")
    dead_after_tokens: int = Field(
        default=100_000,
        ge=1,
        description="tokens without firing after which a feature counts as dead",
    )
    l0_coefficient: float = Field(
        default=0.3,
        ge=0,
        description="JumpReLU: weight of (L0 / k - 1)^2, in units of the target's variance",
    )
    l0_warmup: float = Field(
        default=0.3, ge=0, le=1, description="share of steps that weight grows over"
    )
    bandwidth: float = Field(
        default=0.1,
        gt=0,
        description="JumpReLU: width of the kernel, in standard deviations of inputs",
    )

    buffer_tokens: int = Field(
        default=200_000,
        ge=1,
        description="tokens shuffled together when activations do not fit in memory",
    )
    activation_cache_gb: float = Field(
        default=6.0,
        ge=0,
        description="memory for keeping all activations over epochs, in GB; 0 for never",
    )
    model_batch_rows: int = Field(
        default=16, ge=1, description="rows a forward pass of the subject model"
    )
    checkpoint_every: int = Field(
        default=500, ge=1, description="optimiser steps between checkpoints"
    )
    save_dtype: Literal["float32", "float16"] = Field(
        default="float32", description="weights in the files"
    )
    seed: int = Field(
        default=0, ge=0, description="seed of sampled text, order of tokens and weights"
    )

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return max(1, self.n_tokens // self.batch_size)

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if self.k > self.n_features:
            raise ValueError(f"k must be at most n_features {self.n_features}, got {self.k}")
        if self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup and decay are shares of the same run, got {self.warmup} + {self.decay} > 1"
            )
        if self.skip and set(self.sites) != {"mlp"}:
            raise ValueError(f"only transcoders (site mlp) have a skip, got sites {self.sites}")
        return self
