"""What the output in a store knows of its results: the lines of `srcli.shards.ledger`, as objects.

Objects cannot be appended to. So each run has objects of its own, `.srcli/of-40/3-000007-1f0c9a2e.jsonl` for shard 3 of 40, and
puts one anew as lines come to it, until it is large enough and the next is begun: no run can lose what another has recorded,
whatever shards they are of. The number in the name is higher than those of all objects that the run has found there: it
gives the order that a clock would not.

As in a folder, a result's line is there before the result is. Nothing is put into the store that is not recorded; what a kill
leaves is recorded and not there, and is done again.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srcli.disk import cannot_write
from srcli.images.search import OWN_FOLDER
from srcli.remote.faults import StoreError
from srcli.remote.known import Results
from srcli.remote.staging import staged
from srcli.remote.store import Entry, Store
from srcli.remote.urls import Url
from srcli.shards.ledger import Begun, Records, lines_of
from srcli.shards.shard import WHOLE, Shard
from srcli.shards.status import ShardStatus, no_ledger, shard_status

FETCHERS = 16
OBJECT_BYTES = 1 << 16
"""About 600 lines: a ledger's object that has so many gets no more."""
_NAME = re.compile(r"of-(\d+)/(\d+)-(\d+)-\w+\.jsonl")


@dataclass(frozen=True, order=True)
class _Object:
    """One of a ledger's."""

    number: int
    name: str
    shard: Shard = field(compare=False)
    entry: Entry = field(compare=False)


@dataclass(frozen=True)
class Found:
    """What one listing of an output has shown."""

    results: Results
    ledgers: list[_Object]
    """In the order of their runs."""


def found_in(store: Store, output: Url, *, ledgers_only: bool = False) -> Found:
    """List an output.

    Raises:
        StoreError: the store cannot be used; that an output is yet to be made is no fault.
    """
    own, ledgers = output.joined(OWN_FOLDER), list[_Object]()

    def others() -> Iterator[Entry]:
        try:
            for entry in store.entries(own if ledgers_only else output):
                name = _NAME.fullmatch(entry.url.key.removeprefix(own.below))
                if name is not None:
                    ledgers.append(_Object(int(name[3]), name[0], Shard(int(name[2]), int(name[1])), entry))
                elif not own.holds(entry.url):
                    yield entry
        except StoreError as error:
            if not error.missing:  # a folder that is yet to be made
                raise

    return Found(Results(others()), sorted(ledgers))


class StoreLedger(Records):
    """The ledger of a run whose results go to a store.

    Args:
        store: of the output.
        output: a prefix.
        settings: as of `Ledger`.
        shard: None for runs without shards.
        found: in the output.
        folder: for temporary files.
    """

    def __init__(
        self, store: Store, output: Url, settings: Mapping[str, Any], shard: Shard | None, found: Found, folder: Path
    ) -> None:
        super().__init__(settings, shard or WHOLE)
        self.output = output
        self._store, self._found, self._folder = store, found, folder
        self._number = max((each.number for each in found.ledgers), default=0) + 1
        self._run = secrets.token_hex(4)
        self._lines = b""
        self._put_bytes = 0
        """Of the lines, what is in the store."""
        self._lock = threading.Lock()

    def own(self) -> Iterator[dict[str, Any]]:
        return _lines(self._store, [each for each in self._found.ledgers if each.shard == self.shard], self._folder)

    def others(self) -> Iterator[dict[str, Any]]:
        return _lines(self._store, [each for each in self._found.ledgers if each.shard != self.shard], self._folder)

    def is_news(self, begun: Begun) -> bool:
        """Where earlier runs' lines do not tell yet that all is done."""
        status = shard_status(self.shard, self.own(), _size_in(self._found.results, self.output))
        return not status.complete or status.planned != begun.planned

    @contextmanager
    def kept_by(self, begun: Begun | None) -> Iterator[StoreLedger]:
        """Begin; the rest is put by `commit`.

        Raises:
            SrcliError: it cannot be put.
        """
        self.begin(begun)
        self.commit()
        yield self

    def commit(self) -> None:
        """Put the lines that were added since the last time. By one thread at a time.

        Raises:
            SrcliError: they cannot be put. The next time tries it anew.
        """
        with self._lock:
            lines = self._lines
        if len(lines) == self._put_bytes:
            return
        file = self._folder / f"{self._run}.jsonl"
        try:
            file.write_bytes(lines)
        except OSError as fault:
            raise cannot_write(file, fault) from fault
        name = f"of-{self.shard.count}/{self.shard.index}-{self._number:06}-{self._run}.jsonl"
        self._store.put(file, self.output.joined(f"{OWN_FOLDER}/{name}"))
        self._put_bytes = len(lines)
        if self._put_bytes > OBJECT_BYTES:
            with self._lock:
                self._lines = self._lines[len(lines) :]
            self._number, self._put_bytes = self._number + 1, 0

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            self._lines += json.dumps(line).encode("ascii") + b"\n"


def status_at(output: Url) -> list[ShardStatus]:
    """As `status_of`, of an output in a store.

    Raises:
        UsageError: there are no ledgers.
        StoreError: the store cannot be used.
    """
    if output.is_web:
        raise no_ledger(output)
    store = Store(output)
    found = found_in(store, output)
    if not found.ledgers:
        raise no_ledger(output)
    count = found.ledgers[-1].shard.count
    size_of = _size_in(found.results, output)
    by_shard = {Shard(index, count): list[_Object]() for index in range(1, count + 1)}
    for each in found.ledgers:
        by_shard.get(each.shard, []).append(each)
    with staged() as folder:
        return [shard_status(shard, _lines(store, objects, folder), size_of) for shard, objects in by_shard.items()]


def _size_in(results: Results, output: Url) -> Callable[[str], int | None]:
    def size_of(result: str) -> int | None:
        made = results.made(output.joined(result))
        return made.size if made else None

    return size_of


def _lines(store: Store, objects: Iterable[_Object], folder: Path) -> Iterator[dict[str, Any]]:
    """Of all of these, one object after the other, some fetched ahead."""

    def fetched(each: _Object) -> Path:
        path = folder / each.name.replace("/", "-")
        store.fetch(each.entry.url, each.entry.size, path, grows=True)
        return path

    with ThreadPoolExecutor(FETCHERS, "srcli-fetch") as pool:
        for path in pool.map(fetched, objects):
            yield from lines_of(path)
            path.unlink()
