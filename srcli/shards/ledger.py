"""What an output folder knows of its results: by which settings each was made, and what each shard has to do.

`.srcli/of-40/3.jsonl` is the ledger of shard 3 of 40, `.srcli/of-1/1.jsonl` that of runs without shards. A run appends a line
that says what it is going to do and with which settings, a line for each result, and one for each failure. A result's line has
its size, and is on the disk before the result takes its place: whatever kills a run, a line without its result is of another
size than what lies there, and a result without its line there is none. No line holds a time: clocks may jump.
`srcli.remote.ledger` keeps the same lines for outputs of stores.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srcli.disk import cannot_write, make_output_folder, only_run, write_whole
from srcli.errors import SrcliError
from srcli.images.files import EXISTS, OTHERWISE, OUTDATED, UNKNOWN
from srcli.images.search import OWN_FOLDER
from srcli.shards.shard import WHOLE, Shard

_COUNT_FILE = "shards"


def digest_of(settings: Mapping[str, Any]) -> str:
    """What tells settings from others; what the model is called decides nothing."""
    deciding = _same_numbers({name: value for name, value in settings.items() if name != "model"})
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def _same_numbers(value: Any) -> Any:
    """Numbers that are equal written alike: 4 of a row and 4.0 of an option."""
    if isinstance(value, dict):
        return {name: _same_numbers(each) for name, each in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def ledger_file(output: Path, shard: Shard) -> Path:
    """The ledger of a shard; it may not exist."""
    return output / OWN_FOLDER / f"of-{shard.count}" / f"{shard.index}.jsonl"


def shard_count(output: Path) -> int:
    """Into how many shards the last run divided the work whose results are in a folder; 0 where none tells."""
    try:
        return int((output / OWN_FOLDER / _COUNT_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


@dataclass(frozen=True)
class Begun:
    """What a run's first line says."""

    planned: int
    """Files of the shard."""
    kept: int
    """Of them, those whose results were there already."""

    def as_dict(self) -> dict[str, int]:
        return {"planned": self.planned, "kept": self.kept}


class Records(ABC):
    """Lines of results, and the settings that they were made with. Where lines are kept is up to those who inherit.

    Args:
        settings: what decides the pixels, for JSON.
        shard: of the run.
    """

    def __init__(self, settings: Mapping[str, Any], shard: Shard) -> None:
        self.settings, self.made_with, self.shard = settings, digest_of(settings), shard
        self._known: dict[str, Mapping[str, Any]] = {self.made_with: settings}

    @abstractmethod
    def own(self) -> Iterator[dict[str, Any]]:
        """The lines that runs of the same shard have left."""

    @abstractmethod
    def others(self) -> Iterator[dict[str, Any]]:
        """Those of all other shards, also of other divisions."""

    @abstractmethod
    def _append(self, line: Mapping[str, Any]) -> None:
        """Keep a line."""

    def told(self, lines: Iterable[dict[str, Any]]) -> Iterator[tuple[str, int, str]]:
        """What lines say of results: path below the output, bytes, and the digest of the settings."""
        for line in lines:
            if "settings" in line:
                self._known.setdefault(line["made_with"], line["settings"])
            elif "bytes" in line:
                yield line["result"], line["bytes"], sys.intern(line["made_with"])

    def differences(self, made_with: str) -> list[str]:
        """A phrase for each setting of results that is another now."""
        return _differences("", self._known.get(made_with, {}), self.settings)

    def standing(self, maker: str | None, *, outdated: bool) -> str:
        """What is to be said of a result that is there: one of `EXISTS`, `OTHERWISE`, `UNKNOWN` and `OUTDATED`.

        Args:
            maker: digest of its settings; None where no line tells.
            outdated: whether its photo is newer.
        """
        if maker is None:
            return UNKNOWN
        if maker != self.made_with:
            return OTHERWISE
        return OUTDATED if outdated else EXISTS

    def begin(self, begun: Begun | None) -> None:
        """A run's first line; None: how many files there are is yet to be seen, see `planned`."""
        counts = {} if begun is None else begun.as_dict()
        self._append({"shard": str(self.shard), **counts, "made_with": self.made_with, "settings": self.settings})

    @abstractmethod
    def is_news(self, begun: Begun) -> bool:
        """Whether a run that has nothing to do should be recorded."""

    def planned(self, begun: Begun) -> None:
        """Record how many files the shard has turned out to have."""
        self._append(begun.as_dict())

    def record(self, result: str, size_bytes: int) -> None:
        """Record a result that has yet to take its place, by its path below the output."""
        self._append({"result": result, "bytes": size_bytes, "made_with": self.made_with})

    def failed(self, source: Path | str, reason: str) -> None:
        """Record a failure."""
        self._append({"failed": str(source), "reason": reason})


class Ledger(Records):
    """The ledger of one shard in a folder, to append to, and those of all others, to look things up.

    Args:
        output: the folder of results.
        settings: what decides the pixels, for JSON.
        shard: None for runs without shards, of which several may work at once.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], shard: Shard | None = None) -> None:
        super().__init__(settings, shard or WHOLE)
        self.output = output
        self._alone = shard is not None
        self._file = ledger_file(output, self.shard)
        self._handle: int | None = None
        self._whole_lines = True
        self._lock = threading.Lock()

    # --- what was ---

    def makers(self, sizes: Mapping[str, int]) -> dict[str, str]:
        """The digests of the settings that results were made with; those that no ledger knows are left out.

        Args:
            sizes: bytes of the results that are there, by their paths in the folder.
        """
        found: dict[str, str] = {}
        for lines in (self.own, self.others):
            if len(found) < len(sizes):  # mostly all are in the first
                found |= {result: maker for result, size, maker in self.told(lines()) if sizes.get(result) == size}
        return found

    def own(self) -> Iterator[dict[str, Any]]:
        return lines_of(self._file)

    def others(self) -> Iterator[dict[str, Any]]:
        for file in sorted((self.output / OWN_FOLDER).glob("of-*/*.jsonl")):
            yield from lines_of(file) if file != self._file else ()

    # --- what is ---

    def is_news(self, begun: Begun) -> bool:
        """Runs without shards do that where it costs no new file."""
        return self._alone or (self._file.exists() and os.access(self._file, os.W_OK))

    @contextmanager
    def kept_by(self, begun: Begun | None) -> Iterator[Ledger]:
        """Append in the block; a shard's is one run's alone.

        Raises:
            UsageError: another run is at this shard, or the folder cannot be made or written to.
            SrcliError: the ledger cannot be written.
        """
        make_output_folder(self.output)
        with ExitStack() as stack:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                if self._alone:
                    stack.enter_context(only_run(self._file.with_suffix(".lock"), f"shard {self.shard}"))
                write_whole(self.output / OWN_FOLDER / _COUNT_FILE, f"{self.shard.count}\n".encode("ascii"))
                stack.enter_context(self.opened())
                self.begin(begun)
            except OSError as fault:
                raise cannot_write(self._file, fault) from fault
            yield self

    @contextmanager
    def opened(self) -> Iterator[Ledger]:
        """Append in the block, as one of several who are at it."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._handle = os.open(self._file, flags, 0o666)
        try:
            self._whole_lines = _ends_with_a_line(self._file)
            yield self
        finally:
            handle, self._handle = self._handle, None
            os.close(handle)

    def placing(self, result: Path, size_bytes: int) -> None:
        """Record a result that is written and has yet to take its place.

        Raises:
            OSError: it cannot be recorded, so that the result must not take its place.
        """
        self.record(result.relative_to(self.output).as_posix(), size_bytes)

    def failed(self, source: Path | str, reason: str) -> None:
        """Record a failure, as far as the disk lets: a full one is told of the results."""
        with suppress(OSError):
            super().failed(source, reason)

    def _append(self, line: Mapping[str, Any]) -> None:
        """In one piece, so that lines of several processes do not mix."""
        content = json.dumps(line).encode("ascii") + b"\n"
        with self._lock:
            assert self._handle is not None
            start = b"" if self._whole_lines else b"\n"
            self._whole_lines = False
            written = os.write(self._handle, start + content)
            if written < len(start + content):
                raise OSError("only a part of it fits onto the disk")
            self._whole_lines = True


class Division:
    """The ledgers of all shards, for a run that divides the work among its workers; these append the results.

    Args:
        output: the folder of results.
        settings: as of `Ledger`.
        count: of shards.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], count: int) -> None:
        self.output, self._settings, self._count = output, settings, count

    def begin(self, planned: Iterable[str], kept: Iterable[str]) -> None:
        """The first line of each shard; of all files, and of those whose results are there, by their paths.

        Raises:
            UsageError: the folder cannot be made or written to.
            SrcliError: a ledger cannot be written.
        """
        make_output_folder(self.output)
        all_, done = (Counter(Shard.of(path, self._count) for path in paths) for paths in (planned, kept))
        folder = ledger_file(self.output, Shard(1, self._count)).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.output / OWN_FOLDER / _COUNT_FILE, f"{self._count}\n".encode("ascii"))
            for shard in (Shard(index, self._count) for index in range(1, self._count + 1)):
                with Ledger(self.output, self._settings, shard).opened() as ledger:
                    ledger.begin(Begun(all_[shard], done[shard]))
        except OSError as fault:
            raise cannot_write(folder, fault) from fault

    def failed(self, path: str, source: Path, reason: str) -> None:
        """As of `Ledger`, of the shard that the file belongs to by its path."""
        with suppress(OSError), Ledger(self.output, self._settings, Shard.of(path, self._count)).opened() as ledger:
            ledger.failed(source, reason)


def lines_of(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ledger; one that a kill or a full disk has cut is left out.

    Raises:
        SrcliError: the file is there and cannot be read.
    """
    try:
        with file.open("rb") as lines:
            for line in lines:
                try:
                    content = json.loads(line)
                except ValueError:
                    continue
                if isinstance(content, dict):
                    yield content
    except FileNotFoundError:
        return
    except OSError as fault:
        raise SrcliError(f"cannot read `{file}`: {fault.strerror or fault}", "check its disk and your rights there") from fault


def _ends_with_a_line(file: Path) -> bool:
    with file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(0, size - 1))
        return content.read(1) in (b"", b"\n")


def _differences(place: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    told = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            told += _differences(f"{place}{name} ", old, new)
        elif old != new:
            told.append(f"{place}{name} was {_shown(old)}, is {_shown(new)}")
    return told


def _shown(value: Any) -> str:
    return "not given" if value is None else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
