"""One file of a hub repository: download what is missing of it, check it, put it into the cache.

huggingface_hub of today throws away what it has of a file when it is interrupted. So the bytes are fetched here, into
`<etag>.incomplete` beside the cache's blobs, by the library's own `http_get`; a file comes into the cache only when it is whole
and what the hub and the row say it is.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from srcli.disk import DISK_FULL, first_line
from srcli.errors import ModelError

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

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
    digest: str | None = None
    """SHA-256 of a large file, git's SHA-1 of a small one; names its blob in the cache."""


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


def _difference(path: Path, file: HubFile, *digests: str | None) -> WrongFileError | None:
    """In what a file on disk is another than the hub says, and other sums; those of no known kind count nothing."""
    size = path.stat().st_size
    if file.size_bytes is not None and size != file.size_bytes:
        return WrongFileError(file.path, "size", str(size), str(file.size_bytes))
    for wanted in sorted(filter(None, {file.digest, *digests})):
        if is_sha256(wanted):
            kind, actual = "SHA-256", [file_digest(path)]
        elif _SHA1.fullmatch(wanted):  # the second is the ETag of some proxies
            kind, actual = "git SHA-1", [file_digest(path, "sha1", b"blob %d\0" % size), file_digest(path, "sha1")]
        else:
            continue
        if wanted not in actual:
            return WrongFileError(file.path, kind, actual[0], wanted)
    return None


def is_sha256(digest: str | None) -> bool:
    return digest is not None and _SHA256.fullmatch(digest) is not None


def _blob_of(path: Path) -> Path:
    """The blob behind a file of a snapshot, named by its sum; the file itself where the cache has no links.

    A blob may itself be a link, to a store that repositories share and that names files by other sums.
    """
    while path.is_symlink() and not (is_sha256(path.name) or _SHA1.fullmatch(path.name)):
        path = path.parent / path.readlink()
    return path


def remove_damaged(folder: Path, names: Iterable[str], sums: Mapping[str, str]) -> list[str]:
    """Check files of a snapshot, and take damaged ones out of the cache.

    Args:
        folder: the snapshot.
        names: of the files, as paths in it; one that is not there is passed over.
        sums: SHA-256 by path; used where the cache does not name a file by its sum, as it does with links.

    Returns:
        The paths of what was removed.
    """
    there = (name for name in names if (folder / name).exists())
    return [name for name in there if remove_if_damaged(folder / name, HubFile(name, digest=sums.get(name)))]


def remove_if_damaged(path: Path, file: HubFile) -> bool:
    """The same for one file, of a snapshot or a blob; True if it was removed.

    Raises:
        ModelError: it cannot be read or removed.
    """
    blob = _blob_of(path)
    known = replace(file, digest=blob.name) if is_sha256(blob.name) else file
    try:
        damage = _difference(blob, known, blob.name)
        if damage is None:
            return False
        _LOGGER.warning("in the cache, %s; it is removed", damage)
        for each in (path, blob.resolve(), blob):
            each.unlink(missing_ok=True)
    except OSError as fault:
        message = f"`{fault.filename or blob}` in the cache cannot be checked and removed where damaged: {fault.strerror}"
        raise ModelError(message, "check the rights of that folder, or set `HF_HOME` to another one") from fault
    return True


def known_as_others(folder: Path, sums: Mapping[str, str]) -> list[str]:
    """Paths of files that the cache names by another SHA-256 than the one wanted; reads none of them."""
    blobs = {name: _blob_of(folder / name).name for name in sums if (folder / name).exists()}
    return [name for name, blob in blobs.items() if is_sha256(blob) and blob != sums[name]]


# Downloading ---------------------------------------------------------------------------------------------------------


def fetch_file(repo: str, snapshot: Path, file: HubFile, sha256: str | None, advance: Callable[[int], object]) -> None:
    """Bring one file into the cache, behind what an earlier, broken download has left of it.

    Args:
        repo: as `owner/name`.
        snapshot: where the cache keeps the files of a commit: `models--owner--name/snapshots/<commit>`.
        file: what is fetched.
        sha256: what it must have, besides what the hub says.
        advance: is told how many bytes more have come.

    Raises:
        UnfitError: the server sends another file.
        Exception: what huggingface_hub and its HTTP client raise.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import WeakFileLock

    commit, storage = snapshot.name, snapshot.parents[1]
    url = hf_hub_url(repo, file.path, revision=commit, endpoint=endpoint())
    about = get_hf_file_metadata(url, timeout=TIMEOUT_S)
    if about.etag is None or not _ETAG.fullmatch(about.etag):
        raise UnfitError(f"the server gives `{file.path}` no usable ETag")
    size = about.size if about.size is not None else file.size_bytes
    known = HubFile(file.path, size, next(filter(is_sha256, (file.digest, about.etag)), file.digest or about.etag))
    blob = storage / "blobs" / about.etag
    lock = storage.parent / ".locks" / storage.name / f"{about.etag}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists() or remove_if_damaged(blob, known):
            blob.unlink(missing_ok=True)  # a link to what is gone
            partial = partial_of(blob)
            _load_all(url, about, partial, advance)
            if other := _difference(partial, known, sha256):
                partial.unlink()
                raise other
            partial.replace(blob)
        elif sha256 is not None and (other := _difference(blob, known, sha256)):
            raise other
    path = snapshot / file.path
    if path.exists() and path.stat().st_size != blob.stat().st_size:
        path.unlink()
    hf_hub_download(repo, file.path, revision=commit, endpoint=endpoint())  # links the blob into the snapshot


def _load_all(url: str, about: HfFileMetadata, partial: Path, advance: Callable[[int], object]) -> None:
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


def _load(url: str, about: HfFileMetadata, partial: Path, advance: Callable[[int], object]) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if urlsplit(about.location).netloc != urlsplit(url).netloc:  # a store for large files, whose address carries its own key
        headers.pop("authorization", None)
    had = _size_of(partial)
    if about.size is not None and had > about.size:
        partial.unlink()
        had = 0
    bar = cast("Any", SimpleNamespace(update=advance))  # where a server begins anew, what comes twice is taken back
    with partial.open("ab") as stream:
        http_get(about.location, stream, resume_size=had, headers=headers, expected_size=about.size, _tqdm_bar=bar)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def partial_of(blob: Path) -> Path:
    """Where an unfinished download of a blob lies."""
    return blob.with_name(f"{blob.name}.incomplete")


def endpoint() -> str | None:
    """The hub's address as the user set it; read at each use, unlike huggingface_hub's own constant."""
    address = os.environ.get("HF_ENDPOINT")
    return address.rstrip("/") if address else None
