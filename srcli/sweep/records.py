"""What a sweep has done so far: a line per cell, so that a killed sweep goes on with the missing ones.

`cells.jsonl` has the cells; `made_with.json` the settings that they were made with, under their digest. Older sweeps named
cells by the swept dials alone, and had where the others stood among the settings: such a folder is brought up to date.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from srcli.config.rule import PLAIN
from srcli.disk import cannot_write, write_text
from srcli.errors import UsageError, joined_faults
from srcli.sweep.grid import cell_key
from srcli.sweep.views import view_files

CELLS_FILE = "cells.jsonl"
SETTINGS_FILE = "made_with.json"
_SHOWN = 8  # differing settings in a message


@dataclass(frozen=True)
class Record:
    """One finished cell of one photo."""

    photo: str
    """Its name."""
    cell: str
    """Its key; `PLAIN` for the values of the plainly enlarged input, which has no files."""
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
    found: Mapping[str, float] = field(default_factory=dict)
    """What the model finds for the photo, where dials are swept that it can find."""

    def of_same(self, other: Record) -> bool:
        """Whether both are made of the same files with the same settings, as far as both have a reference."""
        return self.of_same_picture(other) and (self.hq == other.hq or not self.hq or not other.hq)

    def of_same_picture(self, other: Record) -> bool:
        """The same without the reference, which decides no pixel."""
        return (self.made_with, self.input) == (other.made_with, other.input)

    def is_of(self, made_with: str, input: str, hq: str) -> bool:
        """Whether it is made of these files with these settings; without a reference it may have had one."""
        return (self.made_with, self.input) == (made_with, input) and (not hq or self.hq == hq)

    def other_files(self, input: str, hq: str) -> bool:
        """Whether the input or a reference that it had is another now; one that comes or goes is no change of these."""
        return self.input != input or bool(self.hq and hq and self.hq != hq)

    def under(self, key: str) -> Record:
        """The same with another key, and the image where it then lies."""
        images, _, *rest = Path(self.image).parts or ("", "")
        return replace(self, cell=key, image=Path(images, key, *rest).as_posix() if rest else self.image)

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

    def of_photos(self, photos: Iterable[str]) -> list[Record]:
        """The records of these photos' cells."""
        named = set(photos)
        return [record for record in self._known.values() if record.photo in named and record.cell != PLAIN]

    @property
    def photos(self) -> list[str]:
        """All that have a record."""
        return list(dict.fromkeys(record.photo for record in self._known.values()))

    def refuse_others(self, records: Iterable[Record], settings: Sequence[Mapping[str, Any]]) -> None:
        """Refuse what was made with none of these settings.

        Raises:
            UsageError: it names what differs.
        """
        digests = [digest_of(each) for each in settings]
        others = [record for record in records if record.made_with not in digests]
        if others:
            lines = min((self._differences(others[0].made_with, each) for each in settings), key=len)
            message = joined_faults(f"`{self._file.parent}` holds a sweep that was made with other settings:", lines[:_SHOWN])
            compared = "model=" in others[0].cell or any(line.startswith("`model`") for line in lines)
            models = "name its models, too, " if compared else ""
            raise UsageError(message, f"{models}give another `--output`, or `--overwrite` to begin anew")

    def use(self, settings: Mapping[str, Any]) -> str:
        """Say what cells will be made with; returns the digest for `Record.made_with`."""
        digest = digest_of(settings)
        if digest not in self._settings:
            self._settings[digest] = dict(settings)
            write_text(self._settings_file, json.dumps(self._settings, indent=2) + "\n")
        return digest

    def rename(self, renamed: Sequence[tuple[Record, Record]]) -> None:
        """Give cells other keys, and their files the names that go with these.

        Args:
            renamed: each record as it was, and as it is to be.

        Raises:
            SrcliError: it cannot be done.
        """
        if not renamed:
            return
        for before, after in renamed:
            self._rename_files(before, after)
            del self._known[before.photo, before.cell]
        self._known |= {(after.photo, after.cell): after for _, after in renamed}
        write_text(self._file, "".join(f"{record.as_line()}\n" for record in self._known.values()))

    def _rename_files(self, before: Record, after: Record) -> None:
        folder = self._file.parent
        old, new = (view_files(folder, each.photo, each.cell, each.crops) for each in (before, after))
        pairs = [*zip(old, new, strict=True), *([(folder / before.image, folder / after.image)] if before.image else [])]
        for source, target in pairs:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                source.replace(target)
                with contextlib.suppress(OSError):  # it holds others
                    source.parent.rmdir()
            except FileNotFoundError:
                pass  # it is made again
            except OSError as fault:
                raise cannot_write(target, fault) from fault

    def _differences(self, digest: str, settings: Mapping[str, Any]) -> list[str]:
        """A line for each setting that is other than in what was made with `digest`."""
        before = self._settings.get(digest, {})
        names = sorted(name for name in {*settings, *before} if settings.get(name) != before.get(name))
        return [f"`{name}` was {_shown(before.get(name))}, is {_shown(settings.get(name))}" for name in names]

    def _forget(self) -> None:
        self._file.unlink(missing_ok=True)
        self._settings_file.unlink(missing_ok=True)
        for record in self._known.values():
            self.delete_image(record)
        self._known, self._settings = {}, {}

    def _bring_up_to_date(self) -> None:
        """Complete the keys of an older sweep."""
        older = {digest: told for digest, told in self._settings.items() if "dials" in told}
        newer = {digest: without_dials(told) for digest, told in older.items()}
        renamed = []
        for record in self._known.values():
            if record.made_with in older:
                key = _completed(record.cell, older[record.made_with])
                renamed.append((record, replace(record.under(key), made_with=digest_of(newer[record.made_with]))))
        self.rename(renamed)
        if older:
            self._settings = {digest: told for digest, told in self._settings.items() if digest not in older}
            self._settings |= {digest_of(told): told for told in newer.values()}
            write_text(self._settings_file, json.dumps(self._settings, indent=2) + "\n")

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
        self._bring_up_to_date()


def digest_of(settings: Mapping[str, Any]) -> str:
    """What tells settings from others, in records."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def without_dials(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What cells are made with, beside where the dials stand, which their keys tell."""
    return {key: value for key, value in settings.items() if key != "dials"}


def _completed(key: str, settings: Mapping[str, Any]) -> str:
    """The key of an older sweep's cell with all dials: there it has those that were swept, and here are the others."""
    pairs = [part.partition("=")[::2] for part in key.split(",") if part]
    others = {"model", *settings.get("adapters", {})}
    dials = {name: float(value) for name, value in pairs if name not in others}
    return cell_key({**settings["dials"], **dials}, ",".join(f"{name}={text}" for name, text in pairs if name in others))


def _shown(value: Any) -> str:
    return "not given" if value is None else f"`{value}`"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
