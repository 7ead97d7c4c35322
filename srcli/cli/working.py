"""The work of `srcli upscale` once it is planned: on one device or by a fleet, and who is told of what becomes of each photo."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from srcli.cli.summary import Report, Summary
from srcli.config import UpscaleConfig
from srcli.console import UpscaleProgress, console
from srcli.disk import make_output_folder
from srcli.images.files import ELSEWHERE, EXISTS, Job, Jobs, Outcome
from srcli.opening import PlannedImage, megapixels, open_stream, planned
from srcli.rows.spec import ModelSpec
from srcli.shards.ledger import Division, Ledger, shard_count

if TYPE_CHECKING:
    from srcli.engine.stream import Stream
    from srcli.images.codec import Header

_LOOKED_INTO = 1000
"""How many files are looked into before anything is begun: folders of so many have what cannot be read told first."""


@dataclass
class Notes:
    """All that is to know what becomes of photos."""

    summary: Summary
    report: Report
    ledger: Ledger | None
    """Where results are recorded; None where there is no folder of them."""
    met: list[Job] = field(default_factory=list)
    """Those that another run has done meanwhile."""
    record: Callable[[Job, str], None] | None = None
    """Puts a failure into a ledger."""
    divide: Callable[[int], None] | None = None
    """For a fleet that divides the work into so many shards: begins their ledgers."""
    _waiting: list[Outcome] = field(default_factory=list)
    """Failures that were known before the work was divided."""

    def add(self, outcome: Outcome) -> None:
        self.summary.add(outcome)
        self.report.add(outcome)
        if outcome.status == "failed" and self.record is not None:
            self.record(outcome.job, outcome.reason)
        elif outcome.status == "failed":
            self._waiting.append(outcome)

    def dividing(self, ledger: Ledger, planned: Sequence[str], kept: Sequence[str]) -> Callable[[int], None]:
        """For `divide`; see `Division.begin`."""

        def divide(count: int) -> None:
            division = Division(ledger.output, ledger.settings, count)
            division.begin(planned, kept)
            self.record = lambda job, reason: division.failed(job.place, job.source, reason)
            for outcome in self._waiting:
                self.record(outcome.job, outcome.reason)

        return divide


def restore(config: UpscaleConfig, spec: ModelSpec, jobs: Jobs, notes: Notes) -> None:
    """Files that cannot be read fail without a model; the others go through it."""
    told = _Told(config, spec, jobs, notes)
    if told.jobs:
        make_output_folder(told.jobs[0].target.parent)
        (_by_fleet if config.for_fleet else _by_stream)(config, spec, told)
    elif notes.divide is not None:
        notes.divide(shard_count(config.output) or 1)


class _Told:
    """What is to be done, and all who are told of it.

    The first files are looked into before the model is loaded, the others when it is their turn: a large folder begins soon,
    and little of it is in memory.
    """

    def __init__(self, config: UpscaleConfig, spec: ModelSpec, jobs: Jobs, notes: Notes) -> None:
        self.notes = notes
        self._planned = partial(planned, config, spec)
        self._images: dict[Job, PlannedImage] = {}
        self.headers: dict[Job, Header] = {}
        """Of photos that are to be done next, or are at work."""
        good = [True] * len(jobs)
        seen = 0
        for seen, image in enumerate(self._planned(jobs), 1):
            if image.fault:
                good[seen - 1] = False
                notes.add(Outcome(image.job, "failed", image.fault, image.hint))
            else:
                self._images[image.job] = image
            if seen >= _LOOKED_INTO and self._images:
                break
        self.jobs = jobs.chosen(good)
        """Less those that cannot be read, as far as it is known."""
        megapixels_ = sum(megapixels(image.output_size) for image in self._images.values())
        self._mean = None if seen == len(jobs) else megapixels_ / len(self._images)
        self.progress = UpscaleProgress(len(self.jobs), megapixels_ if self._mean is None else self._mean * len(self.jobs))

    def good(self, jobs: Iterable[Job]) -> Iterator[PlannedImage]:
        """Those of `jobs` that can be read; of the others it is noted."""
        for job in jobs:
            image = self._images.get(job) or next(self._planned([job]))
            if image.fault:
                self.note(Outcome(job, "failed", image.fault, image.hint))
                continue
            self._images[job] = image
            if image.header:
                self.headers[job] = image.header
            yield image

    def forget(self, job: Job) -> PlannedImage | None:
        """It is done, or left for later."""
        self.headers.pop(job, None)
        return self._images.pop(job, None)

    def note(self, outcome: Outcome) -> None:
        self.notes.add(outcome)
        if outcome.reason == EXISTS:
            self.notes.met.append(outcome.job)
        image = self.forget(outcome.job)
        expected = self._mean if image is None or self._mean is not None else megapixels(image.output_size)
        self.progress.finish(megapixels(outcome.output_size), expected or 0)


def _is_shared(config: UpscaleConfig) -> bool:
    """Whether results that are there are done, also those that other runs make meanwhile."""
    return not (config.overwrite or config.redo_changed)


def _by_fleet(config: UpscaleConfig, spec: ModelSpec, told: _Told) -> None:
    from srcli.fleet.run import Fleet

    notes = told.notes
    settings = None if notes.ledger is None else notes.ledger.settings
    fleet = Fleet(config, settings, notes.divide, told.good, told.note, told.progress.start, shared=_is_shared(config))
    start = time.perf_counter()
    try:
        with told.progress:
            fleet.run(told.jobs)
    finally:
        notes.summary.add_work(fleet.effort, time.perf_counter() - start)


def _by_stream(config: UpscaleConfig, spec: ModelSpec, told: _Told) -> None:
    with console.status("loading the model", spinner="dots") if console.is_terminal else contextlib.nullcontext():
        stream = open_stream(config, spec)
    start = time.perf_counter()
    try:
        with told.progress:
            if left := _stream(stream, told.jobs, told, shared=_is_shared(config), last=False):
                _stream(stream, left, told, shared=True, last=True)  # the run that was at these may have been ended meanwhile
    finally:
        told.notes.summary.add_work(stream.effort, time.perf_counter() - start)


def _stream(stream: Stream, jobs: Iterable[Job], told: _Told, *, shared: bool, last: bool) -> list[Job]:
    """Run jobs and note what became of each, whatever ends that; but unless it is the `last` time, not of those returned.

    Returns:
        Jobs that another run is at.
    """
    placing = None if told.notes.ledger is None else told.notes.ledger.placing
    left: list[Job] = []
    start = lambda job: told.progress.start(job.source.name)  # noqa: E731
    good = (image.job for image in told.good(jobs))
    outcomes = stream.run(good, start, told.headers, shared=shared, placing=placing)
    try:
        for outcome in outcomes:
            if outcome.reason == ELSEWHERE and not last:
                left.append(outcome.job)
                told.forget(outcome.job)
            else:
                told.note(outcome)
    finally:
        outcomes.close()
        for outcome in stream.late:
            told.note(outcome)
    return left
