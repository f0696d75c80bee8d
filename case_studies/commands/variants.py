"""Variants of a training run, as the command line writes them: `small: k=16,architecture=relu`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from circuits.training import TrainingConfig

__all__ = ["parse_variants"]

_WORDS = ("architecture", "penalty")


def parse_variants(base: TrainingConfig, texts: Sequence[str]) -> dict[str, TrainingConfig]:
    """A configuration for each text: `base` with the settings that the text names.

    Args:
        base: all other settings.
        texts: `SETTING=VALUE,...`, with `NAME:` in front for a name of one's own. Several values of
            one setting have plus signs between them: `layers=0+1`.

    Raises:
        ValueError: if a setting is unknown, does not fit, or two variants have one name.

    Example:
        >>> base = TrainingConfig(model="tiny")
        >>> [*parse_variants(base, ["k=16", "architecture=jumprelu,k=64", "few: n_features=512"])]
        ['k16', 'jumprelu-k64', 'few']
    """
    variants: dict[str, TrainingConfig] = {}
    for text in texts:
        own_name, _, settings = text.rpartition(":")
        pairs = _pairs(settings, text)
        name = own_name.strip() or _name(pairs)
        if name in variants:
            raise ValueError(f"--variant: two are called {name!r}; write OTHER_NAME: before one")
        variants[name] = _with(base, pairs, text)
    return variants


def _pairs(settings: str, text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in settings.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        name = name.replace("-", "_")
        if not (name and equals and value):
            raise ValueError(f"--variant: want SETTING=VALUE,... with NAME: in front, got {text!r}")
        if name not in TrainingConfig.model_fields:
            raise ValueError(
                f"--variant: there is no setting {name!r} in {text!r}; settings are the flags of "
                "`circuits train`, such as k, architecture or n_features"
            )
        pairs[name] = value
    return pairs


def _name(pairs: Mapping[str, str]) -> str:
    """`k16`, `skip-true`, `layers0+1`; architectures and penalties stand alone."""

    def part(name: str, value: str) -> str:
        if name in _WORDS:
            return value
        return f"{name}-{value}" if value[0].isalpha() else name + value

    joined = "-".join(part(name, value) for name, value in pairs.items())
    return re.sub(r"[^\w.+-]", "-", joined)


def _with(base: TrainingConfig, pairs: Mapping[str, str], text: str) -> TrainingConfig:
    changes = {name: _value(name, value) for name, value in pairs.items()}
    try:
        return TrainingConfig(**{**base.model_dump(), **changes})
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))} {fault['msg']}".strip() for fault in error.errors()
        )
        raise ValueError(f"--variant {text!r}: {faults}") from error


def _value(name: str, value: str) -> Any:
    """What pydantic makes the setting of: `none` is None, and plus signs separate several."""
    if value.lower() == "none":
        return None
    kind = TrainingConfig.model_fields[name].annotation
    several = any(get_origin(part) is tuple for part in (kind, *get_args(kind)))
    return tuple(value.split("+")) if several else value
