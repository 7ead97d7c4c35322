"""What all commands have in common: `--quiet` and `--debug` after their names, help without noise, one voice for errors."""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from srcli.cli.stopping import exit_code, stopping_in_order, word
from srcli.console import console, set_up_logging
from srcli.errors import UsageError

ParserError: type[Exception] = typer.BadParameter.__bases__[0]
"""Click's `UsageError`, of which newer versions of typer hold a copy of their own under a private name."""

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show warnings, errors and results only.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show details, and where an error arose.")]
_PHRASES = (
    (r"^Got unexpected extra arguments?(?:\(s\))? \((.*)\)$", r"more arguments than the command takes: `\1`"),
    (r"(?<=option: )(\S+)", r"`\1`"),
    (r"(?<!\w)'([^']*)'(?!\w)", r"`\1`"),
)
"""Click's words, and ours."""
REDO_CHANGED = "--overwrite-changed"
_WITH_A_VALUE = {"--overwrite=changed": REDO_CHANGED}
"""Flags that may have a value, which the parser does not know: as typed, and as flags of their own."""
_HIDDEN = ("install_completion", "show_completion")


def add_command(
    app: typer.Typer, name: str, function: Callable[..., None], panel: str | None = None, help: str | None = None
) -> None:
    """Make `function` the command `name` of `app`, with `--quiet` and `--debug`.

    The help lists it under `panel`, and is its docstring if not given.
    """
    app.command(name, cls=_Command, rich_help_panel=panel, help=help)(_with_voice(function))


def _with_voice(function: Callable[..., None]) -> Callable[..., None]:
    """The same function with two options more, which it does not see."""

    @functools.wraps(function)
    def command(*, quiet: bool, debug: bool, **given: Any) -> None:
        if quiet or debug:
            set_up_logging(debug=debug or logging.getLogger("srcli").isEnabledFor(logging.DEBUG), quiet=quiet)
        with stopping_in_order():
            try:
                function(**given)
            except KeyboardInterrupt:
                console.print(word())
                raise typer.Exit(exit_code()) from None

    signature = inspect.signature(function, eval_str=True)
    added = {"quiet": Quiet, "debug": Debug}
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=added[name]) for name in added]
    command.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # type: ignore[attr-defined]
    command.__annotations__ = function.__annotations__ | added
    return command


# Help ----------------------------------------------------------------------------------------------------------------


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> Any:
        return _plain(super().get_params(ctx), ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        args = [_WITH_A_VALUE.get(each, each) if i < end else each for i, each in enumerate(args)]
        try:
            return super().parse_args(ctx, args)
        except ParserError as fault:
            fault.ctx = ctx  # type: ignore[attr-defined]  # not all know whose options they are about
            raise


class Group(TyperGroup):
    """Commands of commands, whose help is as plain as theirs."""

    def get_params(self, ctx: Any) -> Any:
        return _plain(super().get_params(ctx), ctx)


def _plain(params: list[Any], ctx: Any) -> list[Any]:
    """No types beside arguments and flags, `INT` for `<int>`, and no options that only shells need."""
    for param in params:
        param.hidden = getattr(param, "hidden", False) or param.name in _HIDDEN
        if hasattr(param, "display_type_rich"):  # older versions of typer show types so by themselves
            shown = "" if param.param_type_name == "argument" or param.is_flag else param.display_type_rich(ctx)
            word = shown.strip("<>").replace("str", "text").upper() if param.metavar is None else shown
            param.display_type_rich = functools.partial(_same, word)
    return params


def _same(word: str, ctx: Any) -> str:
    return word


# Errors --------------------------------------------------------------------------------------------------------------


def in_our_words(fault: Any) -> UsageError:
    """What the parser found wrong, as we say it: `missing option `--output` / `-o``, with the command's help as the hint."""
    likely = getattr(fault, "possibilities", None) or ()
    message, _, guess = (fault.message if likely else fault.format_message()).rstrip(".?").partition(". Did you mean ")
    for pattern, ours in _PHRASES:
        message = re.sub(pattern, ours, message)
    if hasattr(fault.__cause__, "errors"):  # pydantic's, which say neither the option nor its value as it was typed
        found = fault.__cause__.errors()[0]
        what = found["msg"].partition(",")[0].replace("Input", "it")
        message = f"`{max(fault.param.opts, key=len)} {found['input']}` cannot be used: {what}"
    guess = guess.replace("'", "`") or ", ".join(f"`{name}`" for name in likely)
    help = f"see `{fault.ctx.command_path if fault.ctx else 'srcli'} --help`"
    return UsageError(message[:1].lower() + message[1:], f"did you mean {guess}? Else {help}" if guess else help)
