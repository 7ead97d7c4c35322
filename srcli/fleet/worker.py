"""What runs in an actor: a stream of its own, and answers to the one who asks how it is. Pixels stay here; paths come and go."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from srcli.config import UpscaleConfig
from srcli.engine.effort import Effort
from srcli.errors import SrcliError
from srcli.images.files import Job, Outcome
from srcli.opening import model_of, open_stream
from srcli.shards.ledger import Ledger
from srcli.shards.shard import Shard

if TYPE_CHECKING:
    from srcli.engine.stream import Stream
    from srcli.images.codec import Header

log = logging.getLogger("srcli")


@dataclass(frozen=True)
class Orders:
    """What a worker is made with."""

    config: UpscaleConfig
    """With the one device."""
    folder: str
    """What relative paths start from."""
    threads: int
    settings: Mapping[str, Any] | None
    """For ledgers; None where none is kept."""
    log_level: int


@dataclass(frozen=True)
class Piece:
    """Some jobs of a shard."""

    shard: Shard
    jobs: Mapping[Job, Header | None]
    """With their headers, where these were read."""


@dataclass(frozen=True)
class Sign:
    """A sign of life."""

    outcomes: list[Outcome]
    """Since the last one."""
    messages: list[tuple[int, str]]
    """Levels and texts for people."""
    current: str
    """The name of the photo that is worked on."""
    idle_s: float
    """Since the network, or a photo, was last seen to go on."""
    queued: int
    """Pieces that are not begun."""
    effort: Effort


class Worker:
    """One device at work. Its methods are called from several threads.

    Args:
        orders: what it is to do all the time.
        shared: as of `Stream.run`.
    """

    def __init__(self, orders: Orders, *, shared: bool) -> None:
        os.chdir(orders.folder)
        os.environ["OMP_NUM_THREADS"] = str(orders.threads)  # torch is not imported yet
        self._orders, self._shared = orders, shared
        self._stream: Stream | None = None
        self._lock = threading.Lock()
        self._outcomes: list[Outcome] = []
        self._messages = _Messages()
        log.handlers, log.propagate = [self._messages], False
        log.setLevel(orders.log_level)
        self._current, self._told_at = "", time.monotonic()
        self._stopped = False
        self._queue: SimpleQueue[Piece | None] = SimpleQueue()
        self._headers: dict[Job, Header] = {}
        self._ledgers: dict[Path, Ledger] = {}

    def load(self) -> SrcliError | None:
        """Load the model; a fault that the user has to know is returned."""
        import torch
        from torch.nn.modules.module import register_module_forward_hook

        torch.set_num_threads(self._orders.threads)
        try:
            self._stream = open_stream(self._orders.config, model_of(self._orders.config))
        except SrcliError as fault:
            return fault
        register_module_forward_hook(lambda *_: self._tick())
        self._tick()
        return None

    def give(self, pieces: Sequence[Piece], *, last: bool) -> None:
        """Work to do; with the `last`, `work` ends when all is done."""
        for piece in pieces:
            self._queue.put(piece)
        if last:
            self._queue.put(None)

    def work(self) -> None:
        """Do what is given until the last; what became of each job is told by signs."""
        assert self._stream is not None
        with contextlib.ExitStack() as stack:
            placing = None if self._orders.settings is None else self._placing
            outcomes = self._stream.run(self._jobs(stack), self._start, self._headers, shared=self._shared, placing=placing)
            try:
                for outcome in outcomes:
                    self._add(outcome)
                    if self._stopped:
                        break
            finally:
                outcomes.close()
                for outcome in self._stream.late:
                    self._add(outcome)

    def _jobs(self, stack: contextlib.ExitStack) -> Iterator[Job]:
        """Those of the pieces as they come, so that the stream's look-ahead goes from one to the next."""
        opened: dict[Shard, Ledger] = {}
        while (piece := self._queue.get()) is not None and not self._stopped:
            settings, output = self._orders.settings, self._orders.config.output
            if settings is not None and piece.shard not in opened:
                opened[piece.shard] = stack.enter_context(Ledger(output, settings, piece.shard).opened())
            for job, header in piece.jobs.items():
                if settings is not None:
                    self._ledgers[job.target] = opened[piece.shard]
                if header is not None:
                    self._headers[job] = header
                yield job

    def _placing(self, result: Path, size_bytes: int) -> None:
        self._ledgers[result].placing(result, size_bytes)

    def sign(self) -> Sign:
        """How it is; what it tells is forgotten here."""
        with self._lock:
            outcomes, self._outcomes = self._outcomes, []
        effort = Effort() if self._stream is None else self._stream.effort
        idle_s = time.monotonic() - self._told_at
        return Sign(outcomes, self._messages.taken(), self._current, idle_s, self._queue.qsize(), effort)

    def stop(self) -> None:
        """End `work` after the photo at hand."""
        self._stopped = True
        self._queue.put(None)

    def process(self) -> int:
        """The number of its process."""
        return os.getpid()

    def _start(self, job: Job) -> None:
        self._current = job.source.name
        self._tick()

    def _add(self, outcome: Outcome) -> None:
        self._headers.pop(outcome.job, None)
        self._ledgers.pop(outcome.job.target, None)
        with self._lock:
            self._outcomes.append(outcome)
        self._tick()

    def _tick(self) -> None:
        self._told_at = time.monotonic()


class _Messages(logging.Handler):
    """What would be told on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._told: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._told.append((record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[int, str]]:
        told, self._told = self._told, []
        return told


def orders_of(config: UpscaleConfig, device: str, threads: int, settings: Mapping[str, Any] | None) -> Orders:
    """For a worker on one device."""
    level = log.getEffectiveLevel()
    return Orders(replace(config, device=device, ray_address=None), str(Path.cwd()), threads, settings, level)
