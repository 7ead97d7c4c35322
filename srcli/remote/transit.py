"""Photos are fetched ahead of the engine and results put behind it, a bounded number at once."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from srcli.errors import SrcliError
from srcli.images.files import Job, Outcome
from srcli.remote.faults import StoreError
from srcli.remote.plan import Item
from srcli.remote.store import Stores
from srcli.remote.urls import Place, Url

FETCHERS = PUTTERS = 8
AHEAD = 16
"""Photos fetched or being fetched that the engine has not begun, and results being put, at most."""
_LISTED_AHEAD = 4096
_LOOK_S = 0.1
T = TypeVar("T")


class Ahead(Generic[T]):
    """What an iterator yields, taken by a thread of its own, so many at most before they are asked for.

    Raises:
        BaseException: what the iterator raises, after all that it has yielded.
    """

    def __init__(self, source: Iterable[T], most: int = _LISTED_AHEAD) -> None:
        self._queue: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(most)
        self._stop = threading.Event()
        self._ended = False
        threading.Thread(target=self._run, args=(source,), daemon=True, name="srcli-list").start()

    def take(self, *, wait: bool) -> T | None:
        """The next; None: there are no more, or, without `wait`, not yet."""
        if self._ended:
            return None
        try:
            found = self._queue.get(block=wait)
        except queue.Empty:
            return None
        if isinstance(found, tuple):
            return found[0]
        self._ended = True
        if found is not None:
            raise found
        return None

    @property
    def ended(self) -> bool:
        """Whether there are no more."""
        return self._ended

    def close(self) -> None:
        """Take no more."""
        self._stop.set()

    def _run(self, source: Iterable[T]) -> None:
        try:
            for each in source:
                self._give((each,))
                if self._stop.is_set():
                    return
        except BaseException as fault:  # told where it is taken
            self._give(fault)
            return
        self._give(None)

    def _give(self, what: tuple[T] | BaseException | None) -> None:
        while not self._stop.is_set():
            with suppress(queue.Full):
                self._queue.put(what, timeout=_LOOK_S)
                return


class Transit:
    """Where the files of jobs are here, and what brings them.

    Args:
        stores: where URLs lead to.
        folder: for temporary files.
        names: gets their names as people know them; those of files on their way only.

    Attributes:
        stopped: why no more is fetched, where the source of jobs or a store has failed.
        waited_s: seconds that `jobs` waited for photos.
    """

    def __init__(self, stores: Stores, folder: Path, names: dict[str, str]) -> None:
        self._stores, self._folder, self._names = stores, folder, names
        self._items: dict[Job, Item] = {}
        self._count = 0
        self._fetchers = ThreadPoolExecutor(FETCHERS, "srcli-fetch")
        self._putters = ThreadPoolExecutor(PUTTERS, "srcli-put")
        self._puts: deque[tuple[Outcome, Future[Outcome]]] = deque()
        self.stopped: SrcliError | None = None
        self.waited_s = 0.0

    def __enter__(self) -> Transit:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stores.close()
        self._fetchers.shutdown(cancel_futures=True)
        self._putters.shutdown()

    def job_of(self, item: Item) -> Job:
        """A job of files that are here, or will be; until `forget`."""
        self._count += 1
        job = Job(self._place(item.source, "in"), self._place(item.target, "out"))
        self._items[job] = item
        for place, known in ((job.source, item.source), (job.target, item.target)):
            if isinstance(known, Url):
                self._names[str(place)] = str(known)
        return job

    def name_of(self, job: Job) -> str:
        """Of its photo, without folders."""
        return self._items[job].source.name

    def is_fetched(self, job: Job) -> bool:
        """Whether its photo was no file here before."""
        return isinstance(self._items[job].source, Url)

    def forget(self, job: Job) -> None:
        """Remove the job's temporary files and names; nothing where that was done before."""
        item = self._items.pop(job, None)
        for place, known in ((job.source, item.source), (job.target, item.target)) if item else ():
            if isinstance(known, Url):
                self._names.pop(str(place), None)
                with suppress(OSError):
                    place.unlink()

    def jobs(
        self, items: Iterable[Item], note: Callable[[Item], None], failed: Callable[[Job, StoreError], None]
    ) -> Iterator[Job]:
        """The jobs whose photos are here, in the order of the items, some fetched ahead.

        Args:
            items: a listing, which goes on in a thread of its own.
            note: gets items that are done already, or cannot be done.
            failed: gets jobs whose photos cannot be fetched.
        """
        listing = Ahead(items)
        ahead: deque[tuple[Job, Future[None]]] = deque()
        try:
            while True:
                self._fill(listing, ahead, note)
                if not ahead:
                    return
                job, future = ahead.popleft()
                start = time.perf_counter()
                try:
                    future.result()
                except StoreError as error:
                    failed(job, error)
                    continue
                finally:
                    self.waited_s += time.perf_counter() - start
                yield job
        finally:
            listing.close()

    def _fill(self, listing: Ahead[Item], ahead: deque[tuple[Job, Future[None]]], note: Callable[[Item], None]) -> None:
        """Let more be fetched, as far as the listing goes; wait for it only where there is nothing else to do."""
        while self.stopped is None and len(ahead) < AHEAD and not listing.ended:
            try:
                item = listing.take(wait=not ahead)
            except SrcliError as error:
                self.stopped = error
                return
            if item is None:
                return
            if item.done or item.fault:
                note(item)
                continue
            self.stopped = self._gone(item)
            if self.stopped is None:
                job = self.job_of(item)
                ahead.append((job, self._fetchers.submit(self._fetch, job, item)))

    def _gone(self, item: Item) -> StoreError | None:
        stores = [self._stores.of(place) for place in (item.source, item.target) if isinstance(place, Url)]
        return next((store.gone for store in stores if store.gone), None)

    def _fetch(self, job: Job, item: Item) -> None:
        if isinstance(item.source, Url):
            self._stores.of(item.source).fetch(item.source, item.size, job.source)

    def put(self, outcome: Outcome) -> Iterator[Outcome]:
        """Put a result where it belongs, and wait where too many are on the way; yields what is final meanwhile, in order."""
        self._puts.append((outcome, self._putters.submit(self._put, outcome)))
        yield from self._settled(AHEAD)

    def settled(self) -> Iterator[Outcome]:
        """All outcomes that are left."""
        yield from self._settled(0)

    def _settled(self, most: int) -> Iterator[Outcome]:
        while self._puts and (len(self._puts) > most or self._puts[0][1].done()):
            yield self._puts.popleft()[1].result()

    def _put(self, outcome: Outcome) -> Outcome:
        target = self._items[outcome.job].target
        if outcome.status != "done" or not isinstance(target, Url):
            return outcome
        try:
            self._stores.of(target).put(outcome.job.target, target)
        except StoreError as error:
            return replace(outcome, status="failed", reason=error.message, hint=error.hint)
        return outcome

    def _place(self, place: Place, kind: str) -> Path:
        if isinstance(place, Path):
            return place
        return self._folder / f"{self._count:012d}-{kind}{Path(place.name).suffix}"
