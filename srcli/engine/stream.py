"""A folder through the engine: readers -> bounded look-ahead -> restore -> writers -> outcomes, in the order of the jobs.

Nothing here depends on timing but the clock readings: which pictures share a batch follows from their order and sizes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import psutil
import torch

from srcli.engine.restore import Engine, is_out_of_memory
from srcli.errors import SrcliError
from srcli.images.codec import Header, Picture, decode, encode, probe
from srcli.images.color import fix_color
from srcli.images.files import Job, format_of
from srcli.images.resize import enlarge_bicubic, resize_float, target_size

log = logging.getLogger("srcli")

READERS = 2
WRITERS = 2
QUEUE_IMAGES = 8
"""Pictures read ahead, and pictures waiting to be written, at most."""
_ENLARGED_LONG_SIDE = 1024
"""Inputs that are enlarged to a model's `min_side` stop there on their longer side."""


@dataclass(frozen=True)
class Size:
    """How the output's size follows from the input's; one of them is set, or width and height together."""

    scale: float | None = None
    width: int | None = None
    height: int | None = None
    long_side: int | None = None

    def of(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the output of a `width` x `height` input, in pixels."""
        return target_size(width, height, scale=self.scale, to_width=self.width, to_height=self.height, long_side=self.long_side)


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    job: Job
    status: str
    """`done`, `skipped` or `failed`."""
    reason: str = ""
    hint: str = ""
    input_size: tuple[int, int] | None = None
    """(width, height) in pixels, as is `output_size`."""
    output_size: tuple[int, int] | None = None
    seconds: float = 0.0
    """Of the model; pictures that shared batches share it evenly."""


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
    canvas: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
    """The input at the model's scale: (H, W, 3), RGB, float32 in [0, 1]."""
    output_size: tuple[int, int]
    sr: torch.Tensor | None = None
    outcome: Outcome | None = field(default=None)


class Stream:
    """Runs jobs through an engine.

    Args:
        engine: with a loaded restorer.
        size: of the outputs.
        color_fix: one of `srcli.images.color.COLOR_FIXES`.
        quality: of JPEG and WebP, 1 to 100.
        queue_bytes: memory for pictures read ahead, and again for pictures being written; one picture may exceed it.
    """

    def __init__(self, engine: Engine, size: Size, color_fix: str, quality: int, queue_bytes: int | None = None) -> None:
        self.engine = engine
        self.size = size
        self.color_fix = color_fix
        self.quality = quality
        self.queue_bytes = queue_bytes or max(256 << 20, psutil.virtual_memory().available // 8)
        self.clock = Clock()

    def run(self, jobs: Iterable[Job], on_start: Callable[[Job], None] = lambda job: None) -> Generator[Outcome, None, None]:
        """Yield the outcome of each job, in order of completion, which is the order of the jobs.

        A fault of one image is its outcome; only interruption and our own bugs outside an image raise. When the caller stops
        iterating, or raises, pictures already restored are still written.
        """
        readers = ThreadPoolExecutor(READERS, "srcli-read")
        writers = ThreadPoolExecutor(WRITERS, "srcli-write")
        pending: deque[tuple[Future[Outcome], int]] = deque()
        try:
            for group in self._groups(self._read(readers, jobs)):
                for item in self._restore_group(group, on_start):
                    cost = _item_bytes(item) if isinstance(item, _Item) else 0
                    yield from self._drain(pending, cost)
                    pending.append((writers.submit(self._write, item), cost))
            yield from self._drain(pending, None)
        finally:
            readers.shutdown(cancel_futures=True)
            writers.shutdown(wait=True)

    # --- reading ---

    def _read(self, readers: ThreadPoolExecutor, jobs: Iterable[Job]) -> Iterator[_Item | Outcome]:
        """Read ahead within the bounds of the queue; yields in order."""
        ahead: deque[tuple[Future[_Item | Outcome], int]] = deque()
        held = 0
        source = ((job, self._expected_bytes(job)) for job in jobs)
        upcoming = next(source, None)
        while upcoming is not None or ahead:
            while upcoming is not None:
                job, cost = upcoming
                if ahead and (held + cost > self.queue_bytes or len(ahead) >= QUEUE_IMAGES):
                    break
                ahead.append((readers.submit(self._prepare, job), cost))
                held += cost
                upcoming = next(source, None)
            future, cost = ahead.popleft()
            start = time.perf_counter()
            result = future.result()
            self.clock.waiting_for_input += time.perf_counter() - start
            held -= cost
            yield result

    def _expected_bytes(self, job: Job) -> int:
        try:
            header = probe(job.source)
        except SrcliError:
            return 0  # `_prepare` meets the same fault and tells it
        return picture_bytes(header, self.engine.restorer.native_scale)

    def _prepare(self, job: Job) -> _Item | Outcome:
        """Decode and enlarge; a fault becomes the outcome."""
        try:
            picture = decode(job.source)
            output_size = self.size.of(picture.width, picture.height)
            canvas = prepare_canvas(picture, self.engine.restorer.native_scale, self.engine.restorer.min_side)
            return _Item(job, picture, canvas, output_size)
        except Exception as error:
            return failure(job, error)

    # --- restoring ---

    def _groups(self, items: Iterable[_Item | Outcome]) -> Iterator[list[_Item | Outcome]]:
        """Consecutive pictures that together fill a batch of tiles."""
        group: list[_Item | Outcome] = []
        tiles = 0
        for item in items:
            group.append(item)
            if isinstance(item, _Item):
                tiles += self.engine.tile_count(*item.canvas.shape[:2])
            if tiles >= self.engine.limits.batch:
                yield group
                group, tiles = [], 0
        if group:
            yield group

    def _restore_group(self, group: list[_Item | Outcome], on_start: Callable[[Job], None]) -> Iterator[_Item | Outcome]:
        items = [item for item in group if isinstance(item, _Item)]
        if len(items) > 1:
            try:
                self._restore(items, on_start)
            except Exception as error:  # one of them is at fault: find out which
                log.debug("a batch of %d pictures failed, each is tried alone: %s", len(items), error)
        for item in group:
            if isinstance(item, _Item) and item.sr is None:
                try:
                    self._restore([item], on_start)
                except Exception as error:
                    yield failure(item.job, error)
                    continue
            yield item

    def _restore(self, items: list[_Item], on_start: Callable[[Job], None]) -> None:
        on_start(items[0].job)
        start = time.perf_counter()
        canvases = [torch.from_numpy(item.canvas).permute(2, 0, 1) * 2 - 1 for item in items]
        results = self.engine.restore(canvases)
        seconds = time.perf_counter() - start
        self.clock.model += seconds
        for item, result in zip(items, results, strict=True):
            item.sr = result
            item.outcome = Outcome(
                item.job,
                "done",
                input_size=(item.picture.width, item.picture.height),
                output_size=item.output_size,
                seconds=seconds / len(items),
            )

    # --- writing ---

    def _drain(self, pending: deque[tuple[Future[Outcome], int]], cost: int | None) -> Iterator[Outcome]:
        """Yield what is written; wait where there is no room for `cost` more bytes. None waits for all."""
        while pending:
            full = cost is None or len(pending) >= QUEUE_IMAGES
            full = full or sum(c for _, c in pending) + (cost or 0) > self.queue_bytes
            if not full and not pending[0][0].done():
                return
            start = time.perf_counter()
            outcome = pending.popleft()[0].result()
            self.clock.waiting_for_output += time.perf_counter() - start
            yield outcome

    def _write(self, item: _Item | Outcome) -> Outcome:
        """Colour, crop to size, encode; a fault becomes the outcome."""
        if isinstance(item, Outcome):
            return item
        try:
            assert item.sr is not None
            assert item.outcome is not None
            finished = finish(item.picture, item.sr, item.canvas, item.output_size, self.color_fix)
            encode(finished, item.job.target, format_of(item.job.target), self.quality)
            return item.outcome
        except Exception as error:
            return failure(item.job, error)


def prepare_canvas(picture: Picture, native_scale: int, min_side: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The input as the model wants it: bicubic at `native_scale`.

    Inputs below `min_side` are enlarged to it first, as PiSA-SR does; a very long and narrow one only until its longer side
    has 1024 pixels.

    Returns:
        (H, W, 3), RGB, float32 in [0, 1].
    """
    rgb, width, height = picture.rgb, picture.width, picture.height
    factor = min(min_side / min(width, height), max(1.0, _ENLARGED_LONG_SIDE / max(width, height)))
    if factor > 1:
        width, height = int(factor * width), int(factor * height)
        rgb = enlarge_bicubic(rgb, (height, width), picture.bit_depth)
    return enlarge_bicubic(rgb, (height * native_scale, width * native_scale), picture.bit_depth)


def finish(
    picture: Picture,
    sr: torch.Tensor,
    canvas: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    output_size: tuple[int, int],
    color_fix: str,
) -> Picture:
    """The picture to write: colours of the input, exact size, the input's own alpha and metadata.

    Args:
        picture: the input.
        sr: (3, H, W), RGB, float32 in [-1, 1].
        canvas: (H, W, 3), RGB, float32 in [0, 1]: what the colours are taken from.
        output_size: (width, height).
        color_fix: `adain`, `wavelet` or `none`.
    """
    rgb = np.ascontiguousarray(((sr + 1) / 2).permute(1, 2, 0).numpy())
    rgb = fix_color(color_fix, rgb, canvas)
    size = (output_size[1], output_size[0])
    alpha = None if picture.alpha is None else resize_float(picture.alpha, size)
    return replace(picture, rgb=resize_float(rgb, size), alpha=alpha)


def picture_bytes(header: Header, native_scale: int) -> int:
    """About the memory that a picture holds while it is queued: decoded floats and its canvas."""
    return 12 * header.width * header.height * (1 + native_scale**2)


def _item_bytes(item: _Item) -> int:
    return int(item.picture.rgb.nbytes + 2 * item.canvas.nbytes)


def failure(job: Job, error: Exception) -> Outcome:
    if isinstance(error, SrcliError):
        return Outcome(job, "failed", error.message, error.hint)
    if is_out_of_memory(error):
        hint = "close other programs, or use a smaller `--scale`"
        return Outcome(job, "failed", "not enough memory for this picture", hint)
    log.debug("unexpected fault with `%s`", job.source, exc_info=error)
    return Outcome(job, "failed", f"unexpected {type(error).__name__}: {error}", "run with `--debug` and report this")
