"""What is compared: methods, and the questions they answer."""

from dataclasses import dataclass, field
from typing import Any

from case_studies.comparisons.config import ComparisonConfig, Question

__all__ = ["QUESTIONS", "Comparison", "Method", "Trial", "middle_level", "trials", "tuning_trials"]


@dataclass(frozen=True)
class Method:
    """One way to get a dictionary.

    Args:
        name: for tables and legends.
        site: `mlp` for a transcoder, else where the SAE sits.
        settings: of its `DictionaryConfig`, apart from sparsity and size.
    """

    name: str
    site: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A question.

    Args:
        title: for headings.
        methods: each is compared with the first.
        claim: what the papers say, in one sentence, with its source.
    """

    title: str
    methods: tuple[Method, ...]
    claim: str


_TRANSCODER = Method("transcoder", "mlp", {"architecture": "topk"})
_JUMPRELU = Method("JumpReLU, L0", "resid_post", {"architecture": "jumprelu"})

QUESTIONS: dict[Question, Comparison] = {
    "sites": Comparison(
        "Transcoder against SAE on the MLP",
        (
            _TRANSCODER,
            Method("skip transcoder", "mlp", {"architecture": "topk", "skip": True}),
            Method("SAE on the MLP's output", "mlp_out", {"architecture": "topk"}),
        ),
        "Transcoders are on par with or better than SAEs on the MLP's output at equal L0 "
        "(Dunefsky et al. 2024); reversed on Gemma 2 2B by a later report.",
    ),
    "architectures": Comparison(
        "JumpReLU against Gated and TopK",
        (
            _JUMPRELU,
            Method("Gated", "resid_post", {"architecture": "gated", "unit_decoder": True}),
            Method("TopK", "resid_post", {"architecture": "topk"}),
        ),
        "JumpReLU loses less than Gated at every L0, and at most as much as TopK "
        "(Rajamanoharan et al. 2024, without seeds).",
    ),
    "two-by-two": Comparison(
        "{ReLU, JumpReLU} x {L1, L0}",
        (
            _JUMPRELU,
            Method("JumpReLU, L1", "resid_post", {"architecture": "jumprelu", "penalty": "l1"}),
            Method("ReLU, L0", "resid_post", {"architecture": "relu", "penalty": "l0"}),
            Method("ReLU, L1", "resid_post", {"architecture": "relu"}),
        ),
        "Both the jump and the L0 penalty are needed (Rajamanoharan et al. 2024).",
    ),
    "size": Comparison(
        "Dictionary size",
        (_TRANSCODER,),
        "Larger dictionaries are more faithful at equal L0, with diminishing returns.",
    ),
}


@dataclass(frozen=True)
class Trial:
    """One dictionary to train.

    Args:
        level: wanted L0.
    """

    method: Method
    n_features: int
    level: int
    seed: int
    lr: float

    @property
    def key(self) -> str:
        """A name that is this trial's alone."""
        place = f"F {self.n_features} | k {self.level} | seed {self.seed} | lr {self.lr:g}"
        return f"{self.method.name} | {place}"


def trials(config: ComparisonConfig, seed: int, learning_rate: dict[str, float]) -> list[Trial]:
    """Every dictionary that the questions need with one seed, each once."""
    middle = middle_level(config)
    found: dict[str, Trial] = {}
    for question in config.questions:
        for method in QUESTIONS[question].methods:
            lr = learning_rate[method.name]
            if question == "size":
                made = [Trial(method, size, middle, seed, lr) for size in config.sizes]
            else:
                made = [Trial(method, config.n_features, k, seed, lr) for k in config.levels]
            found |= {trial.key: trial for trial in made}
    return list(found.values())


def tuning_trials(config: ComparisonConfig, seed: int) -> list[Trial]:
    """Every method at its middle level with every learning rate."""
    methods = {m.name: m for q in config.questions for m in QUESTIONS[q].methods}
    return [
        Trial(method, config.n_features, middle_level(config), seed, lr)
        for method in methods.values()
        for lr in config.learning_rates
    ]


def middle_level(config: ComparisonConfig) -> int:
    """The level between as many smaller as larger ones."""
    return sorted(config.levels)[len(config.levels) // 2]
