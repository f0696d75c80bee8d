"""Bad input: one line on stderr and exit code 2; with `--debug`, the traceback as well."""

import errno
import functools
import inspect
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

__all__ = ["one_line", "reporting_errors"]

BAD_INPUT = 2


def reporting_errors(function: Callable[..., None]) -> Callable[..., None]:
    """`function` as a command that has a flag `--debug` and exits with 2 on bad input.

    Bad input is what our own code raises as ValueError, and the system as OSError: no such file,
    no permission, a full disk.
    """

    @functools.wraps(function)
    def command(*, debug: bool, **values: object) -> None:
        try:
            function(**values)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of our output has left; that is no error of the input
            if debug:
                traceback.print_exc()
            typer.echo(f"Error: {one_line(error)}", err=True)
            raise typer.Exit(BAD_INPUT) from None

    kind = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
    flag = inspect.Parameter(
        "debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind
    )
    signature = inspect.signature(function)
    parameters = [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in signature.parameters.values()
    ]
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*parameters, flag]
    )
    command.__annotations__ = {**function.__annotations__, "debug": kind}
    return command


def one_line(error: ValueError | OSError) -> str:
    """The message of `error` on one line; for a system error, what went wrong and where.

    Example:
        >>> one_line(OSError(28, "No space left on device", "out/graph.json"))
        'out/graph.json: No space left on device'
    """
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
