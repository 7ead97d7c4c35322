"""The folder that a command writes into: whether it may, and alone."""

from __future__ import annotations

import contextlib
import errno
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from srcli.errors import UsageError

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

    Raises:
        UsageError: another process writes into it, or it cannot be written to.
    """
    make_output_folder(folder)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / LOCK_FILE).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not `flock`, which processes that load data would inherit
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                hint = "wait for it or end it (one process may outlive its launcher), or give another `--output`"
                raise UsageError(f"another run writes into `{folder}`", hint) from error
            log.warning("`%s` cannot be locked (%s): have no second run write into it", folder, error.strerror)
        yield
