"""What `circuits attribute` and `circuits edge` are told alike: a prompt and what to explain."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from attribution import FeatureTarget, LogitDifference, TopLogits
from circuits.plausibility import CHECK
from circuits.sites import DICTIONARY_SITES
from circuits.spliced import HeldMode
from circuits.training.config import TrainedSite

__all__ = ["ExplainedConfig", "Unit", "feature_place"]

Unit = Literal["logits", "logit minus mean", "pre-activation"]


class ExplainedConfig(BaseModel):
    """A prompt, a model with dictionaries, and what of it is explained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(description="text to explain the model on")
    model: str = Field("tiny", description="subject model: a name or a path")
    dictionaries: str = Field(
        default="tiny", description="a published set, or a file or folder of dictionaries"
    )
    check: bool = Field(default=True, description=CHECK)
    sites: tuple[TrainedSite, ...] = Field(("mlp",), description="kinds of dictionaries to use")
    layers: tuple[int, ...] | None = Field(None, description="layers to use; all if not given")
    mode: HeldMode = Field(
        "exact",
        description="`exact` explains the model as it is, with errors; `replace` explains it as it "
        "runs on what its dictionaries reconstruct, where errors are zero but at the first token",
    )
    target_correct: tuple[str, ...] = Field(
        (), description="token as it continues the prompt, space included; none: the likeliest"
    )
    target_wrong: tuple[str, ...] = Field((), description="token whose logit is taken off")
    target_feature: str | None = Field(
        None, description="instead of a token: a feature such as mlp.2.345, its pre-activation"
    )
    target_pos: int = Field(
        -1, description="token position of the target; negative ones count from the end"
    )

    @property
    def explained(self) -> LogitDifference | FeatureTarget | TopLogits:
        """The feature or the logit difference asked for, or the likeliest tokens.

        Raises:
            ValueError: if there is something wrong but nothing correct, or both kinds of target.
        """
        if self.target_feature is not None:
            if self.target_correct or self.target_wrong:
                raise ValueError(
                    "--target-feature explains a feature, --target-correct and --target-wrong "
                    "explain tokens; give one or the other"
                )
            site, layer, index = feature_place(self.target_feature)
            return FeatureTarget(f"{site}.{layer}", index, self.target_pos)
        if self.target_correct:
            return LogitDifference(self.target_correct, self.target_wrong, self.target_pos)
        if self.target_wrong:
            raise ValueError("--target-wrong needs a --target-correct to be taken from; give both")
        return TopLogits(pos=self.target_pos)

    @property
    def unit(self) -> Unit:
        """What the value of a target, and an edge into it, is counted in."""
        if self.target_feature is not None:
            return "pre-activation"
        return "logits" if self.target_correct else "logit minus mean"


def feature_place(text: str) -> tuple[str, int, int]:
    """Site, layer and index of a feature's name.

    Raises:
        ValueError: if `text` is not of the form SITE.LAYER.INDEX.

    Example:
        >>> feature_place("mlp.2.345")
        ('mlp', 2, 345)
    """
    site, *numbers = text.split(".")
    known = ("mlp", *DICTIONARY_SITES)
    if site not in known or len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
        raise ValueError(
            f"want a feature as SITE.LAYER.INDEX, such as mlp.2.345, with a site of "
            f"{', '.join(known)}; got {text!r}"
        )
    return site, int(numbers[0]), int(numbers[1])
