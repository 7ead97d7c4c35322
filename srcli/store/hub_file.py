"""One file of a hub repository: download what is missing of it, check it, put it into the cache.

huggingface_hub of today throws away what it has of a file when it is interrupted. So the bytes are fetched here, into
`<etag>.incomplete` beside the cache's blobs, by the library's own `http_get`; a file comes into the cache only when it is whole
and what the hub and the row say it is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from srcli.disk import DISK_FULL, first_line
from srcli.errors import ModelError
from srcli.store.layout import needed_files

_LOGGER = logging.getLogger("srcli")
TIMEOUT_S = 30.0
_DISK_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR}
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[\w-][\w.-]*")  # it names files
_RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub lists it."""

    path: str
    size_bytes: int | None = None
    sha256: str | None = None
    """Of large files alone."""
    blob_id: str | None = None
    """git's SHA-1; of large files that of a pointer to them."""


class UnfitError(Exception):
    """A repository that cannot serve; the message says why."""


class WrongFileError(UnfitError):
    def __init__(self, path: str, kind: str, actual: str, expected: str) -> None:
        super().__init__(f"`{path}` is another file than expected: {kind} `{actual}`, expected `{expected}`")


def is_fault_of_disk(fault: BaseException) -> bool:
    """Whether the disk takes no more: neither a repeat nor a mirror would help."""
    return isinstance(fault, OSError) and fault.errno in DISK_FULL | _DISK_CLOSED


def file_digest(path: Path, algorithm: str = "sha256", start: bytes = b"") -> str:
    """The digest of `start` and a file's bytes, in lower-case hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.new(algorithm, start, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _difference(path: Path, file: HubFile, row_sum: str | None = None) -> WrongFileError | None:
    """In what a file on disk is another than the hub and the model's row say."""
    size = path.stat().st_size
    if file.size_bytes is not None and size != file.size_bytes:
        return WrongFileError(file.path, "size", str(size), str(file.size_bytes))
    wanted = {sum_ for sum_ in (row_sum, file.sha256) if sum_ is not None}
    if wanted:
        actual = file_digest(path)
        return next((WrongFileError(file.path, "SHA-256", actual, other) for other in sorted(wanted - {actual})), None)
    if file.blob_id is None or not _SHA1.fullmatch(file.blob_id):
        return None
    actual = file_digest(path, "sha1", b"blob %d\0" % size)
    if file.blob_id in (actual, file_digest(path, "sha1")):  # the second is the ETag of some proxies
        return None
    return WrongFileError(file.path, "git SHA-1", actual, file.blob_id)


def _blob_of(path: Path) -> Path:
    """The blob behind a file of a snapshot, named by its sum; the file itself where the cache has no links.

    A blob may itself be a link, to a store that repositories share and that names files by other sums.
    """
    while path.is_symlink() and not (_SHA256.fullmatch(path.name) or _SHA1.fullmatch(path.name)):
        path = path.parent / path.readlink()
    return path


def remove_damaged(folder: Path, sums: Mapping[str, str]) -> list[str]:
    """Check the files of a snapshot, and take damaged ones out of the cache.

    Args:
        folder: the snapshot.
        sums: SHA-256 by path; used where the cache does not name a file by its sum, as it does with links.

    Returns:
        The paths of what was removed.
    """
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [name for name in needed_files(names) if remove_if_damaged(folder, name, sums.get(name))]


def remove_if_damaged(folder: Path, name: str, row_sum: str | None) -> bool:
    """The same for one file of a snapshot; True if it was removed.

    Raises:
        ModelError: it cannot be read or removed.
    """
    blob = _blob_of(folder / name)
    by_name = blob.name if _SHA256.fullmatch(blob.name) else None
    try:
        damage = _difference(blob, HubFile(name, None, by_name or row_sum, blob.name))
        if damage is None:
            return False
        _LOGGER.warning("in the cache, %s; it is removed", damage)
        for path in (folder / name, blob.resolve(), blob):
            path.unlink(missing_ok=True)
    except OSError as fault:
        message = f"`{fault.filename or blob}` in the cache cannot be checked and removed where damaged: {fault.strerror}"
        raise ModelError(message, "check the rights of that folder, or set `HF_HOME` to another one") from fault
    return True


def known_as_others(folder: Path, sums: Mapping[str, str]) -> list[str]:
    """Paths of files that the cache names by another SHA-256 than the one wanted; reads none of them."""
    blobs = {name: _blob_of(folder / name).name for name in sums if (folder / name).exists()}
    return [name for name, blob in blobs.items() if _SHA256.fullmatch(blob) and blob != sums[name]]


# Downloading ---------------------------------------------------------------------------------------------------------


def fetch_file(repo: str, commit: str, storage: Path, file: HubFile, sha256: str | None, advance: Callable[[int], None]) -> None:
    """Bring one file into the cache, behind what an earlier, broken download has left of it.

    Args:
        repo: as `owner/name`.
        commit: of the repository.
        storage: the repository's folder in the hub's cache.
        file: what is fetched.
        sha256: what it must have, besides what the hub says.
        advance: is told how many bytes more have come.

    Raises:
        UnfitError: the server sends another file.
        Exception: what huggingface_hub and its HTTP client raise.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import WeakFileLock

    url = hf_hub_url(repo, file.path, revision=commit, endpoint=endpoint())
    about = get_hf_file_metadata(url, timeout=TIMEOUT_S)
    if about.etag is None or not _ETAG.fullmatch(about.etag):
        raise UnfitError(f"the server gives `{file.path}` no usable ETag")
    blob = storage / "blobs" / about.etag
    lock = storage.parent / ".locks" / storage.name / f"{about.etag}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        known = _with_headers(file, about)
        if not _is_right_blob(blob, known):
            _load_all(url, about, partial_of(blob), advance)
            _check(partial_of(blob), known, sha256)
            partial_of(blob).replace(blob)
        elif sha256 is not None and (other := _difference(blob, known, sha256)):
            raise other
    snapshot = storage / "snapshots" / commit / file.path
    if snapshot.exists() and snapshot.stat().st_size != blob.stat().st_size:
        snapshot.unlink()
    with quiet_bars():  # links the blob into the snapshot, and asks the server once more for its name
        hf_hub_download(repo, file.path, revision=commit, endpoint=endpoint())


def _with_headers(file: HubFile, about: Any) -> HubFile:
    """What the list says of a file, and what its headers say where the list says nothing; the size is the headers'."""
    size = about.size if about.size is not None else file.size_bytes
    by_name = about.etag if _SHA256.fullmatch(about.etag) else None
    return replace(file, size_bytes=size, sha256=file.sha256 or by_name, blob_id=file.blob_id or about.etag)


def _is_right_blob(blob: Path, file: HubFile) -> bool:
    """Whether a blob that no snapshot has yet is what its name says; what is not is removed."""
    damage = _difference(blob, file) if blob.exists() else None
    if damage is not None:
        _LOGGER.warning("in the cache, %s; it is removed", damage)
        blob.resolve().unlink()
    if damage is not None or not blob.exists():
        blob.unlink(missing_ok=True)  # a link to what is gone
        return False
    return True


def _check(partial: Path, file: HubFile, row_sum: str | None) -> None:
    """Remove a download that is not what it should be, and raise `WrongFileError`."""
    difference = _difference(partial, file, row_sum)
    if difference is not None:
        partial.unlink()
        raise difference


def _load_all(url: str, about: Any, partial: Path, advance: Callable[[int], None]) -> None:
    """GET what `partial` lacks of the file, and begin again as long as each attempt brings more."""
    from huggingface_hub import get_hf_file_metadata

    etag, anew = about.etag, False
    while True:
        had = _size_of(partial)
        try:
            return _load(url, about, partial, advance)
        except Exception as fault:  # of the HTTP client, whichever it is
            status = getattr(getattr(fault, "response", None), "status_code", None)
            if had and status == _RANGE_NOT_SATISFIABLE and not anew:  # of a file whose size the server does not tell
                _LOGGER.warning("the server has nothing behind what has come, beginning anew: %s", first_line(fault))
                partial.unlink()
                anew = True
            elif is_fault_of_disk(fault) or _size_of(partial) <= had:
                raise
            else:
                _LOGGER.warning("the connection broke, going on: %s", first_line(fault))
        about = get_hf_file_metadata(url, timeout=TIMEOUT_S)  # the address of a large file holds for a while only
        if about.etag != etag:
            raise UnfitError("the file changed on the server while it was downloaded")


def _load(url: str, about: Any, partial: Path, advance: Callable[[int], None]) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if urlsplit(about.location).netloc != urlsplit(url).netloc:  # a store for large files, whose address carries its own key
        headers.pop("authorization", None)
    had = _size_of(partial)
    if about.size is not None and had > about.size:
        partial.unlink()
        had = 0
    if had and had == about.size:
        return
    with partial.open("ab") as stream, quiet_bars():
        counting = cast("BinaryIO", _CountingFile(stream, advance))
        http_get(about.location, counting, resume_size=had, headers=headers, expected_size=about.size)


@dataclass
class _CountingFile:
    """A file that tells of each write."""

    stream: BinaryIO
    advance: Callable[[int], None]
    _lost: int = field(default=0, init=False)

    def write(self, data: bytes) -> int:
        written = self.stream.write(data)
        self.advance(max(len(data) - self._lost, 0))
        self._lost = max(self._lost - len(data), 0)
        return written

    def truncate(self, size: int | None = None) -> int:
        """A server that cannot go on from the middle begins anew: what comes twice is not progress."""
        kept = self.stream.tell() if size is None else size
        self._lost += self.stream.seek(0, os.SEEK_END) - kept
        return self.stream.truncate(kept)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def partial_of(blob: Path) -> Path:
    """Where an unfinished download of a blob lies."""
    return blob.with_name(f"{blob.name}.incomplete")


def endpoint() -> str | None:
    """The hub's address as the user set it; read at each use, unlike huggingface_hub's own constant."""
    address = os.environ.get("HF_ENDPOINT")
    return address.rstrip("/") if address else None


@contextlib.contextmanager
def quiet_bars() -> Iterator[None]:
    """The library's own progress bars are off: we tell the progress ourselves."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where `HF_HUB_DISABLE_PROGRESS_BARS=0` forbids it
        disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
