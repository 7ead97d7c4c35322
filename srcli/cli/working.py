"""The work of `srcli upscale` once it is planned: on one device or by a fleet, and who is told of what becomes of each photo."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from srcli.cli.summary import Report, Summary
from srcli.config import UpscaleConfig
from srcli.console import UpscaleProgress, console
from srcli.disk import make_output_folder
from srcli.images.files import ELSEWHERE, EXISTS, Job, Outcome
from srcli.opening import PlannedImage, megapixels, open_stream
from srcli.rows.spec import ModelSpec
from srcli.shards.ledger import Division, Ledger, shard_count

if TYPE_CHECKING:
    from srcli.engine.stream import Stream


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


def restore(config: UpscaleConfig, spec: ModelSpec, images: Sequence[PlannedImage], notes: Notes) -> None:
    """Files that cannot be read fail without a model; the others go through it."""
    for image in images:
        if image.fault:
            notes.add(Outcome(image.job, "failed", image.fault, image.hint))
    good = {image.job: image for image in images if not image.fault}
    if good:
        make_output_folder(next(iter(good)).target.parent)
        (_by_fleet if config.for_fleet else _by_stream)(config, spec, good, notes)
    elif notes.divide is not None:
        notes.divide(shard_count(config.output) or 1)


class _Told:
    """Progress and notes of the photos that are to be done."""

    def __init__(self, images: Mapping[Job, PlannedImage], notes: Notes) -> None:
        self._expected = {job: megapixels(image.output_size) for job, image in images.items()}
        self._notes = notes
        self.progress = UpscaleProgress(len(images), sum(self._expected.values()))

    def note(self, outcome: Outcome) -> None:
        self._notes.add(outcome)
        if outcome.reason == EXISTS:
            self._notes.met.append(outcome.job)
        self.progress.finish(megapixels(outcome.output_size), self._expected[outcome.job])


def _is_shared(config: UpscaleConfig) -> bool:
    """Whether results that are there are done, also those that other runs make meanwhile."""
    return not (config.overwrite or config.redo_changed)


def _by_fleet(config: UpscaleConfig, spec: ModelSpec, images: Mapping[Job, PlannedImage], notes: Notes) -> None:
    from srcli.fleet.run import Fleet

    told, settings = _Told(images, notes), None if notes.ledger is None else notes.ledger.settings
    fleet = Fleet(config, settings, notes.divide, told.note, told.progress.start, shared=_is_shared(config))
    start = time.perf_counter()
    try:
        with told.progress:
            fleet.run(images)
    finally:
        notes.summary.add_work(fleet.effort, time.perf_counter() - start)


def _by_stream(config: UpscaleConfig, spec: ModelSpec, images: Mapping[Job, PlannedImage], notes: Notes) -> None:
    with console.status("loading the model", spinner="dots") if console.is_terminal else contextlib.nullcontext():
        stream = open_stream(config, spec)
    told, placing = _Told(images, notes), None if notes.ledger is None else notes.ledger.placing
    start = time.perf_counter()
    try:
        with told.progress:
            run = partial(_stream, stream, told=told, placing=placing)
            if left := run(images, shared=_is_shared(config), last=False):  # to another run, which may have been ended meanwhile
                run({job: images[job] for job in left}, shared=True, last=True)
    finally:
        notes.summary.add_work(stream.effort, time.perf_counter() - start)


def _stream(
    stream: Stream,
    images: Mapping[Job, PlannedImage],
    *,
    told: _Told,
    placing: Callable[[Path, int], None] | None,
    shared: bool,
    last: bool,
) -> list[Job]:
    """Run jobs and note what became of each, whatever ends that; but unless it is the `last` time, not of those returned.

    Returns:
        Jobs that another run is at.
    """
    headers = {job: image.header for job, image in images.items() if image.header}
    left: list[Job] = []
    start = lambda job: told.progress.start(job.source.name)  # noqa: E731
    outcomes = stream.run(images, start, headers, shared=shared, placing=placing)
    try:
        for outcome in outcomes:
            if outcome.reason == ELSEWHERE and not last:
                left.append(outcome.job)
            else:
                told.note(outcome)
    finally:
        outcomes.close()
        for outcome in stream.late:
            told.note(outcome)
    return left
