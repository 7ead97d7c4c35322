"""`srcli upscale` where photos or results lie in stores or on web servers: listed, fetched and put while the model works."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer

from srcli.cli.pipe import AsKnown
from srcli.cli.stopping import exit_code, word
from srcli.cli.summary import Report, Summary, left_out_as_dict, tell_left_out, told_of_kept
from srcli.config import UpscaleConfig
from srcli.console import UpscaleProgress, console, format_duration, format_megapixels, rough_duration, tell
from srcli.disk import make_output_folder
from srcli.errors import SrcliError, UsageError, escaped
from srcli.images.files import OTHERWISE, UNKNOWN, Job, Outcome
from srcli.images.metadata import is_own_result
from srcli.images.suffixes import INPUT_SUFFIXES, UNREAD_SUFFIXES
from srcli.opening import PlannedImage, estimate_seconds, made_with, megapixels, model_of, open_stream, planned, with_devices
from srcli.remote.faults import StoreError
from srcli.remote.ledger import StoreLedger
from srcli.remote.plan import Item, Naming, Plan
from srcli.remote.staging import staged
from srcli.remote.store import Stores
from srcli.remote.transit import Transit
from srcli.remote.urls import is_url, parsed
from srcli.rows.spec import ModelSpec
from srcli.shards.ledger import Begun, Ledger

if TYPE_CHECKING:
    from srcli.engine.stream import Stream
    from srcli.images.codec import Header

log = logging.getLogger("srcli")

_SAMPLES = 4
"""Photos that a dry run fetches for its estimate."""


def run_at_stores(config: UpscaleConfig, inputs: Sequence[str], names: Mapping[str, str]) -> int:
    """Do what `config` says, with `inputs` of which some, or the output, are URLs; returns the exit code.

    Args:
        config: of the run.
        inputs: the command line's, or those of its list.
        names: of temporary files in messages.

    Raises:
        UsageError: what cannot be, or can only be for files; a package that is missing.
        StoreError: a store that cannot be used, where nothing was begun yet.
    """
    config = with_devices(config)
    _refuse(config, inputs)
    start = time.perf_counter()
    spec = model_of(config)
    plan = Plan(
        inputs,
        output=config.output if config.output_url is None else parsed(config.output_url),
        stores=Stores(),
        naming=Naming(config.format, config.suffix),
        listed=config.files_from is not None,
        recursive=config.recursive,
        overwrite=config.overwrite,
        redo_changed=config.redo_changed,
    )
    known = dict(names)
    summary = Summary(plan.output, left_out=plan.left_out, names=known)
    stop: KeyboardInterrupt | None = None
    with staged() as folder, Transit(plan.stores, folder, known) as transit, AsKnown(known):
        ledger = plan.ledger(made_with(config, spec), config.shard, folder)
        transit.ledger = ledger if isinstance(ledger, StoreLedger) else None
        if config.dry_run:
            return _dry_run(config, spec, plan, transit)
        with Report(config.report, summary.told) as report, _Book(ledger) as book:
            try:
                _Run(config, spec, transit, summary, report, book).go(_of_shard(plan, config))
            except KeyboardInterrupt as asked:
                stop = asked
        if ledger is not None:
            summary.differences = list(dict.fromkeys(line for maker in plan.changed for line in ledger.differences(maker)))
    summary.seconds = time.perf_counter() - start
    summary.stopped = transit.stopped
    if transit.stopped and not (summary.done or summary.failed or summary.skipped or stop):
        raise transit.stopped
    tell_left_out(summary.left_out)
    summary.show()
    if config.json:
        typer.echo(json.dumps(summary.as_dict()))
    if stop is not None:
        log.warning("%s: repeat the command to go on", word())
        return exit_code()
    return 1 if summary.failed or summary.stopped else 0


def _refuse(config: UpscaleConfig, inputs: Sequence[str]) -> None:
    """What is for files only, and a report that would take a photo's place."""
    if config.lambda_map is not None:
        raise UsageError("`--lambda-map` leads local photos only", "copy the photos into a folder first")
    if config.writes_to_pipe:
        raise UsageError("`-o -` takes a local photo", "give a file as `--output`")
    if config.for_fleet:
        message = "several devices and `--ray-address` share local folders only, not stores"
        raise UsageError(message, "start a run for each device, with `--shard`")
    report = config.report
    if report is not None and report.suffix.lower() in INPUT_SUFFIXES | UNREAD_SUFFIXES:
        raise UsageError(f"the report `{report}` has the name of a picture", "call it `.jsonl`: it holds a JSON line per image")
    paths = [Path(text) for text in inputs if not is_url(text)]
    if report is not None and report.exists() and any(path.exists() and path.samefile(report) for path in paths):
        raise UsageError(f"the report `{report}` is an input", "give another `--report`")


def _of_shard(plan: Plan, config: UpscaleConfig) -> Iterator[Item]:
    """The items of the run's shard, or all."""
    shard = config.shard
    return (item for item in plan.items() if shard is None or shard.has(item.place))


class _Book:
    """A run's ledger, which begins with the first photo that there is something to do for; None: there is none."""

    def __init__(self, ledger: StoreLedger | Ledger | None) -> None:
        self._ledger = ledger
        self._stack = contextlib.ExitStack()
        self._is_open = self._is_listed = self._is_told = False
        self._planned = self._kept = 0

    def __enter__(self) -> _Book:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        with self._stack:
            if value is None and self._ledger is not None:
                self._end(self._ledger)

    def counted(self, items: Iterable[Item]) -> Iterator[Item]:
        """Items of a listing, in a thread of its own; how many they are is recorded at its end."""
        for item in items:
            self._planned += 1
            self._kept += bool(item.kept)
            yield item
        self._is_listed = True

    @property
    def placing(self) -> Callable[[Path, int], None] | None:
        """For results of a folder; see `Ledger.placing`."""
        return self._ledger.placing if isinstance(self._ledger, Ledger) else None

    def open(self) -> None:
        """Begin; nothing where that was done before.

        Raises:
            SrcliError: nothing can be written where results go.
        """
        if self._ledger is not None and not self._is_open:
            self._stack.enter_context(self._ledger.kept_by(None))
            self._is_open = True

    def note(self, source: str = "", reason: str = "") -> None:
        """Record why a photo has failed, if one has, and how many there are as soon as that is known."""
        if reason:
            self.open()
        if self._ledger is None or not self._is_open:
            return
        if reason:
            self._ledger.failed(source, reason)
        if self._is_listed and not self._is_told:
            self._ledger.planned(Begun(self._planned, self._kept))
            self._is_told = True

    def _end(self, ledger: StoreLedger | Ledger) -> None:
        """A run that had nothing to do is recorded where that is news."""
        begun = Begun(self._planned, self._kept)
        if self._is_listed and ledger.is_news(begun):
            self.open()
        self.note()
        if isinstance(ledger, StoreLedger) and self._is_open:
            try:
                ledger.commit()
            except SrcliError as error:
                log.warning("`srcli status` will not know how this run has ended: %s", error.message)


@dataclass
class _Run:
    """From items to outcomes."""

    config: UpscaleConfig
    spec: ModelSpec
    transit: Transit
    summary: Summary
    report: Report
    book: _Book
    _expected: dict[Job, float] = field(default_factory=dict)
    """Megapixels of results to come."""
    _headers: dict[Job, Header] = field(default_factory=dict)
    _own_told: bool = False

    def go(self, items: Iterator[Item]) -> None:
        """All that the items ask for, as far as stores answer; see `Transit.stopped`."""
        items = self.book.counted(items)
        images = planned(self.config, self.spec, self.transit.jobs(items, self._note_item, self._failed))
        good = (image for image in images if self._begun(image))
        first = next(good, None)
        if first is None:
            return
        if self.config.output_url is None:
            make_output_folder(first.job.target.parent)
        self.book.open()
        with console.status("loading the model", spinner="dots") if console.is_terminal else contextlib.nullcontext():
            stream = open_stream(self.config, self.spec)
        start = time.perf_counter()
        with UpscaleProgress(None, 0) as progress:
            try:
                self._stream(stream, chain([first], good), progress)
            finally:
                stream.clock.waiting_for_input += self.transit.waited_s
                self.summary.add_work(stream.effort, time.perf_counter() - start)

    def _stream(self, stream: Stream, images: Iterator[PlannedImage], progress: UpscaleProgress) -> None:
        def note(outcomes: Iterator[Outcome]) -> None:
            for outcome in outcomes:
                expected = self._expected.pop(outcome.job, 0.0)
                self._headers.pop(outcome.job, None)
                self._note(outcome)
                progress.finish(megapixels(outcome.output_size), expected)

        # several runs share a folder here; of a store's results nobody knows until they are there
        shared = self.config.output_url is None and not (self.config.overwrite or self.config.redo_changed)
        jobs = (image.job for image in images)
        outcomes = stream.run(
            jobs, lambda job: progress.start(self.transit.name_of(job)), self._headers, shared=shared, placing=self.book.placing
        )
        try:
            for outcome in outcomes:
                note(self.transit.put(outcome))
        finally:
            outcomes.close()
            for outcome in stream.late:
                note(self.transit.put(outcome))
            note(self.transit.settled())

    def _begun(self, image: PlannedImage) -> bool:
        """Whether a photo that is here can be restored; its fault is noted."""
        if image.fault:
            self._note(Outcome(image.job, "failed", image.fault, image.hint))
            return False
        self._expected[image.job] = megapixels(image.output_size)
        if image.header:
            self._headers[image.job] = image.header
        if not self._own_told and self.transit.is_fetched(image.job) and is_own_result(image.job.source):
            self._own_told = True
            message = "`%s` is a result of srcli itself, and is enlarged again; others of the kind are not named"
            log.warning(message, image.job.source)
        return True

    def _failed(self, job: Job, error: StoreError) -> None:
        self._note(Outcome(job, "failed", error.message, error.hint))

    def _note_item(self, item: Item) -> None:
        self.summary.outdated += item.outdated
        job = self.transit.job_of(item)
        self._note(Outcome(job, "skipped", item.kept) if item.kept else Outcome(job, "failed", item.fault, item.hint))

    def _note(self, outcome: Outcome) -> None:
        self.summary.add(outcome)
        self.report.add(outcome)
        failure = (str(outcome.job.source), outcome.reason) if outcome.status == "failed" else ()
        self.book.note(*map(self.summary.told, failure))
        self.transit.forget(outcome.job)


@dataclass
class _Outline:
    """What a dry run has seen of a plan."""

    samples: list[Item] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    to_do: int = 0
    size: int = 0
    """Of photos to do, in bytes, as far as it is known."""
    faulty: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    """What is said of results that are there -> how many."""
    outdated: int = 0

    def add(self, item: Item, *, as_json: bool) -> None:
        """Count an item, and tell of it where there is something to do."""
        if item.kept:
            self.kept[item.kept] += 1
            self.outdated += item.outdated
            return
        self.faulty += bool(item.fault)
        if not item.fault:
            self.to_do += 1
            self.size += item.size or 0
            self.samples += [item] if len(self.samples) < _SAMPLES else []
        if as_json:
            self.lines.append({"input": str(item.source), "output": str(item.target), "bytes": item.size, "fault": item.fault})
        else:
            tell(escaped(item.fault or f"{item.source} -> {item.target}"))

    @property
    def share(self) -> float:
        """Of the samples in all, by bytes where these are known."""
        known = sum(item.size or 0 for item in self.samples)
        return known / self.size if known else len(self.samples) / max(1, self.to_do)


def _dry_run(config: UpscaleConfig, spec: ModelSpec, plan: Plan, transit: Transit) -> int:
    """Tell what would be done. Only the first photos are fetched: from their sizes, those of all are estimated."""
    outline = _Outline()
    for item in _of_shard(plan, config):
        outline.add(item, as_json=config.json)

    def failed(job: Job, error: StoreError) -> None:
        raise error

    images = list(planned(config, spec, transit.jobs(iter(outline.samples), lambda item: None, failed)))
    for image in images:
        if image.fault:
            outline.faulty += 1
            log.warning("%s", image.fault)
    images = [image for image in images if not image.fault]
    loading = seconds = total = 0.0
    if images:
        start = time.perf_counter()
        stream = open_stream(config, spec)
        loading = time.perf_counter() - start
        total = sum(megapixels(image.output_size) for image in images) / outline.share
        seconds = loading + estimate_seconds(stream, images) / outline.share
    code = 1 if outline.faulty else 0
    if config.json:
        others = {"other_settings": outline.kept[OTHERWISE], "unknown_settings": outline.kept[UNKNOWN]}
        counts = {"planned": outline.lines, "skipped": outline.kept.total(), "outdated": outline.outdated, **others}
        told = {**counts, **left_out_as_dict(plan.left_out), "bytes": outline.size, "megapixels": total}
        typer.echo(json.dumps({**told, "estimated_seconds": seconds, "loading_seconds": loading}))
        return code
    tell_left_out(plan.left_out)
    done = told_of_kept(outline.kept.total(), outline.outdated, outline.kept[OTHERWISE], outline.kept[UNKNOWN])
    bad = f", {outline.faulty} that would fail" if outline.faulty else ""
    took = f"; about {rough_duration(seconds)} here, {format_duration(loading)} of it to load the model" if images else ""
    by = f", judged by the first {len(images)}" if len(images) < outline.to_do else ""
    size = f"about {format_megapixels(total)} of results from {outline.size / 1e6:.3g} MB{by}"
    tell(f"{outline.to_do} to do ({size}){done}{bad}{took}")
    return code
