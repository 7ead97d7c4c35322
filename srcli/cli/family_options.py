"""Options and commands that come from what the families declare: dials, adapters, stages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from srcli.cli.options import MODEL
from srcli.families import all_dials, all_slots, families
from srcli.protocol.declarations import Dial, StageOption

DIALS = "Dials"
_CAPTIONS = (
    "Where each photo's caption comes from: `sidecar` (photo.txt beside photo.jpg), a list file (path<tab>caption), or "
    "`model:REPO` to have them written."
)
Command = Callable[..., None]


@dataclass(frozen=True)
class _Extra:
    """One option that a declaration makes."""

    name: str
    type: Any
    option: Any
    """Of typer."""


def with_dials(*, lists: bool = False, panel: str = DIALS) -> Callable[[Command], Command]:
    """The command gets an option for every family's dials, and `dials`: those that were given, by name.

    Args:
        lists: values to sweep, as text, instead of one number.
        panel: of the help.
    """

    def extra(name: str, declared: Iterable[Dial]) -> _Extra:
        texts = "; ".join(dict.fromkeys(dial.about for dial in declared))
        rest = "several values: `0,0.5,1`, `0:1.5:0.25`, or both" if lists else "the model's default if not given"
        option = typer.Option(
            help=f"{texts[0].upper()}{texts[1:]}; {rest}.", rich_help_panel=panel, metavar="LIST" if lists else "N"
        )
        return _Extra(name, str if lists else float, option)

    return _offering("dials", [extra(name, declared) for name, declared in all_dials().items()])


def with_adapters(*, several: bool = False) -> Callable[[Command], Command]:
    """The command gets an option for every family's adapters, and `adapters`: the paths that were given, by name."""

    def extra(name: str) -> _Extra:
        again = " Repeat it to compare adapters." if several else ""
        words = f"Another {name} adapter than the model's: the output of `srcli train-{name}`, a checkpoint, or the file.{again}"
        option = typer.Option(help=words, rich_help_panel=MODEL, metavar="DIR")
        return _Extra(name, list[Path] if several else Path, option)

    return _offering("adapters", [extra(name) for name in all_slots()])


def with_stage_options(stage: str) -> Callable[[Command], Command]:
    """The command gets the options of a stage, of every family that has it, and `own`: those that were given, by name."""
    return _offering("own", [_stage_extra(option) for option in stage_options(stage).values()])


def with_needed_adapters(stage: str) -> Callable[[Command], Command]:
    """The command gets an option for each adapter that a stage builds on, and `adapters`: the paths that were given, by name."""
    names = dict.fromkeys(name for family in families().values() if stage in family.stages for name in family.stages[stage].needs)

    def extra(name: str) -> _Extra:
        words = f"The {name} adapter: output of `srcli train-{name}`, a checkpoint of it, or the file. It stays as it is."
        return _Extra(name, Path, typer.Option(help=words, rich_help_panel=MODEL, metavar="DIR", show_default=False))

    return _offering("adapters", [extra(name) for name in names])


def stage_options(stage: str) -> dict[str, StageOption]:
    """The options that the families' declarations give a stage's command."""
    declared = (family.stages[stage] for family in families().values() if stage in family.stages)
    options: dict[str, StageOption] = {}
    for each in declared:
        options |= {option.name: option for option in each.options}
        if each.captions:
            options["captions"] = StageOption("captions", _CAPTIONS, "", str, panel="Prompts", only_with=each.captions)
    return options


def _stage_extra(option: StageOption) -> _Extra:
    kind: Any = option.kind if option.count == 1 else tuple.__class_getitem__((option.kind,) * option.count)
    name = f"--{option.name.replace('_', '-')}"
    names = [f"{name}/--no-{name[2:]}"] if option.kind is bool else [name]
    metavar = None if option.kind is bool else " ".join(["N"] * option.count) if option.kind is not str else "TEXT"
    made = typer.Option(*names, help=option.about, rich_help_panel=option.panel, show_default=False, metavar=metavar)
    return _Extra(option.name, kind, made)


def _offering(target: str, extras: Iterable[_Extra]) -> Callable[[Command], Command]:
    """Put options in the place of the parameter `target`, which gets a dictionary of those that are given."""
    made = list(extras)

    def decorate(command: Command) -> Command:
        def called(**given: Any) -> None:
            chosen = {each.name: value for each in made if (value := given.pop(each.name)) not in (None, [])}
            command(**given, **{target: chosen})

        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.name == target:
                parameters += [_parameter(each) for each in made]
            else:
                parameters.append(parameter.replace(annotation=hints.get(parameter.name, parameter.annotation)))
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return called

    return decorate


def _parameter(extra: _Extra) -> inspect.Parameter:
    kind: Any = extra.type
    annotation = Annotated[kind | None, extra.option]
    return inspect.Parameter(extra.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)
