"""Flags built from a config: kinds, defaults, and what a wrong value is told."""

from typing import Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typer.testing import CliRunner

from case_studies.commands.errors import one_line, reporting_errors
from case_studies.commands.flags import JsonFlag, with_flags


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str = Field(description="given by place")
    n_steps: int = Field(3, ge=1, description="steps, in hundreds")
    layers: tuple[int, ...] | None = Field(None, description="which layers")
    kinds: tuple[Literal["a", "b"], ...] = Field(("a",), description="which kinds")
    words: tuple[str, ...] = Field((), description="any words")
    fast: bool = Field(False, description="whether to hurry")
    dtype: Literal["float32", "float16"] = Field("float32", description="of weights")

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.fast and self.n_steps > 5:
            raise ValueError("fast runs have at most 5 steps")
        return self


def _invoke(*arguments: str) -> tuple[int, str, str, list[Config]]:
    seen: list[Config] = []

    @with_flags(Config, "what")
    def run(config: Config, as_json: JsonFlag = False) -> None:
        """Do it."""
        seen.append(config)

    app = typer.Typer()
    app.command()(reporting_errors(run))
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr, seen


def test_defaults_are_the_config_s() -> None:
    code, _, _, seen = _invoke("word")
    assert code == 0
    assert seen == [Config(what="word")]


def test_every_kind_of_flag() -> None:
    flags = "--n-steps 5 --layers 0,2 --kinds b,a --words x,y --words z --fast --dtype float16"
    _, _, _, seen = _invoke("w", *flags.split())
    assert seen == [
        Config(
            what="w",
            n_steps=5,
            layers=(0, 2),
            kinds=("b", "a"),
            words=("x,y", "z"),
            fast=True,
            dtype="float16",
        )
    ]


def test_help_shows_descriptions_and_defaults() -> None:
    code, text, _, _ = _invoke("--help")
    assert code == 0
    for wanted in ("Do it.", "steps, in hundreds", "[default: 3]", "--fast", "float16", "--json"):
        assert wanted in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["w", "--n-steps", "0"], "--n-steps: Input should be greater than or equal to 1, got 0"),
        (["w", "--layers", "0,x"], "--layers: Input should be a valid integer"),
        (["w", "--kinds", "c"], "--kinds: Input should be 'a' or 'b'"),
        (["w", "--fast", "--n-steps", "9"], "Error: fast runs have at most 5 steps\n"),
    ],
)
def test_wrong_values_are_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    code, out, err, seen = _invoke(*arguments)
    assert (code, out, seen) == (2, "", [])
    assert message in err
    assert err.count("\n") == 1


def test_errors_of_the_system_name_the_file() -> None:
    assert one_line(OSError(28, "No space left on device", "graph.json")) == (
        "graph.json: No space left on device"
    )
    assert one_line(ValueError("two\n   lines")) == "two lines"
