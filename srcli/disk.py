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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
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
_claimed: dict[Path, BinaryIO] = {}
"""Hidden files that this process keeps for itself, and has not filled yet."""
_NAME_BYTES = 255  # of one file, on nearly every system
_SHORT_NAME = 50  # characters, of 4 bytes each at most


def first_line(fault: BaseException) -> str:
    """What an exception says, in one line; its kind where it says nothing."""
    told = fault.args[0].decode(errors="replace") if fault.args and isinstance(fault.args[0], bytes) else str(fault)
    return (told.strip().splitlines() or [type(fault).__name__])[0]


# Files ---------------------------------------------------------------------------------------------------------------


@contextmanager
def whole(path: Path, *, alone: bool = False, placing: Callable[[int], None] | None = None) -> Iterator[BinaryIO]:
    """A file to be filled in the `with` block, which takes the place of `path` at the block's end.

    After any fault the old file is as it was, and nothing else is left. A file that is replaced hands its permissions on.

    Args:
        path: the file to write; missing folders are made.
        alone: False lets several processes write the same file, of which the last one counts. True refuses all but the first,
            where the disk has locks; its hidden file has always the same name, so that a rerun clears up after a killed one.
        placing: called with the number of bytes when these are on the disk, before they take their place; if it raises, they do
            not.

    Yields:
        An empty binary file that can be written and sought in.

    Raises:
        BlockingIOError: with `alone`, another run is writing it.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path, "" if alone else _unique())
    file = _claimed.pop(part, None) or _opened_alone(part) if alone else part.open("xb")
    if file is None:  # without locks, two runs would write into each other's file
        part = _part_of(path, _unique())
        file = part.open("xb")
    with file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if placing is not None:
                placing(os.fstat(file.fileno()).st_size)
            with suppress(OSError):  # there is no old file, or its file system has no permissions
                shutil.copymode(path, part)
            if os.name != "posix":
                file.close()  # what is open cannot be moved there
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise


def claim(path: Path) -> bool:
    """Keep other runs from `whole(path, alone=True)`, which this process then fills; until `let_go`, or its own end.

    Missing folders are made. A disk without locks, or one that cannot be written to, keeps nobody out: True.

    Returns:
        False: another run has claimed it, or is writing it.
    """
    part = _part_of(path, "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _opened_alone(part)
    except BlockingIOError:
        return False
    except OSError as fault:
        log.debug("`%s` cannot be claimed: %s", path, fault)  # `whole` meets the same fault and tells it
        return True
    if file is not None:
        _claimed[part] = file
    return True


def let_go(path: Path) -> None:
    """End a claim whose file was not written; nothing is done where there is none."""
    part = _part_of(path, "")
    file = _claimed.pop(part, None)
    if file is not None:
        with suppress(OSError):
            part.unlink()
        file.close()


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
    return SrcliError(f"`{path}` cannot be written: {fault.strerror or fault}", way_out(fault))


def way_out(fault: OSError) -> str:
    """What to do where a file cannot be written, as a hint."""
    again = "then repeat the command: what is finished is skipped"
    if fault.errno == errno.EDQUOT:
        return f"your quota on that disk is used up: delete files of yours there or give another `--output`, {again}"
    if fault.errno == errno.EFBIG:
        return "no file may be that large there (`ulimit -f`, or the kind of disk): give an `--output` on another disk"
    if fault.errno == errno.ENOSPC:
        return f"make room or give another `--output`, {again}"
    if fault.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose an output folder that you may write to"
    if isinstance(fault, BlockingIOError):
        return "let that run finish, or give this one an output folder of its own"
    return f"check the output folder and its disk, {again}"


def name_fault(path: Path) -> str:
    """Why no file can be written as `path`, as far as the names on its way tell; empty where one can."""
    place = path.parent
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"`{path}` cannot be written: `{place}` is no folder"
    limit = _NAME_BYTES
    with suppress(OSError, AttributeError, ValueError):  # Windows has no such call, some disks no such answer
        limit = os.pathconf(place, "PC_NAME_MAX")
    for name in path.relative_to(place).parts:
        if len(os.fsencode(name)) > limit:
            return f"`{path}` cannot be written: a name of {len(os.fsencode(name))} bytes is over the {limit} of its disk"
    try:
        return f"`{path}` cannot be written: it is a folder" if path.is_dir() else ""
    except OSError as fault:  # the whole is too long
        return f"`{path}` cannot be written: {fault.strerror or fault}"


def one_folder(first: Path, second: Path) -> bool:
    """Whether two folders are one, however they are reached, by trying it; one that cannot be written to is no other."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".srcli-", dir=first) as trial:
            return os.path.lexists(second / Path(trial.name).name)
    except OSError:
        return False


def one_place(folder: Path, first: PurePath, second: PurePath) -> bool:
    """Whether two paths below `folder` are one file on its disk, as on those that do not tell case: it is tried.

    Args:
        folder: it may be yet to make.
        first: relative.
        second: relative.
    """
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".srcli-", dir=folder) as name:
            trial = Path(name)
            (trial / first).parent.mkdir(parents=True, exist_ok=True)
            (trial / first).touch()
            return os.path.lexists(trial / second)
    except OSError:  # nothing can be written there, which is told when it is tried
        return False


def _part_of(path: Path, unique: str) -> Path:
    """The hidden name beside `path`: `.NAME.part`, or `.NAME.UNIQUE.part`; a long name is cut and told apart by its sum."""
    name = f".{path.name}.{unique}part"
    if len(os.fsencode(name)) > _NAME_BYTES:
        name = f".{path.name[:_SHORT_NAME]}-{zlib.crc32(os.fsencode(path.name)):08x}.{unique}part"
    return path.with_name(name)


def _unique() -> str:
    return f"{secrets.token_hex(8)}."


def _opened_alone(part: Path) -> BinaryIO | None:
    """An empty file that nobody else writes for as long as it is open; a stale one is used again. None: there are no locks.

    Raises:
        BlockingIOError: somebody else has it open.
    """
    for _ in range(_TRIES):  # the caller closes what is returned
        file = open(part, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666))  # noqa: SIM115
        try:
            opened = os.fstat(file.fileno())
            if fcntl is None or (stat.S_ISREG(opened.st_mode) and _lock(file.fileno())):
                file.close()
                with suppress(OSError):
                    part.unlink()
                return None
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
def only_run(lock: Path, what: str) -> Iterator[None]:
    """Keep other runs from `what` by a file in a folder that exists; the lock ends with the process, and the file stays.

    Raises:
        UsageError: another process has it.
        OSError: the file cannot be made.
    """
    with lock.open("w") as file:
        try:
            lacking = _lock(file.fileno())
        except BlockingIOError as fault:
            raise UsageError(f"another run is at {what}", "wait for it or end it, or give this one another shard") from fault
        if lacking:
            log.warning("`%s` cannot be locked (%s): have no second run work on %s", lock, lacking, what)
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
