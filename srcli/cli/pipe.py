"""`-` as the input and the output of `srcli upscale`: one picture on standard input, its result on standard output.

Both go through files of a private temporary folder, so that all that holds for files holds for them.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

from srcli.cli.summary import renamed
from srcli.config.upscale import PIPE, UpscaleConfig
from srcli.errors import ImageError, SrcliError, UsageError
from srcli.images.suffixes import FORMAT_OF_SUFFIX, OUTPUT_FORMATS

log = logging.getLogger("srcli")

_STDIN = "stdin"
"""What results of standard input are called."""

Names = Mapping[str, str]
"""Path of a temporary file -> what people know it as."""


@contextmanager
def piped(config: UpscaleConfig) -> Iterator[tuple[UpscaleConfig, Names]]:
    """Put files in the place of `-`; a result that was written by the block's end is sent to standard output.

    Yields:
        The settings with these files, and their names for messages. What the block prints goes to standard error.

    Raises:
        UsageError: standard input or output is a terminal, or more than one picture would go to the latter.
        SrcliError: standard output cannot be written to.
    """
    if config.writes_to_pipe and sys.stdout.isatty():
        raise UsageError("a picture is not written to a terminal", "send standard output to a file, or give a file as `--output`")
    with tempfile.TemporaryDirectory(prefix="srcli-") as folder:
        names: dict[str, str] = {}
        as_known = AsKnown(names)
        if PIPE in config.inputs:
            with AsKnown({str(Path(folder) / _STDIN): "standard input"}):
                source = _received(Path(folder))
            names[str(source)] = "standard input"
            config = replace(config, inputs=(str(source),))
        if not config.writes_to_pipe:
            with as_known:
                yield config, names
            return
        target = Path(folder) / f"stdout{_extension(config)}"
        names[str(target)] = "standard output"
        with redirect_stdout(sys.stderr), as_known:
            yield replace(config, output=target), names
        if target.exists():
            _send(target)


class AsKnown(logging.Filter):
    """Context in which messages have the names that people know."""

    def __init__(self, names: Names) -> None:
        super().__init__()
        self._names = names

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = renamed(record.getMessage(), self._names), ()
        return True

    def __enter__(self) -> None:
        log.addFilter(self)

    def __exit__(self, *exception: object) -> None:
        log.removeFilter(self)


def listed(path: Path, *, null: bool) -> tuple[str, ...]:
    """The paths of a list: one a line, or each ended by a NUL.

    Raises:
        UsageError: the list cannot be read, or names nothing.
    """
    try:
        content = sys.stdin.buffer.read() if str(path) == PIPE else path.read_bytes()
    except OSError as fault:
        raise UsageError(f"the list `{path}` cannot be read: {fault.strerror or fault}", "give another `--files-from`") from fault
    paths = content.split(b"\0") if null else [line.removesuffix(b"\r") for line in content.split(b"\n")]
    if not null and b"\0" in content:
        raise UsageError(f"the list `{path}` holds NULs", "give `--null`, or a list with one path a line")
    found = tuple(os.fsdecode(each) for each in paths if each)
    if not found:
        raise UsageError(f"the list `{path}` names no file", "give one path a line, or end each by a NUL with `--null`")
    return found


def _received(folder: Path) -> Path:
    """Standard input as a file, with the extension of its format where results may have it."""
    if sys.stdin.isatty():
        raise UsageError("standard input is a terminal, not a picture", "send a picture there, or name a file")
    path = folder / _STDIN
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    except OSError as fault:
        raise UsageError(f"standard input cannot be read: {fault.strerror or fault}", "name a file instead") from fault
    from srcli.images.codec import probe

    try:
        return path.rename(folder / f"{_STDIN}{OUTPUT_FORMATS.get(probe(path).format, '')}")
    except ImageError:  # told when it is planned
        return path


def _extension(config: UpscaleConfig) -> str:
    """Of a result without a name, by the format that is asked for or the input's own."""
    (source,) = map(Path, map(os.path.expanduser, config.inputs))
    if not source.is_file():
        raise UsageError(f"`-o -` writes one picture to standard output, and `{source}` is no file", "name one file")
    return OUTPUT_FORMATS[config.format or FORMAT_OF_SUFFIX.get(source.suffix.lower(), "png")]


def _send(path: Path) -> None:
    try:
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except OSError as fault:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123  # what is left in the buffer would fail again at the end
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        message = f"standard output cannot be written to: {fault.strerror or fault}"
        raise SrcliError(message, "give a file as `--output`") from fault
