"""Runs jobs on a fleet of workers, and sees to it that all come to an end: who dies, hangs or lacks memory is replaced.

A worker is believed as long as it gives signs of life, which say what it has done and since when nothing went on. When it
ends, what it has left is done again by others: the photos that may be to blame in a piece of their own, then each alone, and
what has ended a worker three times has failed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from srcli.config import UpscaleConfig
from srcli.console import counted
from srcli.disk import first_line
from srcli.engine.effort import Effort
from srcli.fleet.cluster import connected
from srcli.fleet.places import Place
from srcli.fleet.worker import Piece, Sign, Worker, orders_of
from srcli.images.files import ELSEWHERE, EXISTS, Job, Jobs, Outcome
from srcli.images.search import Found
from srcli.opening import PlannedImage
from srcli.shards.shard import Shard

log = logging.getLogger("srcli")

SHARDS_PER_WORKER = 20
"""So that no worker is left with much while the others have nothing."""
PIECE_JOBS = 500
SUSPECTS = 64
"""Photos that may be on their way in a worker: read ahead, in a batch, and being written."""
MOST_TRIES = 3
SIGN_EVERY_S = 0.2
START_S, SILENT_S, STALLED_S = 600.0, 60.0, 900.0
"""How long a worker may take to its first sign of life, to another one, and to the network's next layer or the next photo."""
STOP_S = 10.0
LETTING_GO_S = 60.0
"""How long after its end a worker may keep others from its photos: one that hangs is long in dying."""


@dataclass
class _Slot:
    """A place and the worker that is there now."""

    place: Place
    actor: Any = None
    loading: Any = None
    """Ray's promises: of the model, the work, new work, the sign of life."""
    working: Any = None
    giving: Any = None
    sign: Any = None
    left: dict[Job, Shard] = field(default_factory=dict)
    """Jobs that it was given and whose outcome is not known, in this order."""
    queued: int = 0
    """Pieces that it has not begun, as far as known."""
    ended: bool = False
    """Whether it was given its last piece."""
    heard: bool = False
    heard_at: float = 0.0
    asked_at: float = 0.0
    failed_starts: int = 0
    effort: Effort = field(default_factory=Effort)
    """Of the worker that is there, and of those before."""
    former_effort: Effort = field(default_factory=Effort)

    @property
    def promises(self) -> list[Any]:
        return [each for each in (self.loading, self.working, self.giving, self.sign) if each is not None]


@dataclass(frozen=True)
class _Part:
    """What is yet to be given to a worker."""

    shard: Shard
    jobs: Sequence[Job]
    alone: bool = False
    """Whether its worker gets nothing beside it, so that nothing else is blamed for it."""


class Fleet:
    """Workers at their places.

    Args:
        config: what is to be done; its devices say where.
        settings: for ledgers; None where none is kept.
        shared: as of `Stream.run`.
        begin: called once, with the number of shards that the work is divided into, before any is begun.
        good: those of some jobs that can be read; what becomes of the others is no concern of the fleet.
        note: called with each outcome.
        start: called with the names of photos that are worked on.
    """

    def __init__(
        self,
        config: UpscaleConfig,
        settings: Mapping[str, Any] | None,
        begin: Callable[[int], None] | None,
        good: Callable[[Iterable[Job]], Iterable[PlannedImage]],
        note: Callable[[Outcome], None],
        start: Callable[[str], None],
        *,
        shared: bool,
    ) -> None:
        self._config, self._settings, self._shared = config, settings, shared
        self._begin, self._good, self._tell, self._start = begin, good, note, start
        self._images: dict[Job, PlannedImage] = {}
        """What workers have, and what was at their results' places before."""
        self._before: dict[Job, tuple[int, ...] | None] = {}
        self._parts: deque[_Part] = deque()
        self._elsewhere: list[Job] = []
        self._tries: Counter[Job] = Counter()
        self._again: set[Job] = set()
        self._slots: list[_Slot] = []
        self._told: set[tuple[int, str]] = set()
        self._ray: Any = None

    @property
    def effort(self) -> Effort:
        """Of all workers."""
        return sum((slot.former_effort + slot.effort for slot in self._slots), Effort())

    def run(self, jobs: Jobs) -> None:
        """Do the jobs; every outcome is noted, whatever ends this.

        Raises:
            UsageError: Ray is not installed or not reached.
            SrcliError: the model cannot be loaded.
        """
        with connected(self._config) as (ray, all_places):
            self._ray, places = ray, all_places[: len(jobs)]
            self._slots = [_Slot(place) for place in places]
            log.info("%s: %s", counted(len(places), "worker"), ", ".join(map(str, places)))
            if self._begin is not None:
                self._begin(SHARDS_PER_WORKER * len(places))
            self._parts.extend(self._divided(jobs))
            try:
                self._work()
                self._work_elsewhere()
            except KeyboardInterrupt:
                self._stop()
                raise
            finally:
                for job in self._elsewhere:
                    self._note(self._left(job))

    def _work_elsewhere(self) -> None:
        """Another run that was at photos may have been ended meanwhile, and a worker of ours that was ended will let go."""
        until = time.monotonic() + LETTING_GO_S
        while self._elsewhere:
            jobs, self._elsewhere = self._elsewhere, []
            count = SHARDS_PER_WORKER * len(self._slots)
            self._parts.extend(_Part(self._config.shard or Shard.of(job.place, count), [job]) for job in jobs)
            self._work()
            if self._again.isdisjoint(self._elsewhere) or time.monotonic() > until:
                return
            time.sleep(SIGN_EVERY_S)

    def _left(self, job: Job) -> Outcome:
        """Of a job that somebody else is at until the end."""
        if job not in self._again:
            return Outcome(job, "skipped", ELSEWHERE)
        return Outcome(job, "failed", "a worker that was given up still keeps others from it", "repeat the command later")

    # --- pieces ---

    def _divided(self, jobs: Jobs) -> Iterator[_Part]:
        """By shards, each cut into parts that are not too long."""
        count, own = SHARDS_PER_WORKER * len(self._slots), self._config.shard
        groups: dict[int, list[Found]] = {}
        for at, each in enumerate(jobs.found):
            index = at % count if own else Shard.of(each.place, count).index
            groups.setdefault(index, []).append(each)
        for index, group in sorted(groups.items()):
            for at in range(0, len(group), PIECE_JOBS):
                yield _Part(own or Shard(index, count), replace(jobs, found=group[at : at + PIECE_JOBS]))

    def _piece(self, part: _Part) -> Piece:
        """For a worker, who is believed to have it from now on."""
        images = {image.job: image for image in self._good(part.jobs)}
        self._images |= images
        for job in images:
            self._before.setdefault(job, _state(job.target))
        return Piece(part.shard, {job: image.header for job, image in images.items()})

    def _note(self, outcome: Outcome) -> None:
        self._images.pop(outcome.job, None)
        self._before.pop(outcome.job, None)
        self._tell(outcome)

    # --- work ---

    def _work(self) -> None:
        """Until there is nothing left to do, or nobody who could."""
        while self._parts or any(slot.left for slot in self._slots):
            open_ = [slot for slot in self._slots if slot.failed_starts < MOST_TRIES]
            if not open_:
                self._give_up()
                return
            for slot in open_:
                self._keep_busy(slot)
            promises = [promise for slot in open_ for promise in slot.promises]
            if promises:
                self._ray.wait(promises, num_returns=1, timeout=SIGN_EVERY_S)
            for slot in open_:
                self._look_after(slot)

    def _keep_busy(self, slot: _Slot) -> None:
        now = time.monotonic()
        if slot.actor is None:
            slot.actor = self._hired(slot.place)
            slot.heard, slot.heard_at = False, now
            slot.loading = slot.actor.load.remote()
        if slot.loading is None and slot.working is None and self._parts:
            slot.working, slot.queued, slot.ended = slot.actor.work.remote(), 0, False
        if slot.working is not None and slot.giving is None and not slot.ended and not slot.queued:
            self._give(slot)
        if slot.sign is None and now - slot.asked_at >= SIGN_EVERY_S:
            slot.sign, slot.asked_at = slot.actor.sign.remote(), now

    def _give(self, slot: _Slot) -> None:
        """A piece more, or the end; what has ended two workers goes alone, so that nothing else is blamed for it."""
        part = self._parts[0] if self._parts else None
        if part is not None and part.alone and slot.left:
            part = None
        slot.ended = part is None or part.alone
        pieces = []
        if part is not None:
            pieces.append(self._piece(self._parts.popleft()))
            slot.left |= dict.fromkeys(pieces[0].jobs, part.shard)
            slot.queued += 1
        slot.giving = slot.actor.give.remote(pieces, last=slot.ended)

    def _look_after(self, slot: _Slot) -> None:
        """Take what is there of a worker, or its end."""
        try:
            self._take(slot)
        except self._ray.exceptions.RayError as fault:
            self._replace(slot, _reason(fault))
            return
        silent = time.monotonic() - slot.heard_at
        if silent > (SILENT_S if slot.heard else START_S):
            self._replace(slot, f"it gave no sign of life for {silent:.0f} s")

    def _take(self, slot: _Slot) -> None:
        """Raises: RayError: the worker is no more. SrcliError: it cannot load the model."""
        ready = self._ray.wait(slot.promises, num_returns=len(slot.promises), timeout=0)[0] if slot.promises else []
        if slot.loading in ready:
            fault = self._ray.get(slot.loading)
            if fault is not None:
                raise fault
            slot.loading, slot.failed_starts = None, 0
        if slot.sign in ready:
            promise, slot.sign = slot.sign, None
            self._hear(slot, self._ray.get(promise))
        if slot.giving in ready:
            promise, slot.giving = slot.giving, None
            self._ray.get(promise)
        if slot.working in ready:
            self._ray.get(slot.working)
            self._hear(slot, self._ray.get(slot.actor.sign.remote(), timeout=SILENT_S))
            slot.working = None

    def _hear(self, slot: _Slot, sign: Sign) -> None:
        slot.heard, slot.heard_at, slot.effort, slot.queued = True, time.monotonic(), sign.effort, sign.queued
        for level, text in sign.messages:
            if (level, text) not in self._told:
                self._told.add((level, text))
                log.log(level, "%s", text)
        if sign.current:
            self._start(sign.current)
        for outcome in sign.outcomes:
            self._settle(slot, outcome)
        if slot.left and sign.idle_s > STALLED_S:
            raise self._ray.exceptions.RayError(f"nothing went on for {sign.idle_s:.0f} s")

    def _settle(self, slot: _Slot, outcome: Outcome) -> None:
        slot.left.pop(outcome.job, None)
        if outcome.reason == ELSEWHERE:
            self._elsewhere.append(outcome.job)
        elif outcome.reason == EXISTS and outcome.job in self._again:
            self._note(self._made(outcome.job))
        else:
            self._note(outcome)

    # --- ends ---

    def _replace(self, slot: _Slot, reason: str) -> None:
        """End a worker; what it has left is for others."""
        with contextlib.suppress(Exception):  # it may be gone
            self._ray.kill(slot.actor, no_restart=True)
        slot.failed_starts += slot.loading is not None
        slot.former_effort, slot.effort = slot.former_effort + slot.effort, Effort()
        made = [job for job in slot.left if self._is_made(job)]
        for job in made:
            self._note(self._made(job))
            del slot.left[job]
        left, slot.left = slot.left, {}
        slot.actor = slot.loading = slot.working = slot.giving = slot.sign = None
        what = f"; {counted(len(left), 'photo')} that it had {'is' if len(left) == 1 else 'are'} done again" if left else ""
        log.warning("the worker at %s has ended: %s%s", slot.place, reason, what)
        self._do_again(left, reason)

    def _do_again(self, left: Mapping[Job, Shard], reason: str) -> None:
        """The first ones may be to blame: they are tried together, then each alone."""
        groups: dict[tuple[Shard, int], list[Job]] = {}
        self._again |= left.keys()
        for place, (job, shard) in enumerate(left.items()):
            self._tries[job] += place < SUSPECTS
            groups.setdefault((shard, self._tries[job]), []).append(job)
        for (shard, tries), jobs in groups.items():
            if tries < MOST_TRIES - 1:
                self._parts.append(_Part(shard, jobs))
            elif tries < MOST_TRIES:
                self._parts.extend(_Part(shard, [job], alone=True) for job in jobs)
            else:
                self._blame(jobs, reason)

    def _blame(self, jobs: Iterable[Job], reason: str) -> None:
        hint = "repeat the command with this photo alone on one device; `--debug` shows more"
        for job in jobs:
            self._note(Outcome(job, "failed", f"{MOST_TRIES} workers ended over it, the last one because {reason}", hint))

    def _give_up(self) -> None:
        """Nobody is left: what is not done has failed."""
        hint = "repeat the command on one device, which tells why"
        for part in self._parts:
            for job in part.jobs:
                self._note(Outcome(job, "failed", "no worker is left: none could load the model", hint))
        self._parts.clear()

    def _stop(self) -> None:
        """Photos that are restored are still written, for a while."""
        busy = [slot for slot in self._slots if slot.working is not None]
        for slot in busy:
            slot.actor.stop.remote()
        until = time.monotonic() + STOP_S
        while busy and time.monotonic() < until:
            for slot in busy:
                try:
                    slot.sign = slot.sign or slot.actor.sign.remote()
                    self._ray.wait(slot.promises, num_returns=1, timeout=SIGN_EVERY_S)
                    self._take(slot)
                except self._ray.exceptions.RayError:  # it is gone already
                    slot.working = None
            busy = [slot for slot in busy if slot.working is not None]
        for slot in self._slots:
            for job in slot.left:
                if self._is_made(job):
                    self._note(self._made(job))

    def _is_made(self, job: Job) -> bool:
        """Whether its result was put in place since this run began."""
        state = _state(job.target)
        return state is not None and state != self._before[job]

    def _made(self, job: Job) -> Outcome:
        """Of a result that a worker did not come to tell of."""
        image = self._images[job]
        return Outcome(job, "done", input_size=image.input_size, output_size=image.output_size)

    def _hired(self, place: Place) -> Any:
        orders = orders_of(self._config, place.device, place.threads, self._settings)
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_concurrency": 4}
        if place.node:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(place.node, soft=False)
            options["num_gpus"] = int(place.device.startswith("cuda"))
        return self._ray.remote(Worker).options(**options).remote(orders, shared=self._shared)


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return (state.st_ino, state.st_mtime_ns, state.st_size) if state.st_size else None


def _reason(fault: Exception) -> str:
    """Why a worker has ended, in words."""
    text = str(fault)
    if "OutOfMemory" in type(fault).__name__ or "NODE_OUT_OF_MEMORY" in text:
        return "memory ran out on its machine"
    if "ActorDied" in type(fault).__name__ or "ActorUnavailable" in type(fault).__name__:
        lost = "its machine is gone" if "node" in text.lower() and "NODE_DIED" in text else ""
        return lost or "its process died, by a kill, a crash, or for want of memory"
    return first_line(fault)
