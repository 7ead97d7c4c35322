"""What a sweep has done so far: a line per cell, so that a killed sweep goes on with the missing ones.

`cells.jsonl` has the cells; `made_with.json` the settings that they were made with, under their digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from srcli.disk import cannot_write, write_text
from srcli.errors import UsageError, joined_faults

CELLS_FILE = "cells.jsonl"
SETTINGS_FILE = "made_with.json"
_SHOWN = 8  # differing settings in a message


@dataclass(frozen=True)
class Record:
    """One finished cell of one photo."""

    photo: str
    """Its name."""
    cell: str
    """Its key."""
    made_with: str
    """Digest of the settings."""
    input: str
    """Digest of the input's file."""
    hq: str
    """Digest of the reference's file; empty without one."""
    metrics: Mapping[str, float]
    seconds: float
    """Of the model and the files, without what cells share."""
    crops: tuple[str, ...] = ()
    """Those that were cut out of this very result: a file of that name alone may be an older one's."""
    image: str = ""
    """The full image of this result, below the folder; empty where none was kept."""
    quality: int = 0
    """That it was written with."""

    def of_same(self, other: Record) -> bool:
        """Whether both are made of the same files with the same settings."""
        return self.of_same_picture(other) and self.hq == other.hq

    def of_same_picture(self, other: Record) -> bool:
        """The same without the reference, which decides no pixel."""
        return (self.made_with, self.input) == (other.made_with, other.input)

    def other_files(self, input: str, hq: str) -> bool:
        """Whether the input or a reference that it had is another now; one that comes or goes is no change of these."""
        return self.input != input or bool(self.hq and hq and self.hq != hq)

    def as_line(self) -> str:
        """JSON; infinity (PSNR of equal pictures) is null."""
        content = {**self.__dict__, "metrics": {name: _finite(value) for name, value in self.metrics.items()}}
        return json.dumps(content, allow_nan=False)

    @classmethod
    def from_line(cls, line: str) -> Record | None:
        """None for a line that is none of ours: a kill may cut the last one."""
        try:
            content = json.loads(line)
            values = content["metrics"].items()
            metrics = {str(name): math.inf if value is None else float(value) for name, value in values}
            known = {key: content[key] for key in cls.__dataclass_fields__ if key in content}
            return replace(cls(**known), metrics=metrics, crops=tuple(map(str, content.get("crops", ()))))
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


class Records:
    """The records of one output folder.

    Args:
        folder: made if it does not exist.
        anew: forget what is recorded, and delete the full images among it.

    Raises:
        UsageError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, anew: bool = False) -> None:
        self._file = folder / CELLS_FILE
        self._settings_file = folder / SETTINGS_FILE
        self._known: dict[tuple[str, str], Record] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._load()
            if anew:
                self._forget()
        except OSError as fault:
            reason = fault.strerror or fault
            raise UsageError(f"cannot write into `{folder}`: {reason}", "give another `--output`") from fault

    def get(self, photo: str, cell: str) -> Record | None:
        """The last record of a cell."""
        return self._known.get((photo, cell))

    def add(self, record: Record) -> None:
        """Record a cell whose files are written; it survives whatever comes after.

        Raises:
            SrcliError: it cannot be written.
        """
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(record.as_line() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as fault:
            raise cannot_write(self._file, fault) from fault
        self._known[record.photo, record.cell] = record

    def delete_image(self, record: Record) -> None:
        """Delete the full image of a result that counts no more: whoever takes the folder would take it for one that does.

        Raises:
            OSError: it cannot be deleted.
        """
        path = self._file.parent / record.image
        if record.image and path.resolve().is_relative_to(self._file.parent.resolve()):
            path.unlink(missing_ok=True)

    def use(self, settings: Mapping[str, Any], cells: Iterable[tuple[str, str]]) -> str:
        """Say what `cells`, each (photo, cell), will be made with.

        Returns:
            the digest for `Record.made_with`.

        Raises:
            UsageError: one of them is there and was made with other settings; it names these.
        """
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        others = {record.made_with for cell in cells if (record := self._known.get(cell)) and record.made_with != digest}
        if others:
            before = self._settings.get(sorted(others)[0], {})
            names = sorted(name for name in {*settings, *before} if settings.get(name) != before.get(name))
            lines = [f"`{name}` was {_shown(before.get(name))}, is {_shown(settings.get(name))}" for name in names[:_SHOWN]]
            message = joined_faults(f"`{self._file.parent}` holds a sweep that was made with other settings:", lines)
            raise UsageError(message, "give another `--output`, or `--overwrite` to begin anew")
        if digest not in self._settings:
            self._settings[digest] = dict(settings)
            write_text(self._settings_file, json.dumps(self._settings, indent=2) + "\n")
        return digest

    def _forget(self) -> None:
        self._file.unlink(missing_ok=True)
        self._settings_file.unlink(missing_ok=True)
        for record in self._known.values():
            self.delete_image(record)
        self._known, self._settings = {}, {}

    def _load(self) -> None:
        if self._settings_file.exists():
            with contextlib.suppress(ValueError):  # damaged: records still tell by their digests what was made otherwise
                self._settings = json.loads(self._settings_file.read_text(encoding="utf-8"))
        if not self._file.exists():
            return
        content = self._file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:  # a kill cut the last line: the next one must not be glued to it
            os.truncate(self._file, len(whole))
        for line in whole.decode("utf-8", "replace").splitlines():
            record = Record.from_line(line)
            if record is not None:
                self._known[record.photo, record.cell] = record


def _shown(value: Any) -> str:
    return "not given" if value is None else f"`{value}`"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
