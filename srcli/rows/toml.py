"""TOML tables, for `spec.py`: read with every fault noted."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from srcli.config.toml_file import TomlError, read_toml

_KINDS = {str: "text in quotes", int: "a whole number", float: "a number", dict: "a table", list: "a list"}
T = TypeVar("T")


def parse(file: Path, faults: list[str]) -> dict[str, Any]:
    """The content of a file; empty, with a fault noted, where it cannot be read."""
    try:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise TomlError("neither pipe nor device will do, since it is read more than once")
        return read_toml(file)
    except TomlError as fault:
        faults.append(f"`{file}`: {fault}")
    except OSError as fault:
        faults.append(f"`{file}`: {fault.strerror or fault}")
    return {}


@dataclass
class Table:
    """A TOML table that hands out checked values and notes every fault, as itself or as one of its keys."""

    values: Any
    root: str
    """The file and row, for messages."""
    faults: list[str]
    path: str = ""
    """Where the table stands in the row: empty, or keys joined by points."""
    sound: bool = True
    """Whether nothing was wrong with it so far."""
    _known: list[str] = field(default_factory=list)
    _hollow: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.values, Mapping):
            self.fault(f"must be a table, not `{self.values!r}`")
            self.values, self._hollow = {}, True

    def fault(self, words: str) -> None:
        self.sound = False
        self.faults.append(f"{self.root}{f', `{self.path}`' if self.path else ''}: {words}")

    def know(self, key: str) -> None:
        """The key may be there."""
        self._known.append(key)

    def has(self, key: str) -> bool:
        return key in self.values

    def find(self, key: str, kind: type[T]) -> T | None:
        """The value of a key that may be missing."""
        self._known.append(key)
        value = self.values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and kind is float:
            value = float(value)
        if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
            return value
        self.fault(f"`{key}` must be {_KINDS[kind]}, not `{value!r}`")
        return None

    def get(self, key: str, default: T) -> T:
        value = self.find(key, type(default))
        return default if value is None else value

    def need(self, key: str, stand_in: T) -> T:
        if not self.has(key) and not self._hollow:
            self.fault(f"`{key}` is missing")
        return self.get(key, stand_in)

    def number(self, key: str, default: int | None, least: int, most: float = float("inf")) -> int:
        """A whole number from `least` to `most`; required if the default is None."""
        value = self.need(key, least) if default is None else self.get(key, default)
        if not least <= value <= most:
            self.fault(f"`{key}` must be {least}{f' to {most}' if most < float('inf') else ' or more'}, not {value}")
        return value

    def choice(self, key: str, default: str | None, choices: tuple[str, ...]) -> str:
        """One of `choices`; required if the default is None."""
        value = self.need(key, "") if default is None else self.get(key, default)
        if value not in choices and isinstance(self.values.get(key), str):
            self.fault(f"unknown `{key}` `{value}`{_meant(value, choices)}")
        return value

    def table(self, key: str, *, required: bool = False) -> Table:
        """The table at a key; an empty one, not sound, where it is missing or something else."""
        values: dict[str, Any] = self.need(key, {}) if required else self.get(key, {})
        path = f"{self.path}.{key}" if self.path else key
        there = isinstance(self.values.get(key), Mapping)
        return Table(values, self.root, self.faults, path, sound=there, _hollow=not there)

    def close(self) -> None:
        """Note the keys that nobody asked for."""
        self._known = list(dict.fromkeys(self._known))
        for key in self.values:
            if key not in self._known:
                self.fault(f"unknown key `{key}`{_meant(key, self._known)}")


def _meant(word: str, words: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, words, 1, 0.5)
    return f", did you mean `{near[0]}`?" if near else f", known are {', '.join(f'`{known}`' for known in words) or 'none'}"
