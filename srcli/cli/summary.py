"""What is told after, and during, a run over many images: the summary for people and scripts, and the report file."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from srcli.console import counted, format_duration, format_megapixels
from srcli.errors import UsageError
from srcli.images.files import Job, Outcome
from srcli.images.suffixes import counts_by_suffix

if TYPE_CHECKING:
    from srcli.engine.stream import Stream


log = logging.getLogger("srcli")

ENOUGH_PHOTOS, ENOUGH_MEGAPIXELS = 3, 5
"""Above which a speed says something of the next run."""


@dataclass
class Summary:
    """Counts of a run; `failed` keeps every failure."""

    output: Path
    """Where the results are: a folder, or the file for one photo."""
    skipped: int = 0
    done: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    """Suffix -> pictures of folders that were not taken, since none of that kind is read."""
    megapixels: float = 0.0
    """Of output."""
    seconds: float = 0.0
    """Of the whole run."""
    work_seconds: float = 0.0
    """Of it, those after the model was loaded."""
    exact_tiles: int = 0
    memory_retries: int = 0
    times: dict[str, float] = field(default_factory=dict)
    """Seconds that the model's thread waited for input, worked, and waited for output."""

    def add(self, outcome: Outcome) -> None:
        """Count one image."""
        if outcome.status == "failed":
            failure = {"input": str(outcome.job.source), "reason": outcome.reason, "hint": outcome.hint}
            self.failed.append(failure)
            return
        self.done += 1
        width, height = outcome.output_size or (0, 0)
        self.megapixels += width * height / 1e6

    def add_work(self, stream: Stream, seconds: float) -> None:
        """Take over the engine's counts and clock, and how long it worked."""
        self.work_seconds = seconds
        self.exact_tiles = stream.engine.repairs.exact_tiles
        self.memory_retries = stream.engine.repairs.memory_retries
        clock = stream.clock
        self.times = {
            "waiting_for_input": clock.waiting_for_input,
            "model": clock.model,
            "waiting_for_output": clock.waiting_for_output,
        }

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: `done` and `skipped` are counts, `failed` is a list, `left_out` counts by suffix."""
        return {
            "done": self.done,
            "skipped": self.skipped,
            "failed": self.failed,
            "left_out": self.left_out,
            "seconds": round(self.seconds, 3),
            "megapixels": round(self.megapixels, 6),
            "exact_tiles": self.exact_tiles,
            "memory_retries": self.memory_retries,
            "times": {name: round(seconds, 3) for name, seconds in self.times.items()},
        }

    def show(self) -> None:
        """A few lines on the console; failures are errors, so `--quiet` keeps them."""
        for failure in self.failed:
            hint = f"\n  hint: {failure['hint']}" if failure["hint"] else ""
            named = "" if failure["input"] in failure["reason"] else f"`{failure['input']}` failed: "
            log.error("%s%s%s", named, failure["reason"], hint)
        if self.exact_tiles:
            tiles = f"{counted(self.exact_tiles, 'tile')} {'was' if self.exact_tiles == 1 else 'were'}"
            log.warning("%s spoilt by half precision and done again in fp32", tiles)
        if self.memory_retries:
            log.warning("memory ran out %s; smaller tiles or batches were used", counted(self.memory_retries, "time"))
        log.info(self._line())
        if self.times:
            log.debug(", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in self.times.items()))

    def _line(self) -> str:
        """`12 photos upscaled to out (9.4 MP in 20.1 s, 0.47 MP/s), 2 skipped (done before), 1 failed`."""
        line = f"{counted(self.done, 'photo')} upscaled"
        if self.done:
            telling = self.done > ENOUGH_PHOTOS or self.megapixels > ENOUGH_MEGAPIXELS
            speed = f", {format_megapixels(self.megapixels / self.work_seconds)}/s" if telling and self.work_seconds else ""
            took = f"{format_megapixels(self.megapixels)} in {format_duration(self.work_seconds)}"
            line += f" to {self.output} ({took}{speed})"
        skipped = f", {self.skipped} skipped (done before)" if self.skipped else ""
        return line + skipped + (f", {len(self.failed)} failed" if self.failed else "")


def tell_left_out(files: Collection[Path]) -> None:
    """Warn of pictures that no folder gives, by kind; nothing is said where there are none."""
    if files:
        hint = "\n  hint: convert them to PNG, JPEG or TIFF"
        log.warning("left out: %s; files of such kinds are not taken from folders%s", counts_by_suffix(files), hint)


class Report:
    """The file of `--report`: one JSON line per image, written as soon as it is known. None writes nothing.

    When it can be written no longer (a full disk), that is told once and the pictures go on.

    Raises:
        UsageError: on entering, if the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
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

    def skipped(self, job: Job) -> None:
        """A line for an image that was done before."""
        self._line({"input": str(job.source), "output": str(job.target), "status": "skipped", "reason": "exists"})

    def finished(self, outcome: Outcome) -> None:
        """A line for an image that was worked on."""
        self._line(
            {
                "input": str(outcome.job.source),
                "output": str(outcome.job.target),
                "status": outcome.status,
                "reason": outcome.reason,
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
