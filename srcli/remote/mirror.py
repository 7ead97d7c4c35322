"""Training photos of a store, as a folder on this machine: it is what the store lists, and is brought up to date by each run.

Training reads every photo many times, looks at all before the first step, and has to find the same ones when it goes on. So
they are copied once, below `XDG_CACHE_HOME` or the user's cache, under the names that they have in the store.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import platformdirs

from srcli.console import CountProgress, counted
from srcli.disk import cannot_write
from srcli.errors import UsageError
from srcli.images.suffixes import INPUT_SUFFIXES
from srcli.remote.faults import StoreError
from srcli.remote.store import Entry, Store
from srcli.remote.urls import Url, parsed, relative_fault

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("srcli")

FETCHERS = 16
_KEPT = INPUT_SUFFIXES | {".txt"}
"""What is copied: photos, and captions beside them."""
_SPARE_BYTES = 1 << 30
_SAME_S = 1.0
"""Times of some disks are no finer."""


def mirrored(text: str) -> tuple[Path, list[tuple[Path, str]]]:
    """The copy of a folder of photos, or of one photo.

    Several processes may ask for it: one copies while the others wait, where the disk has locks.

    Args:
        text: a URL.

    Returns:
        the path of the copy; and what could not be copied, with the reasons.

    Raises:
        UsageError: there is no such folder, or it does not fit on the disk; a package is missing.
        StoreError: the store cannot be used; what was copied stays.
        SrcliError: the copy cannot be written.
    """
    url = parsed(text)
    if url.is_web:
        raise UsageError(f"`{url}` is on a web server, which cannot be listed", "give a folder, or a prefix of a bucket")
    store = Store(url)
    root = platformdirs.user_cache_path("srcli") / "data"
    place = root / url.scheme / url.place / url.key.rstrip("/")
    try:
        with _alone(root):
            entry = store.look(url)
            faults = _update(store, url, place) if entry is None else _fetch_all(store, [(entry, place)])
    except OSError as fault:
        raise cannot_write(place, fault) from fault
    return place, faults


def _update(store: Store, folder: Url, place: Path) -> list[tuple[Path, str]]:
    """Make `place` hold what the store lists."""
    wanted: dict[Path, Entry] = {}
    faults: list[tuple[Path, str]] = []
    for entry in store.entries(folder):
        relative = entry.url.key.removeprefix(folder.below)
        hidden = any(part.startswith(".") and part not in (".", "..") for part in relative.split("/"))
        if hidden or PurePosixPath(relative).suffix.lower() not in _KEPT:
            continue
        if reason := relative_fault(relative):
            faults.append((Path(str(entry.url)), reason))
        else:
            wanted[place / relative] = entry
    if not wanted:
        raise UsageError(f"`{folder}` holds no photos", "check the spelling")
    for path in place.rglob("*") if place.is_dir() else ():
        if path not in wanted and not path.is_dir():
            path.unlink()
    missing = [(entry, path) for path, entry in wanted.items() if not _is_current(entry, path)]
    if missing:
        _check_room(folder, [entry for entry, _ in missing], place)
        log.info("copying %s of `%s` to `%s`", counted(len(missing), "file"), folder, place)
    return faults + _fetch_all(store, missing)


def _check_room(folder: Url, missing: Sequence[Entry], place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    size, free = sum(entry.size or 0 for entry in missing), shutil.disk_usage(place).free
    if size + _SPARE_BYTES > free:
        message = f"`{folder}` has {size / 1e9:.1f} GB to copy, and `{place}` {free / 1e9:.1f} GB free"
        raise UsageError(message, "make room, name a folder on another disk by `XDG_CACHE_HOME`, or take a smaller prefix")


def _fetch_all(store: Store, missing: Sequence[tuple[Entry, Path]]) -> list[tuple[Path, str]]:
    """Copy objects; returns those that cannot be had.

    Raises:
        StoreError: the store is given up.
    """
    faults = []
    pool = ThreadPoolExecutor(FETCHERS, "srcli-fetch")
    try:
        with CountProgress(len(missing), "file") as progress:
            for (_, path), error in zip(missing, pool.map(lambda each: _fetched(store, *each), missing), strict=True):
                progress.advance(path.name)
                if error is not None and (store.gone or error.passing):
                    raise store.gone or error
                if error is not None:
                    faults.append((path, error.message))
    finally:
        store.close()
        pool.shutdown(cancel_futures=True)
    return faults


def _fetched(store: Store, entry: Entry, path: Path) -> StoreError | None:
    """Copy one object, which is whole when it has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[:100]}.part")
    try:
        store.fetch(entry.url, entry.size, part)
    except StoreError as error:
        return error
    if entry.modified is not None:
        os.utime(part, (entry.modified, entry.modified))
    part.replace(path)
    return None


def _is_current(entry: Entry, path: Path) -> bool:
    with suppress(OSError):
        about = path.stat()
        same = entry.modified is None or abs(about.st_mtime - entry.modified) < _SAME_S
        return same and entry.size in (None, about.st_size)
    return False


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Wait until no other process copies."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        if fcntl is not None:
            with suppress(OSError):  # a disk without locks: files are whole all the same
                fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        yield
