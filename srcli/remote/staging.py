"""Files on their way between a store and the engine: in a folder of the run's own, which goes with it, or with the next run."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from srcli.errors import SrcliError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOCK = "in-use"


@contextmanager
def staged() -> Iterator[Path]:
    """A folder for temporary files, below `XDG_CACHE_HOME` or the user's cache; what killed runs left there is removed.

    Raises:
        SrcliError: it cannot be made.
    """
    root = platformdirs.user_cache_path("srcli") / "staging"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _clear(root)
        folder = Path(tempfile.mkdtemp(dir=root, prefix=f"{os.getpid()}-"))
        lock = (folder / _LOCK).open("w")
    except OSError as fault:
        message = f"no folder for temporary files can be made in `{root}`: {fault.strerror or fault}"
        raise SrcliError(message, "name another place by `XDG_CACHE_HOME`") from fault
    with lock:
        _take(lock.fileno())
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _clear(root: Path) -> None:
    """Remove folders whose run has ended: nobody holds their locks. Where a disk has no locks, they stay."""
    for folder in root.iterdir():
        with suppress(OSError), (folder / _LOCK).open("r+") as lock:
            if _take(lock.fileno()):
                shutil.rmtree(folder, ignore_errors=True)


def _take(handle: int) -> bool:
    """Lock an open file; False where another process has it, or there are no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return fcntl is not None
