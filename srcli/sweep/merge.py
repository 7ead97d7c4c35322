"""A sweep into the folder of an earlier one: the settings of both, where they make a grid together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from srcli.errors import UsageError
from srcli.protocol.restoring import Settings
from srcli.sweep.grid import value_name

Lists = dict[str, tuple[float, ...]]
"""Dial -> ascending values."""


@dataclass(frozen=True)
class Recorded:
    """A setting that the folder has a result of."""

    photo: str
    variant: int
    settings: Settings


def settings_in(key: str, dials: Sequence[str]) -> Settings:
    """Where the dials stand in a cell's key."""
    pairs = (part.partition("=") for part in key.split(","))
    return {name: float(value) for name, _, value in pairs if name in dials}


def merged_lists(asked: Mapping[str, Sequence[float]], defaults: Sequence[Settings], recorded: Sequence[Recorded]) -> Lists:
    """The values of each dial that this or an earlier run turns, of all runs together.

    Args:
        asked: dial -> values that this run asks for.
        defaults: of each variant, where its dials stand that this run does not ask for.
        recorded: what the folder has.
    """
    turned = dict.fromkeys(asked)
    for each in recorded:
        turned |= dict.fromkeys(name for name, value in each.settings.items() if value != defaults[each.variant].get(name))
    lists: Lists = {}
    for name in turned:
        own = asked[name] if name in asked else [dials[name] for dials in defaults if name in dials]
        earlier = (each.settings[name] for each in recorded if name in each.settings)
        lists[name] = tuple(sorted({*map(float, own), *earlier}))
    return lists


def no_grid(folder: Path, lists: Lists, lacking: int) -> UsageError:
    """The error that tells so.

    Args:
        folder: of the sweep.
        lists: what would make a grid.
        lacking: how many of its cells neither run has; 0 where these values would not help.
    """
    message = f"`{folder}` holds a sweep over other settings, which make no grid together with these"
    hint = "give another `--output`, or `--overwrite` to begin anew"
    if not lacking:
        return UsageError(message, hint)
    options = " ".join(f"--{name.replace('_', '-')} {','.join(map(value_name, values))}" for name, values in lists.items())
    return UsageError(f"{message}: {lacking} of them are in neither", f"`{options}` adds those that are missing; or {hint}")
