"""The command `srcli`: its sub-commands, and the one place where errors are shown."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from srcli import __version__
from srcli.cli import eval as eval_command
from srcli.cli import models, sweep, train, upscale
from srcli.console import console, set_up_logging, show_error
from srcli.errors import SrcliError
from srcli.families import all_stages

app = typer.Typer(
    help="Upscale photos in batches with one-step diffusion super-resolution.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("upscale")(upscale.upscale)
for stage in all_stages():
    app.command(f"train-{stage}")(train.training_command(stage))
app.command("eval")(eval_command.evaluate)
app.command("sweep")(sweep.sweep)
app.add_typer(models.app, name="models")

_debug = False


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"srcli {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and details.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Show warnings and errors only.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    global _debug
    _debug = debug
    set_up_logging(debug=debug, quiet=quiet)


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 some failed, 2 wrong usage, 130 interrupted."""
    try:
        app(prog_name="srcli")
    except SrcliError as error:
        if _debug:
            raise
        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print("interrupted")
        sys.exit(130)
