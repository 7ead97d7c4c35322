"""What people see: everything here goes to stderr; stdout is for data alone."""

from __future__ import annotations

import logging
import re
from types import TracebackType
from typing import ClassVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from srcli.errors import SrcliError

console = Console(stderr=True, highlight=False, emoji=False)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def set_up_logging(*, debug: bool, quiet: bool) -> None:
    """Send the logger `srcli` to the console: warnings and above, with `quiet`; everything, with `debug`."""
    logger = logging.getLogger("srcli")
    logger.handlers = [_ConsoleHandler()]
    logger.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
    logger.propagate = False


def show_error(error: SrcliError) -> None:
    """Print an error as `error: …`, a blank line, `hint: …`."""
    console.print(f"[bold red]error[/]: {_printable(error.message)}", soft_wrap=True)
    if error.hint:
        console.print(f"\n[bold cyan]hint[/]: {_printable(error.hint)}", soft_wrap=True)


def _printable(text: str) -> str:
    """As it is, on a terminal: names of files may hold markup, and codes that would clear the screen or worse."""
    return escape(_CONTROLS.sub("?", text))


class _ConsoleHandler(logging.Handler):
    _STYLES: ClassVar = {logging.WARNING: "[bold yellow]warning[/]: ", logging.ERROR: "[bold red]error[/]: "}

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self._STYLES.get(record.levelno, "") + _printable(self.format(record)), soft_wrap=True)


class _SpeedColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.fields.get("speed")
        return Text(f"{speed:.2f} MP/s" if speed else "- MP/s", style="progress.data.speed")


class UpscaleProgress:
    """Images done of all, output megapixels a second, time left, the current file; silent where stderr is no terminal.

    Args:
        images: how many there are.
        megapixels: of output that they come to, as far as known; the time left is estimated by it.
        enabled: False shows nothing.
    """

    def __init__(self, images: int, megapixels: float, *, enabled: bool = True) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[images]}"),
            BarColumn(bar_width=14),
            _SpeedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[file]}", markup=False),
            console=console,
            transient=True,
            disable=not (enabled and console.is_terminal),
        )
        self._images = images
        self._done = 0
        self._megapixels = 0.0
        self._task = self._progress.add_task("", total=max(megapixels, 1e-9), images=f"0/{images}", file="", speed=None)

    def __enter__(self) -> UpscaleProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def start(self, name: str) -> None:
        """An image is being worked on."""
        self._progress.update(self._task, file=_shortened(_CONTROLS.sub("?", name), 26))

    def finish(self, megapixels: float, expected: float) -> None:
        """An image is finished: its output megapixels, and how many of the total it was expected to be."""
        self._done += 1
        self._megapixels += megapixels
        elapsed = self._progress.tasks[0].elapsed or 0
        speed = self._megapixels / elapsed if elapsed else None
        images = f"{self._done}/{self._images}"
        self._progress.update(self._task, advance=expected, images=images, speed=speed)


def _shortened(name: str, width: int) -> str:
    return name if len(name) <= width else "…" + name[-(width - 1) :]


def format_duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
