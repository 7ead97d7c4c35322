"""What every command needs of the disk: files that are whole or not there, and folders that one run has for itself.

A file is written under a hidden name beside its own, brought to the disk, and put into its place in one step. Whatever
interrupts that, a full disk or a kill, the file is as it was before.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from srcli.errors import SrcliError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("srcli")

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The system's numbers for it."""
NAMES = "surrogateescape"
"""How text files take the bytes of a file's name that are no UTF-8: as they are."""
LOCK_FILE = ".lock"
_TRIES = 100
_NAME_BYTES = 255  # of one file, on nearly every system
_SHORT_NAME = 50  # characters, of 4 bytes each at most


def first_line(fault: BaseException) -> str:
    """What an exception says, in one line; its kind where it says nothing."""
    told = fault.args[0].decode(errors="replace") if fault.args and isinstance(fault.args[0], bytes) else str(fault)
    return (told.strip().splitlines() or [type(fault).__name__])[0]


# Files ---------------------------------------------------------------------------------------------------------------


@contextmanager
def whole(path: Path, *, alone: bool = False) -> Iterator[BinaryIO]:
    """A file to be filled in the `with` block, which takes the place of `path` at the block's end.

    After any fault the old file is as it was, and nothing else is left. A file that is replaced hands its permissions on.

    Args:
        path: the file to write; missing folders are made.
        alone: False lets several processes write the same file, of which the last one counts. True refuses all but the first;
            its hidden file has always the same name, so that a rerun clears up after a killed one.

    Yields:
        An empty binary file that can be written and sought in.

    Raises:
        BlockingIOError: with `alone`, another run is writing it.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path, "" if alone else f"{secrets.token_hex(8)}.")
    with _opened_alone(part) if alone else part.open("xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            with suppress(OSError):  # there is no old file, or its file system has no permissions
                shutil.copymode(path, part)
            if os.name != "posix":
                file.close()  # what is open cannot be moved there
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise


def write_whole(path: Path, content: bytes) -> None:
    """Write a file as `whole` does.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    with whole(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a file of results as UTF-8, as `whole` does; names of files keep their bytes.

    Raises:
        SrcliError: it cannot be written; what was there is as it was.
    """
    try:
        write_whole(path, text.encode("utf-8", NAMES))
    except OSError as fault:
        raise cannot_write(path, fault) from fault


def cannot_write(path: Path, fault: OSError) -> SrcliError:
    """The error that tells so."""
    return SrcliError(
        f"`{path}` cannot be written: {fault.strerror or fault}", "make room or give another `--output`, then repeat"
    )


def _part_of(path: Path, unique: str) -> Path:
    """The hidden name beside `path`: `.NAME.part`, or `.NAME.UNIQUE.part`; a long name is cut and told apart by its sum."""
    name = f".{path.name}.{unique}part"
    if len(os.fsencode(name)) > _NAME_BYTES:
        name = f".{path.name[:_SHORT_NAME]}-{zlib.crc32(os.fsencode(path.name)):08x}.{unique}part"
    return path.with_name(name)


def _opened_alone(part: Path) -> BinaryIO:
    """An empty file that nobody else writes for as long as it is open; a stale one is used again.

    Raises:
        BlockingIOError: somebody else has it open.
    """
    for _ in range(_TRIES):  # the caller closes what is returned
        file = open(part, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666))  # noqa: SIM115
        try:
            opened = os.fstat(file.fileno())
            if stat.S_ISREG(opened.st_mode):
                _lock(file.fileno())
            with suppress(FileNotFoundError):
                there = part.stat()
                if os.path.samestat(opened, there):  # else the last owner put it in place or removed it meanwhile
                    if there.st_size:
                        file.truncate(0)
                    return file
        except BaseException:
            file.close()
            raise
        file.close()
    raise OSError(errno.EBUSY, "its temporary file changes all the time")


# Folders -------------------------------------------------------------------------------------------------------------


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


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make an output folder and keep other runs out of it; the lock ends with the process, however that ends.

    Processes that are forked from this one do not hold it. Leaves a hidden file.

    Raises:
        UsageError: another process writes into it, or it cannot be written to.
    """
    make_output_folder(folder)
    with (folder / LOCK_FILE).open("w") as file:
        _hold(file.fileno(), folder, with_children=False)
        yield


@contextmanager
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
        _hold(handle, folder, with_children=True)
        yield
    finally:
        os.close(handle)


def _hold(handle: int, folder: Path, *, with_children: bool) -> None:
    try:
        lacking = _lock(handle, with_children=with_children)
    except BlockingIOError as fault:
        hint = "wait for it or end it (one process may outlive its launcher), or give another `--output`"
        raise UsageError(f"another run writes into `{folder}`", hint) from fault
    if lacking:
        log.warning("`%s` cannot be locked (%s): have no second run write into it", folder, lacking)


def _lock(handle: int, *, with_children: bool = True) -> str:
    """Lock an open file until it is closed, which the end of the process does, too.

    Returns:
        why this place (some network drives) has no locks; empty where it has, and where the system has none at all.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        if fcntl is not None:
            (fcntl.flock if with_children else fcntl.lockf)(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        if fault.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError(errno.EAGAIN, "another run is writing it") from fault
        return fault.strerror or str(fault)
    return ""
