"""Photos are fetched ahead of the engine and results put behind it, a bounded number at once, each after it is recorded."""

from __future__ import annotations

import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Generic, TypeVar

from srcli.disk import cannot_write
from srcli.errors import SrcliError
from srcli.images.files import Job, Outcome
from srcli.remote.faults import StoreError
from srcli.remote.ledger import StoreLedger
from srcli.remote.plan import Item
from srcli.remote.store import Stores
from srcli.remote.urls import Place, Url

FETCHERS = PUTTERS = 8
AHEAD = 16
"""Photos fetched or being fetched that the engine has not begun, at most."""
BEHIND = 64
"""Results that are being put or have yet to be, at most."""
RECORDED_AT_ONCE = BEHIND // 2
RECORD_S = 5.0
"""So many results are recorded together, or what has come in so many seconds."""
T = TypeVar("T")


class Ahead(Generic[T]):
    """What an iterator yields, taken by a thread of its own and kept on the disk until it is asked for.

    Args:
        source: of objects that can be pickled.
        file: to be written.

    Raises:
        BaseException: what the iterator raises, after all that it has yielded.
    """

    def __init__(self, source: Iterable[T], file: Path) -> None:
        self._in, self._out = file.open("wb"), file.open("rb")
        self._changed = threading.Condition()
        self._left = 0
        self._listed = self._closed = self.ended = False
        """`ended`: whether there are no more."""
        self._fault: BaseException | None = None
        threading.Thread(target=self._run, args=(source,), daemon=True, name="srcli-list").start()

    def take(self, *, wait: bool) -> T | None:
        """The next; None: there are no more, or, without `wait`, not yet."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._left or self._listed)
            if not self._left:
                self.ended = self._listed
                if self.ended and self._fault is not None:
                    raise self._fault
                return None
            self._left -= 1
        taken: T = pickle.load(self._out)  # noqa: S301  # our own, of a moment ago
        return taken

    def close(self) -> None:
        """Take no more."""
        self._closed = True
        self._out.close()

    def _run(self, source: Iterable[T]) -> None:
        try:
            with self._in as file:
                for each in source:
                    self._keep(each, file)
                    if self._closed:
                        return
        except BaseException as fault:  # told where it is taken
            self._fault = fault
        with self._changed:
            self._listed = True
            self._changed.notify()

    def _keep(self, each: T, file: BinaryIO) -> None:
        try:
            pickle.dump(each, file)
            file.flush()
        except OSError as fault:
            raise cannot_write(Path(file.name), fault) from fault
        with self._changed:
            self._left += 1
            self._changed.notify()


class Transit:
    """Where the files of jobs are here, and what brings them.

    Args:
        stores: where URLs lead to.
        folder: for temporary files.
        names: gets their names as people know them; those of files on their way only.

    Attributes:
        ledger: where results of stores are recorded before they are put; None: nowhere. To be set before the first is.
        stopped: why no more is fetched, where the source of jobs or a store has failed.
        waited_s: seconds that `jobs` waited for photos.
    """

    def __init__(self, stores: Stores, folder: Path, names: dict[str, str]) -> None:
        self._stores, self._folder, self._names = stores, folder, names
        self._items: dict[Job, Item] = {}
        self._count = 0
        self._fetchers = ThreadPoolExecutor(FETCHERS, "srcli-fetch")
        self._putters = ThreadPoolExecutor(PUTTERS, "srcli-put")
        self._puts: deque[Future[Outcome]] = deque()
        self.ledger: StoreLedger | None = None
        self._recorder = ThreadPoolExecutor(1, "srcli-record")
        self._unrecorded: list[tuple[Outcome, Future[Outcome]]] = []
        self._changed = threading.Condition()
        self._in_haste = False
        """Whether results are to be recorded at once."""
        self._recorded = 0.0
        """When that was done last."""
        self.stopped: SrcliError | None = None
        self.waited_s = 0.0

    def __enter__(self) -> Transit:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stores.close()
        self._hurry()
        self._fetchers.shutdown(cancel_futures=True)
        self._recorder.shutdown()
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
        listing = Ahead(items, self._folder / "listed")
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
            if item.kept or item.fault:
                note(item)
                continue
            self.stopped = self.stopped or self._gone(item)
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
        future: Future[Outcome] = Future()
        self._puts.append(future)
        if outcome.status != "done" or not isinstance(self._items[outcome.job].target, Url):
            future.set_result(outcome)
        elif self.ledger is None:
            self._putters.submit(self._put, outcome, future)
        else:
            with self._changed:
                self._unrecorded.append((outcome, future))
                self._changed.notify()
            self._recorder.submit(self._record, self.ledger)
        yield from self._settled(BEHIND)

    def settled(self) -> Iterator[Outcome]:
        """All outcomes that are left."""
        self._hurry()
        yield from self._settled(0)

    def _settled(self, most: int) -> Iterator[Outcome]:
        while self._puts and (len(self._puts) > most or self._puts[0].done()):
            yield self._puts.popleft().result()

    def _hurry(self) -> None:
        with self._changed:
            self._in_haste = True
            self._changed.notify()

    def _record(self, ledger: StoreLedger) -> None:
        """Record the results that wait for it, soon, and let them be put. One thread's alone."""
        with self._changed:
            enough = lambda: self._in_haste or len(self._unrecorded) not in range(1, RECORDED_AT_ONCE)  # noqa: E731
            self._changed.wait_for(enough, self._recorded + RECORD_S - time.monotonic())
            waiting, self._unrecorded = self._unrecorded, []
        if not waiting:  # they were recorded together with earlier ones
            return
        self._recorded = time.monotonic()
        try:
            for outcome, _ in waiting:
                ledger.record(self._items[outcome.job].result, outcome.job.target.stat().st_size)
            ledger.commit()
        except Exception as fault:
            if isinstance(fault, SrcliError):  # nothing can be put any more
                self.stopped = self.stopped or fault
            for outcome, future in waiting:
                _fail(future, outcome, fault)
            return
        for each in waiting:
            self._putters.submit(self._put, *each)

    def _put(self, outcome: Outcome, future: Future[Outcome]) -> None:
        target = self._items[outcome.job].target
        try:
            assert isinstance(target, Url)
            self._stores.of(target).put(outcome.job.target, target)
        except Exception as fault:
            _fail(future, outcome, fault)
        else:
            future.set_result(outcome)

    def _place(self, place: Place, kind: str) -> Path:
        if isinstance(place, Path):
            return place
        return self._folder / f"{self._count:012d}-{kind}{Path(place.name).suffix}"


def _fail(future: Future[Outcome], outcome: Outcome, fault: Exception) -> None:
    """A result that cannot be recorded or put has failed; any other fault is our own."""
    if isinstance(fault, SrcliError):
        future.set_result(replace(outcome, status="failed", reason=fault.message, hint=fault.hint))
    else:
        future.set_exception(fault)
