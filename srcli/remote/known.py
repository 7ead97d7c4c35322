"""What is known of results, in few bytes for each: which are there, and whose ledgers' lines they are."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from srcli.remote.store import Entry
from srcli.remote.urls import Place, Url
from srcli.shards.ledger import Records

_DIGEST_BYTES = 16


class _Table:
    """Numbers by digests, in 16 bytes for each and 8 for each number; of equal digests, the last counts.

    Args:
        rows: a digest and its numbers each, in any order.
        columns: how many numbers.
    """

    def __init__(self, rows: Iterable[tuple[bytes, tuple[float, ...]]], columns: int) -> None:
        digests, numbers = bytearray(), [array("d") for _ in range(columns)]
        for digest, row in rows:
            digests += digest
            for column, number in zip(numbers, row, strict=True):
                column.append(number)
        found = _digests(digests)
        order = np.argsort(found, kind="stable")
        self._digests, self._columns = found[order], [np.frombuffer(column, float)[order] for column in numbers]

    def of(self, digest: bytes) -> tuple[float, ...] | None:
        wanted = _digests(digest)[0]
        place = int(np.searchsorted(self._digests, wanted, side="right")) - 1
        if place < 0 or self._digests[place] != wanted:
            return None
        return tuple(float(column[place]) for column in self._columns)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self._digests, *self._columns))


class Made(NamedTuple):
    """A result that is there."""

    size: int
    """In bytes; -1 where the store does not say."""
    time: float
    """When it was written, in seconds since 1970; 0 where the store does not say."""


class Results:
    """Which results a store holds already, in 32 bytes for each.

    Args:
        entries: of its listing, in any order; empty objects are no results.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        full = (entry for entry in entries if entry.size != 0)
        rows = ((digest_of(entry.url), (-1 if entry.size is None else entry.size, entry.modified or 0)) for entry in full)
        self._table = _Table(rows, 2)

    def made(self, url: Url) -> Made | None:
        """A result; None where it is not there."""
        found = self._table.of(digest_of(url))
        return None if found is None else Made(int(found[0]), found[1])

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return self._table.nbytes


class Makers:
    """By which settings results were made, as ledgers tell, in 24 bytes for each; these are read when they are first needed."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._digests: dict[str, int] = {}
        self._tables: list[_Table] = []

    def of(self, result: str, size: int) -> str | None:
        """The digest of the settings; None where no ledger knows it.

        Args:
            result: its path below the output.
            size: of what lies there, in bytes.

        Raises:
            SrcliError: a ledger cannot be read.
        """
        key = _line_digest(result, size)
        for table in self._read():
            if found := table.of(key):
                return list(self._digests)[int(found[0])]
        return None

    def _read(self) -> Iterator[_Table]:
        """That of the shard's own lines, which mostly knows all, and, where it does not, that of all others'."""
        for index, lines in enumerate((self._records.own, self._records.others)):
            if index == len(self._tables):
                self._tables.append(_Table(self._rows(lines()), 1))
            yield self._tables[index]

    def _rows(self, lines: Iterable[dict[str, Any]]) -> Iterator[tuple[bytes, tuple[float, ...]]]:
        for result, size, maker in self._records.told(lines):
            yield _line_digest(result, size), (self._digests.setdefault(maker, len(self._digests)),)


def digest_of(place: Place) -> bytes:
    """Equal for one place only."""
    return _digest(place.address if isinstance(place, Url) else str(place))


def _line_digest(result: str, size: int) -> bytes:
    return _digest(f"{size} {result}")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_DIGEST_BYTES).digest()


def _digests(content: bytes | bytearray) -> np.ndarray:
    return np.frombuffer(content, f"S{_DIGEST_BYTES}")
