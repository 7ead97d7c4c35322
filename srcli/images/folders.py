"""The folder that a command writes into: whether it may, and whether it is alone there."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from srcli.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("srcli")

LOCK_FILE = ".lock"


def make_output_folder(folder: Path) -> None:
    """Make a folder and try whether it can be written to, which would else show after the first work is done.

    Raises:
        UsageError: it is a file, or cannot be made or written to.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"`{folder}` is a file", "give a folder as `--output`")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write into `{folder}`: {error.strerror or error}", "give another `--output`") from error


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make an output folder and keep other runs out of it; the lock ends with the process, however that ends.

    Processes that are forked from this one do not hold it. Leaves a hidden file.

    Raises:
        UsageError: another process writes into it, or it cannot be written to.
    """
    make_output_folder(folder)
    with (folder / LOCK_FILE).open("w") as file:
        _lock(file.fileno(), folder, with_children=False)
        yield


@contextlib.contextmanager
def held_as_it_is(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder that exists, for commands that fork no process; leaves nothing there.

    Raises:
        UsageError: another process holds it.
    """
    if os.name == "nt":  # whose folders cannot be opened
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder, with_children=True)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path, *, with_children: bool) -> None:
    """Until the file is closed; without a lock where the system or its file system (some network drives) has none."""
    try:
        if fcntl is not None:
            (fcntl.flock if with_children else fcntl.lockf)(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            hint = "wait for it or end it (one process may outlive its launcher), or give another `--output`"
            raise UsageError(f"another run writes into `{folder}`", hint) from error
        log.warning("`%s` cannot be locked (%s): have no second run write into it", folder, error.strerror)
