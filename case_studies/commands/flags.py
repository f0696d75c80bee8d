"""Command-line flags built from a pydantic config, so that names, defaults and help live once."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

__all__ = ["JsonFlag", "OutFlag", "with_flags"]

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
OutFlag = Annotated[
    Path | None, typer.Option("--out", file_okay=False, help="Folder for what the run leaves.")
]


def with_flags(
    config: type[BaseModel], *arguments: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn `run(config, **others)` into a command with one flag for each field of the config.

    A tuple of numbers or of choices is one flag with commas (`--layers 0,1`), a tuple of strings
    a flag given several times.

    Args:
        config: its fields' descriptions become the help, its defaults the defaults.
        arguments: fields that are given by place, in this order, not as flags.
    """

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            settings = {name: values.pop(name) for name in config.model_fields}
            run(_validated(config, settings, arguments), **values)

        names = [*arguments, *(name for name in config.model_fields if name not in arguments)]
        parameters = [_parameter(n, config.model_fields[n], n in arguments) for n in names]
        own = list(inspect.signature(run).parameters.values())[1:]
        parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = run.__doc__
        return command

    return decorate


def _parameter(name: str, field: FieldInfo, by_place: bool) -> inspect.Parameter:
    """One field as a keyword parameter that Typer understands."""
    declare = typer.Argument if by_place else typer.Option
    kind, default = field.annotation, inspect.Parameter.empty
    if not field.is_required():
        default = field.get_default(call_default_factory=True)
    help_text = field.description or ""
    if _is_listed(kind):
        kind = str if field.is_required() or default is not None else str | None
        default = ",".join(map(str, default)) if isinstance(default, tuple) else default
        help_text += " (commas between)"
    elif get_origin(kind) is tuple:
        kind = list[str]
        default = list(default) if isinstance(default, tuple) else default
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, declare(help=help_text)],  # type: ignore[valid-type]
    )


def _is_listed(kind: Any) -> bool:
    """Whether `kind` is a tuple of whole numbers or choices, perhaps optional."""
    if get_origin(kind) in (Union, UnionType):
        return any(_is_listed(part) for part in get_args(kind) if part is not NoneType)
    item = get_args(kind)[0] if get_origin(kind) is tuple else None
    return item is int or get_origin(item) is Literal


def _validated(
    config: type[BaseModel], settings: dict[str, Any], arguments: tuple[str, ...]
) -> BaseModel:
    """The config from raw flags.

    Raises:
        ValueError: naming the flags that do not fit.
    """
    for name, value in settings.items():
        if _is_listed(config.model_fields[name].annotation) and isinstance(value, str):
            settings[name] = tuple(part.strip() for part in value.split(",") if part.strip())
    try:
        return config(**settings)
    except ValidationError as error:
        faults = (_fault(fault, arguments) for fault in error.errors())
        raise ValueError("; ".join(faults)) from error


def _fault(fault: Any, arguments: tuple[str, ...]) -> str:
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    name = str(fault["loc"][0])
    flag = name.upper() if name in arguments else "--" + name.replace("_", "-")
    return f"{flag}: {message}, got {fault['input']!r}"
