"""A folder through the engine: readers -> bounded look-ahead -> restore -> writers -> outcomes, in the order of the jobs.

Nothing here depends on timing but the clock readings: which pictures share a batch follows from their order and sizes.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import torch

from srcli.disk import claim, let_go
from srcli.engine.budget import Budget
from srcli.engine.by_rows import RowEngine
from srcli.engine.effort import Effort
from srcli.engine.framing import finish, picture_bytes, prepare_canvas, result_bytes
from srcli.engine.restore import is_out_of_memory
from srcli.errors import OutOfMemoryError, SrcliError
from srcli.images.canvas import Canvas
from srcli.images.codec import Header, Picture, check_sides, decode, encode, probe, reduced, stripped
from srcli.images.color import reads_once
from srcli.images.files import ELSEWHERE, EXISTS, Job, Outcome, is_done
from srcli.images.maps import read_map
from srcli.images.resize import Size
from srcli.images.rows import Rows
from srcli.images.suffixes import format_of
from srcli.images.telling import warn_once
from srcli.memory import free_host_bytes, host_limit_hint

log = logging.getLogger("srcli")

READERS = 2
WRITERS = max(2, min(4, (os.cpu_count() or 1) // 4))
QUEUE_IMAGES = 8
"""Pictures read ahead, and pictures waiting to be written, at most."""
LEAST_QUEUE_BYTES = 256 << 20
MOST_QUEUE_BYTES = 4 << 30
"""Enough for one picture of 128 megapixels being restored and two being written."""


@dataclass
class Clock:
    """Where the time of the model's thread went, in seconds."""

    waiting_for_input: float = 0.0
    model: float = 0.0
    waiting_for_output: float = 0.0


@dataclass
class _Item:
    """A picture on its way."""

    job: Job
    picture: Picture
    canvas: Canvas
    output_size: tuple[int, int]
    cost: int = 0
    """Bytes taken of the budget for results."""
    by_rows: bool = False
    """Whether it is finished while it is restored."""
    sr: torch.Tensor | None = None
    finished: Picture | None = None
    outcome: Outcome | None = field(default=None)


class Stream:
    """Runs jobs through an engine.

    Args:
        engine: with a loaded restorer.
        size: of the outputs.
        color_fix: one of `srcli.images.color.COLOR_FIXES`.
        quality: of lossy formats, 1 to 100.
        queue_bytes: memory for results, from before they are restored until they are written, and a quarter of it for pictures
            read ahead; one picture may exceed either alone. Chosen from the free memory where it is None.
        strip_metadata: leave out what the files say beside orientation and colours.
    """

    def __init__(
        self,
        engine: RowEngine,
        size: Size,
        color_fix: str,
        quality: int,
        queue_bytes: int | None = None,
        *,
        strip_metadata: bool = False,
    ) -> None:
        self.engine = engine
        self.size = size
        self.color_fix = color_fix
        self.quality = quality
        self.strip_metadata = strip_metadata
        limit = queue_bytes or min(MOST_QUEUE_BYTES, max(LEAST_QUEUE_BYTES, free_host_bytes() // 4))
        self._ahead_bytes = limit // 4
        self.results = Budget(limit)
        """What results hold, and may."""
        self.clock = Clock()
        self._claimed: set[Job] = set()
        self._placing: Callable[[Path, int], None] | None = None
        self.late: list[Outcome] = []
        """After a `run` that was broken off: the outcomes that it did not come to yield, of pictures that were being written."""

    def run(
        self,
        jobs: Iterable[Job],
        on_start: Callable[[Job], None] = lambda job: None,
        headers: Mapping[Job, Header] | None = None,
        *,
        shared: bool = False,
        placing: Callable[[Path, int], None] | None = None,
    ) -> Generator[Outcome, None, None]:
        """Yield the outcome of each job, in order of completion, which is the order of the jobs.

        `headers` are those of the files that were read already: the others are read for the memory that a picture will take.

        With `shared`, other runs may work on the same jobs: what they have done, or are at, is `skipped` with that reason.

        `placing` is told of each result that is written, and its bytes, before it takes its place: see `disk.whole`.

        A fault of one image is its outcome; only interruption and our own bugs outside an image raise. When the caller stops
        iterating, or raises, pictures already restored are still written, and their outcomes are in `late`.
        """
        readers = ThreadPoolExecutor(READERS, "srcli-read")
        writers = ThreadPoolExecutor(WRITERS, "srcli-write")
        pending: deque[Future[Outcome]] = deque()
        self.results = Budget(self.results.limit)
        self.late = []
        self._claimed = set()
        self._placing = placing
        try:
            expected = ((job, self._expected_bytes(job, (headers or {}).get(job))) for job in jobs)
            for group in self._groups(self._read(readers, expected, shared)):
                cost = sum(each.cost for each in group if isinstance(each, _Item))
                yield from self._drain(pending, cost)
                self.results.take(cost)
                for item in self._restore_group(group, on_start):
                    yield from self._drain(pending, 0)
                    pending.append(self._submit(writers, item))
            yield from self._drain(pending, None)
        finally:
            readers.shutdown(cancel_futures=True)
            writers.shutdown(wait=True)
            self.late = [future.result() for future in pending]
            for job in self._claimed:
                let_go(job.target)

    @property
    def effort(self) -> Effort:
        """What the work so far has cost."""
        repairs, clock = self.engine.repairs, self.clock
        times = (clock.waiting_for_input, clock.model, clock.waiting_for_output)
        return Effort(repairs.exact_tiles, repairs.memory_retries, *times)

    # --- reading ---

    def _read(self, readers: ThreadPoolExecutor, source: Iterator[tuple[Job, int]], shared: bool) -> Iterator[_Item | Outcome]:
        """Read ahead within the bounds of the queue; yields in order."""
        ahead: deque[tuple[Future[_Item | Outcome], int]] = deque()
        held = 0
        upcoming = next(source, None)
        while upcoming is not None or ahead:
            while upcoming is not None:
                job, cost = upcoming
                if ahead and (held + cost > self._ahead_bytes or len(ahead) >= QUEUE_IMAGES):
                    break
                ahead.append((readers.submit(self._prepare, job, shared), cost))
                held += cost
                upcoming = next(source, None)
            future, cost = ahead.popleft()
            start = time.perf_counter()
            result = future.result()
            self.clock.waiting_for_input += time.perf_counter() - start
            held -= cost
            yield result

    def _expected_bytes(self, job: Job, header: Header | None) -> int:
        try:
            return picture_bytes(header or probe(job.source))
        except SrcliError:
            return 0  # `_prepare` meets the same fault and tells it

    def _prepare(self, job: Job, shared: bool) -> _Item | Outcome:
        """Decode and enlarge; a fault becomes the outcome."""
        try:
            if shared and (reason := self._taken(job)):
                return Outcome(job, "skipped", reason)
            picture = decode(job.source)
            output_size = self.size.of(picture.width, picture.height)
            check_sides(*output_size, job.target, format_of(job.target))
            net = self.engine.restorer
            painted = None if job.map is None else read_map(job.map, picture.width, picture.height)
            canvas = prepare_canvas(picture, net.native_scale, net.min_side, net.enlargement, painted)
            by_rows = reads_once(self.color_fix) and self.engine.by_rows(canvas.height, canvas.width)
            item = _Item(job, picture, canvas, output_size, by_rows=by_rows)
            item.cost = max(self._result_bytes(item))
            return item
        except Exception as error:
            return failure(job, error)

    def _result_bytes(self, item: _Item) -> tuple[int, int]:
        """Until it is finished, and then until it is written."""
        held = self.engine.tile_rows(item.canvas.height, item.canvas.width) if item.by_rows else item.canvas.height
        return result_bytes(item.picture, held * item.canvas.width, item.output_size, format_of(item.job.target))

    def _taken(self, job: Job) -> str:
        """Why `job` need not be done; where it has to be, it is kept from other runs until it is written."""
        if not is_done(job.target):
            if not claim(job.target):
                return ELSEWHERE
            self._claimed.add(job)
            if not is_done(job.target):  # another run may have finished it between the two
                return ""
            self._release(job)
        return EXISTS

    def _release(self, job: Job) -> None:
        if job in self._claimed:
            let_go(job.target)
            self._claimed.discard(job)

    # --- restoring ---

    def _groups(self, items: Iterable[_Item | Outcome]) -> Iterator[list[_Item | Outcome]]:
        """Consecutive pictures that together fill a batch of tiles; one that is restored by rows is alone."""
        group: list[_Item | Outcome] = []
        tiles = 0
        for item in items:
            if isinstance(item, _Item) and item.by_rows:
                if group:
                    yield group
                yield [item]
                group, tiles = [], 0
                continue
            group.append(item)
            if isinstance(item, _Item):
                tiles += self.engine.tile_count(item.canvas.height, item.canvas.width)
            if tiles >= self.engine.limits.batch and (not self.engine.takes_turns or self._fill(group)):
                yield group
                group, tiles = [], 0
        if group:
            yield group

    def _fill(self, group: list[_Item | Outcome]) -> bool:
        """Whether models that take turns should be asked for these pictures: one more might not fit."""
        costs = [item.cost for item in group if isinstance(item, _Item)]
        return len(group) >= QUEUE_IMAGES or sum(costs) + max(costs) > self.results.limit

    def _restore_group(self, group: list[_Item | Outcome], on_start: Callable[[Job], None]) -> Iterator[_Item | Outcome]:
        items = [item for item in group if isinstance(item, _Item)]
        if len(items) > 1 and max(item.cost for item in items) <= self.results.limit:
            try:
                self._restore(items, on_start)
            except Exception as error:  # one of them is at fault: find out which
                log.debug("a batch of %d pictures failed, each is tried alone: %s", len(items), error)
        for item in group:
            if isinstance(item, _Item) and item.outcome is None:
                try:
                    self._check_room(item)
                    self._restore([item], on_start)
                except Exception as error:
                    self.results.give(item.cost)
                    yield failure(item.job, error)
                    continue
            yield item

    def _check_room(self, item: _Item) -> None:
        """A picture that is let in alone may be over what there is: systems kill a process for that, and each rerun again.

        Raises:
            OutOfMemoryError: its result alone would not fit.
        """
        if item.cost <= self.results.limit:
            return
        free = free_host_bytes() + psutil.swap_memory().free
        if item.cost > free:
            message = f"its result needs {item.cost / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
            raise OutOfMemoryError(message, "use a smaller `--scale`, or split the picture")

    def _restore(self, items: list[_Item], on_start: Callable[[Job], None]) -> None:
        on_start(items[0].job)
        start = time.perf_counter()
        canvases = [item.canvas for item in items]
        mixtures = self.engine.mix(canvases)
        if items[0].by_rows:
            (item,), (mixture,) = items, mixtures
            item.finished = self.engine.restored(item.canvas, mixture, lambda rows: self._made(item, rows))
        else:
            for item, result in zip(items, self.engine.restore(canvases, mixtures), strict=True):
                item.sr = result
        seconds = time.perf_counter() - start
        self.clock.model += seconds
        for item, mixture in zip(items, mixtures, strict=True):
            if mixture.facts:
                found = ", ".join(f"{name} {value:.3f}" for name, value in mixture.facts.items())
                log.info("`%s`: found %s", item.job.source, found)
            item.outcome = Outcome(
                item.job,
                "done",
                input_size=(item.picture.width, item.picture.height),
                output_size=item.output_size,
                seconds=seconds / len(items),
                found=mixture.facts,
            )

    # --- writing ---

    def _drain(self, pending: deque[Future[Outcome]], cost: int | None) -> Iterator[Outcome]:
        """Yield what is written; wait where there is no room for `cost` more bytes. None waits for all."""
        while pending:
            start = time.perf_counter()
            self.results.wait_until(lambda: pending[0].done() or self._has_room(pending, cost))
            self.clock.waiting_for_output += time.perf_counter() - start
            if not pending[0].done():
                return
            yield pending.popleft().result()

    def _has_room(self, pending: deque[Future[Outcome]], cost: int | None) -> bool:
        return cost is not None and len(pending) < QUEUE_IMAGES and (not cost or self.results.fits(cost))

    def _submit(self, writers: ThreadPoolExecutor, item: _Item | Outcome) -> Future[Outcome]:
        future = writers.submit(self._write, item)
        future.add_done_callback(lambda _: self.results.give(item.cost if isinstance(item, _Item) else 0))
        return future

    def _write(self, item: _Item | Outcome) -> Outcome:
        """Colour, crop to size, encode; a fault becomes the outcome."""
        if isinstance(item, Outcome):
            self._release(item.job)
            return item
        try:
            assert item.outcome is not None
            target, format = item.job.target, format_of(item.job.target)
            picture = self._finished(item)
            placing = None if self._placing is None else partial(self._placing, target)
            encode(stripped(picture) if self.strip_metadata else picture, target, format, self.quality, placing)
            for note in reduced(item.picture, format):
                warn_once(target, note)
            return item.outcome
        except Exception as error:
            return failure(item.job, error)
        finally:
            item.sr = item.finished = None
            self._release(item.job)

    def _finished(self, item: _Item) -> Picture:
        """The result as integers; the floats that it comes from are let go, for the next picture to be restored meanwhile."""
        picture = item.finished
        if picture is None:
            assert item.sr is not None
            picture = self._made(item, item.sr)
        _, left = self._result_bytes(item)
        item.sr = item.finished = None
        self.results.give(item.cost - left)
        item.cost = left
        return picture

    def _made(self, item: _Item, sr: torch.Tensor | Rows) -> Picture:
        return finish(item.picture, sr, item.canvas, item.output_size, self.color_fix, format_of(item.job.target))


def failure(job: Job, error: Exception) -> Outcome:
    if isinstance(error, SrcliError):
        return Outcome(job, "failed", error.message, error.hint)
    if is_out_of_memory(error):
        hint = f"{host_limit_hint()}close other programs, or use a smaller `--scale`"
        return Outcome(job, "failed", "not enough memory for this picture", hint)
    log.debug("unexpected fault with `%s`", job.source, exc_info=error)
    return Outcome(job, "failed", f"unexpected {type(error).__name__}: {error}", "run with `--debug` and report this")
