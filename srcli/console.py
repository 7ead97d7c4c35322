"""What people see: messages and progress go to stderr; stdout is for data alone, which tables of results are."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePath
from types import TracebackType
from typing import ClassVar

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from srcli.errors import SrcliError, escaped

log = logging.getLogger("srcli")

console = Console(stderr=True, highlight=False, emoji=False)
stdout = Console(highlight=False, emoji=False)
LINE_EVERY_S = 60.0
"""Between two lines of progress, where no bar can be shown."""
_LITERALS = re.compile(r"`[^`]*`")


def set_up_logging(*, debug: bool, quiet: bool) -> None:
    """Send the logger `srcli` to the console: warnings and above, with `quiet`; everything, with `debug`."""
    log.handlers = [_ConsoleHandler()]
    log.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
    log.propagate = False


def show_error(error: SrcliError) -> None:
    """Print an error as `error: …`, a blank line, `hint: …`."""
    console.print(f"[bold red]error[/]: {_printable(error.message)}", soft_wrap=True)
    if error.hint:
        console.print(f"\n[bold cyan]hint[/]: {_printable(error.hint)}", soft_wrap=True)


def tell(text: str) -> None:
    """Print a message that was asked for, and that `--quiet` does not hide."""
    console.print(_printable(text), soft_wrap=True)


def print_table(table: Table) -> None:
    """Print results on stdout, at their full width: on a narrow terminal lines wrap, and no number is cut."""
    table.width = Measurement.get(stdout, stdout.options.update(max_width=10_000), table).maximum
    stdout.print(table, crop=False, soft_wrap=True)


def _printable(text: str, *, literals: bool = True) -> str:
    """As it is, on a terminal: names of files may hold markup, and codes that would clear the screen or worse.

    Ends of lines are those of the message, but for `literals` in backticks.
    """
    text = _LITERALS.sub(lambda literal: escaped(literal[0]), text) if literals else text
    return escape("\n".join(map(escaped, text.split("\n"))))


class _ConsoleHandler(logging.Handler):
    _STYLES: ClassVar = {logging.WARNING: "[bold yellow]warning[/]: ", logging.ERROR: "[bold red]error[/]: "}

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple):
            record.args = tuple(escaped(each) if isinstance(each, PurePath) else each for each in record.args)
        text = self._STYLES.get(record.levelno, "") + _printable(record.getMessage())
        if record.exc_info:
            text += "\n" + _printable(logging.Formatter().formatException(record.exc_info), literals=False)
        with suppress(OSError):  # the terminal is gone, and with it whoever could be told
            console.print(text, soft_wrap=True)


class ProgressLines:
    """For a log file, in which no bar can be shown: a line a minute, as `12 of 300 photos done, about 25 min left`.

    Args:
        count: how many there are; None where that is yet to be seen.
        noun: what they are, as `photo`.
        total: the work that they come to, in any unit.
        clock: seconds of a clock that only goes forward.
    """

    def __init__(self, count: int | None, noun: str, total: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._count, self._noun, self._left, self._clock = count, noun, total, clock
        self._done, self._worked = 0, 0.0
        self._start = self._told = clock()

    def advance(self, work: float, *, before: bool = False) -> None:
        """One is done, which was so much of the work; `before`: an earlier run did it, which tells nothing of the pace."""
        self._done += 1
        self._left -= work
        self._worked += 0 if before else work
        now = self._clock()
        if now - self._told < LINE_EVERY_S:
            return
        if self._count is None:
            self._told = now
            log.info("%s done", counted(self._done, self._noun))
        elif self._done < self._count:
            self._told = now
            left = (now - self._start) / self._worked * self._left if self._worked else 0
            rest = f", about {rough_duration(left)} left" if left > 0 else ""
            log.info("%d of %s done%s", self._done, counted(self._count, self._noun), rest)


class CountProgress:
    """How many of all are done: a bar on a terminal, a line a minute elsewhere.

    Args:
        count: how many there are.
        noun: what they are, as `picture`.
    """

    def __init__(self, count: int, noun: str) -> None:
        columns = (MofNCompleteColumn(), BarColumn(bar_width=14), TimeRemainingColumn(compact=True))
        self._progress = _bar(*columns, TextColumn("{task.description}", markup=False))
        self._task = self._progress.add_task("", total=count)
        self._lines = None if console.is_terminal else ProgressLines(count, noun, count)

    def __enter__(self) -> CountProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def advance(self, name: str, *, before: bool = False) -> None:
        """One is done, of the photo `name`; `before`: by an earlier run."""
        self._progress.update(self._task, advance=1, description=_fitting(name))
        if self._lines is not None:
            self._lines.advance(1, before=before)


class _SpeedColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.fields.get("speed")
        return Text(f"{speed:.2f} MP/s" if speed else "- MP/s", style="progress.data.speed")


class UpscaleProgress:
    """Images done of all, output megapixels a second, time left, the current file; elsewhere than on a terminal, lines.

    Args:
        images: how many there are; None where that is yet to be seen.
        megapixels: of output that they come to, as far as known; the time left is estimated by it.
    """

    def __init__(self, images: int | None, megapixels: float) -> None:
        counts, file = TextColumn("{task.fields[images]}"), TextColumn("{task.fields[file]}", markup=False)
        self._progress = _bar(counts, BarColumn(bar_width=14), _SpeedColumn(), TimeRemainingColumn(compact=True), file)
        self._all = "" if images is None else f"/{images}"
        self._done = 0
        self._megapixels = 0.0
        self._task = self._progress.add_task(
            "", total=max(megapixels, 1e-9) if images else None, images=f"0{self._all}", file="", speed=None
        )
        self._lines = None if console.is_terminal else ProgressLines(images, "photo", megapixels)

    def __enter__(self) -> UpscaleProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def start(self, name: str) -> None:
        """An image is being worked on."""
        self._progress.update(self._task, file=_fitting(name))

    def finish(self, megapixels: float, expected: float) -> None:
        """An image is finished: its output megapixels, and how many of the total it was expected to be."""
        self._done += 1
        self._megapixels += megapixels
        elapsed = self._progress.tasks[0].elapsed or 0
        speed = self._megapixels / elapsed if elapsed else None
        images = f"{self._done}{self._all}"
        self._progress.update(self._task, advance=expected, images=images, speed=speed)
        if self._lines is not None:
            self._lines.advance(expected)


def _bar(*columns: ProgressColumn) -> Progress:
    shown = console.is_terminal and log.isEnabledFor(logging.INFO)
    return Progress(*columns, console=console, transient=True, disable=not shown)


def _fitting(name: str, width: int = 26) -> str:
    name = escaped(name)
    return name if len(name) <= width else "…" + name[-(width - 1) :]


# Words ---------------------------------------------------------------------------------------------------------------


def counted(number: int, noun: str) -> str:
    """`1 photo`, `3 photos`; the noun's plural is that of most."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_megapixels(megapixels: float) -> str:
    """`120 MP`, `1.1 MP`, `0.021 MP`."""
    return f"{megapixels:.{0 if megapixels >= 100 else 1}f} MP" if megapixels >= 1 else f"{megapixels:.2g} MP"


def rough_duration(seconds: float) -> str:
    """As an estimate is told: `40 s`, `25 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
