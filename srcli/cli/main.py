"""The command `srcli`: its sub-commands, and the one place where errors are shown."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from typing import Annotated

import typer

from srcli import __version__
from srcli.cli import eval as eval_command
from srcli.cli import models, status, sweep, train, upscale
from srcli.cli.app import Debug, Group, ParserError, Quiet, add_command, in_our_words
from srcli.console import console, set_up_logging, show_error
from srcli.disk import first_line
from srcli.errors import OutOfMemoryError, SrcliError, says_no_memory
from srcli.families import all_stages
from srcli.images import telling

USE = "Use"
MEASURE = "Measure"
TRAIN = "Train"

app = typer.Typer(
    cls=Group,
    help="Upscale photos in batches with one-step diffusion super-resolution.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
add_command(app, "upscale", upscale.upscale, USE)
add_command(app, "status", status.status, USE)
add_command(app, "eval", eval_command.evaluate, MEASURE)
add_command(app, "sweep", sweep.sweep, MEASURE)
for stage in all_stages():
    add_command(app, f"train-{stage}", train.training_command(stage), TRAIN)
app.add_typer(models.app, name="models", rich_help_panel=USE)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"srcli {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    quiet: Quiet = False,
    debug: Debug = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    set_up_logging(debug=debug, quiet=quiet)
    telling.forget()


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 some failed, 2 wrong usage, 130 interrupted, 143 terminated."""
    try:
        code = app(prog_name="srcli", standalone_mode=False)
    except SrcliError as error:
        if logging.getLogger("srcli").isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        code = _tell(error)
    except ParserError as fault:
        wrong = in_our_words(fault)
        code = _tell(wrong) if wrong.message else wrong.exit_code  # no words: none were given, and the help was shown
    except typer.Abort:
        console.print("aborted")
        code = 1
    except Exception as fault:
        if not says_no_memory(fault):
            raise
        if logging.getLogger("srcli").isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        code = _tell(_memory_ended(fault))
    sys.exit(code)


def _memory_ended(fault: Exception) -> SrcliError:
    """The error where memory runs out before there is a picture or a step to tell it of."""
    hint = "close other programs, or raise the limit of this one's memory: `ulimit -v`, the batch job's, or the container's"
    return OutOfMemoryError(f"out of memory: {first_line(fault)}", hint)


def _tell(error: SrcliError) -> int:
    """Show an error, to programs too where they wait for JSON; returns its exit code."""
    show_error(error)
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": {"message": error.message, "hint": error.hint}}))
    return error.exit_code
