"""What is told after, and during, a run over many images: the summary for people and scripts, and the report file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from srcli.console import counted, format_duration, format_megapixels
from srcli.engine.effort import Effort
from srcli.errors import SrcliError, UsageError, escaped
from srcli.images.files import ELSEWHERE, OTHERWISE, UNKNOWN, Outcome
from srcli.images.search import LeftOut, counted_kinds
from srcli.images.suffixes import counts_by_suffix, suffix_counts
from srcli.remote.urls import Place, is_url

log = logging.getLogger("srcli")

_DIFFERENCES_TOLD = 6
ENOUGH_PHOTOS, ENOUGH_MEGAPIXELS = 3, 5
"""Above which a speed says something of the next run."""


@dataclass
class Summary:
    """Counts of a run; `failed` keeps every failure."""

    output: Place
    """Where the results are: a folder, or the file for one photo."""
    skipped: int = 0
    done: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    elsewhere: int = 0
    """Left to another run, which is making them."""
    outdated: int = 0
    """Of `skipped`, those whose photos are newer than their results."""
    otherwise: int = 0
    """Of `skipped`, those that were made with other settings."""
    unknown: int = 0
    """Of `skipped`, those of which it is not known with which."""
    differences: list[str] = field(default_factory=list)
    """In what the settings of `otherwise` differ."""
    left_out: LeftOut = field(default_factory=LeftOut)
    names: Mapping[str, str] = field(default_factory=dict)
    """Of temporary files in messages, as people know them."""
    megapixels: float = 0.0
    """Of output."""
    seconds: float = 0.0
    """Of the whole run."""
    work_seconds: float = 0.0
    """Of it, those after the model was loaded."""
    exact_tiles: int = 0
    memory_retries: int = 0
    stopped: SrcliError | None = None
    """What ended the run before all was tried."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds that the model's thread waited for input, worked, and waited for output."""

    def add(self, outcome: Outcome) -> None:
        """Count one image."""
        if outcome.status == "skipped":
            self.elsewhere += outcome.reason == ELSEWHERE
            self.skipped += outcome.reason != ELSEWHERE
            self.otherwise += outcome.reason == OTHERWISE
            self.unknown += outcome.reason == UNKNOWN
            return
        if outcome.status == "failed":
            failure = {"input": str(outcome.job.source), "reason": outcome.reason, "hint": outcome.hint}
            self.failed.append({key: self.told(text) for key, text in failure.items()})
            return
        self.done += 1
        width, height = outcome.output_size or (0, 0)
        self.megapixels += width * height / 1e6

    def add_work(self, effort: Effort, seconds: float) -> None:
        """Take over the engine's counts and clock, and how long it worked."""
        self.work_seconds = seconds
        self.exact_tiles, self.memory_retries = effort.exact_tiles, effort.memory_retries
        self.times = {
            "waiting_for_input": effort.waiting_for_input,
            "model": effort.model,
            "waiting_for_output": effort.waiting_for_output,
        }

    def told(self, text: str) -> str:
        """A text for people, without names of temporary files."""
        return renamed(text, self.names)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: `failed` is a list, `left_out` and `others` count files by kind, the rest are counts."""
        return {
            "done": self.done,
            "skipped": self.skipped,
            **self.kept_as_dict(),
            "elsewhere": self.elsewhere,
            "failed": self.failed,
            **({"stopped": {"message": self.stopped.message, "hint": self.stopped.hint}} if self.stopped else {}),
            **left_out_as_dict(self.left_out),
            "seconds": round(self.seconds, 3),
            "megapixels": round(self.megapixels, 6),
            "exact_tiles": self.exact_tiles,
            "memory_retries": self.memory_retries,
            "times": {name: round(seconds, 3) for name, seconds in self.times.items()},
        }

    def kept_as_dict(self) -> dict[str, int]:
        """Of what is kept, how much may be other than what the command would make."""
        return {"outdated": self.outdated, "other_settings": self.otherwise, "unknown_settings": self.unknown}

    def show(self) -> None:
        """A few lines on the console; failures are errors, so `--quiet` keeps them."""
        for failure in self.failed:
            hint = f"\n  hint: {failure['hint']}" if failure["hint"] else ""
            name = escaped(failure["input"])
            named = "" if name in failure["reason"] else f"`{name}` failed: "
            log.error("%s%s%s", named, escaped(failure["reason"]), hint)
        if self.exact_tiles:
            tiles = f"{counted(self.exact_tiles, 'tile')} {'was' if self.exact_tiles == 1 else 'were'}"
            log.warning("%s spoilt by half precision and done again in fp32", tiles)
        if self.memory_retries:
            log.warning("memory ran out %s; smaller tiles or batches were used", counted(self.memory_retries, "time"))
        self._tell_kept()
        if self.stopped:
            hint = f"\n  hint: {self.stopped.hint}" if self.stopped.hint else ""
            early = "" if isinstance(self.stopped, UsageError) else "the run ended early: "
            log.error("%s%s%s", early, self.stopped.message, hint)
        log.info(self._line())
        if self.times:
            log.debug(", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in self.times.items()))

    def _tell_kept(self) -> None:
        """What is kept and may be other than what the command would make."""
        again = "`--overwrite=changed` does such again"
        if self.otherwise:
            which = "result is" if self.otherwise == 1 else "results are"
            more = ["and more"] if len(self.differences) > _DIFFERENCES_TOLD else []
            why = "; ".join([*self.differences[:_DIFFERENCES_TOLD], *more]) or "no ledger says which"
            log.warning("%d %s kept that other settings have made (%s); %s", self.otherwise, which, why, again)
        if self.unknown:
            which = "result is" if self.unknown == 1 else "results are"
            log.warning("%d %s kept of which it is not known with what settings it was made; %s", self.unknown, which, again)
        if self.outdated:
            have = "photo is newer than its result" if self.outdated == 1 else "photos are newer than their results"
            log.warning("%d %s; %s", self.outdated, have, again)

    def _line(self) -> str:
        """`12 photos upscaled to out (9.4 MP in 20.1 s, 0.47 MP/s), 2 skipped (done before), 1 failed`."""
        line = f"{counted(self.done, 'photo')} upscaled"
        if self.done:
            telling = self.done > ENOUGH_PHOTOS or self.megapixels > ENOUGH_MEGAPIXELS
            speed = f", {format_megapixels(self.megapixels / self.work_seconds)}/s" if telling and self.work_seconds else ""
            took = f"{format_megapixels(self.megapixels)} in {format_duration(self.work_seconds)}"
            line += f" to {escaped(self.output)} ({took}{speed})"
        skipped = f", {self.skipped} skipped (done before)" if self.skipped else ""
        skipped += f", {self.elsewhere} left to another run that is making them" if self.elsewhere else ""
        return line + skipped + (f", {len(self.failed)} failed" if self.failed else "")


def told_of_kept(kept: int, outdated: int, otherwise: int, unknown: int) -> str:
    """`, 12 done already (3 of them of other settings)`, for a dry run; see `Summary`."""
    counts = {"older than their photos": outdated, "of other settings": otherwise, "of unknown settings": unknown}
    which = ", ".join(f"{count} of them {what}" for what, count in counts.items() if count)
    return f", {kept} done already" + (f" ({which})" if which else "") if kept else ""


def renamed(text: str, names: Mapping[str, str]) -> str:
    """A text with other names for files: path -> name."""
    for path, name in list(names.items()):  # a copy: files on their way come and go
        text = text.replace(f"`{path}`", f"`{name}`" if is_url(name) else name).replace(path, name)
    return text


def tell_left_out(left_out: LeftOut) -> None:
    """Tell what no folder gives, by kind: of pictures a warning; nothing is said where there is nothing."""
    if left_out.pictures:
        hint = "\n  hint: convert them to PNG, JPEG or TIFF"
        kinds = counts_by_suffix(left_out.pictures)
        log.warning("left out: %s; files of such kinds are not taken from folders%s", kinds, hint)
    count = left_out.others.total()
    if count:
        which = "1 of another kind" if count == 1 else f"{count} of other kinds"
        log.info("%s left out: %s", which, escaped(counted_kinds(left_out.others)))


def left_out_as_dict(left_out: LeftOut) -> dict[str, Any]:
    """For `--json`: `left_out` are pictures that are not read, `others` all else of folders, both by kind."""
    return {
        "left_out": suffix_counts(left_out.pictures),
        "others": dict(left_out.others.most_common()),
        "results_left_out": left_out.results,
    }


class Report:
    """The file of `--report`: one JSON line per image, written as soon as it is known. None writes nothing.

    When it can be written no longer (a full disk), that is told once and the pictures go on.

    Raises:
        UsageError: on entering, if the file cannot be written.
    """

    def __init__(self, path: Path | None, told: Callable[[str], str] = str) -> None:
        self.path = path
        self._told = told
        self._file: TextIO | None = None

    def __enter__(self) -> Report:
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("w", encoding="utf-8")
            except OSError as error:
                message = f"cannot write the report `{self.path}`: {error.strerror or error}"
                raise UsageError(message, "give another `--report`") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._give_up(error)

    def add(self, outcome: Outcome) -> None:
        """A line for an image."""
        job = outcome.job
        known = {"input": self._told(str(job.source)), "output": self._told(str(job.target)), "status": outcome.status}
        if outcome.status == "skipped":
            self._line({**known, "reason": outcome.reason})
            return
        self._line(
            {
                **known,
                "reason": self._told(outcome.reason),
                "input_size": outcome.input_size,
                "output_size": outcome.output_size,
                "model_seconds": round(outcome.seconds, 4),
                **({"found": dict(outcome.found)} if outcome.found else {}),
            }
        )

    def _line(self, content: dict[str, Any]) -> None:
        if self._file is not None:
            try:
                self._file.write(json.dumps(content) + "\n")
                self._file.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # what could not be written is tried once more
                file.close()
        reason = error.strerror or error
        log.warning("the report `%s` is incomplete, no more is written: %s", self.path, reason)
