"""The URLs that stand for files, told apart from paths; nothing here reaches out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from srcli.errors import UsageError

_URL = re.compile(r"([a-z][a-z0-9]*)://", re.IGNORECASE)
_MAGIC = re.compile(r"[*?\[]")
_SPELLINGS = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az"}
EXTRAS = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"),
    "http": ("aiohttp", "http"),
    "https": ("aiohttp", "http"),
}
"""Scheme -> the module that it needs, and the extra of srcli that brings it."""
_SCHEMES = (*EXTRAS, "memory")
_WEB = ("http", "https")
_LOCAL = "file"


@dataclass(frozen=True)
class Url:
    """An object, or a folder of objects: all whose keys begin so.

    Attributes:
        scheme: one of `s3`, `gs`, `az`, `http`, `https`, `memory`.
        place: the bucket, container or host.
        key: what follows, without a slash at its beginning.
        query: of web servers, with its question mark; it may hold a password, so that nobody is told of it.
    """

    scheme: str
    place: str
    key: str
    query: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}/{self.key}".rstrip("/") + ("?…" if self.query else "")

    @property
    def address(self) -> str:
        """As fsspec takes it."""
        return f"{self.scheme}://{self.place}/{self.key}{self.query}"

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server, which can be neither listed nor written to."""
        return self.scheme in _WEB

    @property
    def is_pattern(self) -> bool:
        """Whether it could be a glob."""
        return not self.is_web and bool(_MAGIC.search(self.key))

    @property
    def fixed(self) -> Url:
        """The folder that a glob's part without wildcards names."""
        parts = self.key.split("/")
        count = next(i for i, part in enumerate(parts) if _MAGIC.search(part))
        return replace(self, key="/".join(parts[:count]))

    @property
    def name(self) -> str:
        """The last part, as a file is called by it."""
        last = self.key.rstrip("/").rsplit("/", 1)[-1]
        return unquote(last) if self.is_web else last

    @property
    def folder(self) -> tuple[str, ...]:
        """The names that lead to it."""
        return tuple(unquote(part) if self.is_web else part for part in self.key.split("/")[:-1])

    @property
    def below(self) -> str:
        """What the keys of all that lies in it begin with."""
        return f"{self.key.rstrip('/')}/" if self.key else ""

    def holds(self, other: Url) -> bool:
        """Whether `other` is this, or lies in it."""
        return (self.scheme, self.place) == (other.scheme, other.place) and f"{other.key.rstrip('/')}/".startswith(self.below)

    def joined(self, relative: PurePosixPath | str) -> Url:
        """What lies in it at `relative`."""
        return replace(self, key=self.below + str(relative))


def is_url(text: str) -> bool:
    """Whether a text of the command line is a URL, not a path: any scheme, so that `parsed` can refuse unknown ones."""
    return _URL.match(text) is not None


def was_url(path: Path) -> bool:
    """Whether a path was given as a URL: `Path` makes one slash of two."""
    return re.match(r"[a-z][a-z0-9]+:/[^/]", str(path), re.IGNORECASE) is not None


def local(text: str) -> str:
    """The path that a `file://` URL names; any other text as it is."""
    parts = urlsplit(text) if is_url(text) else None
    return unquote(parts.path) if parts and parts.scheme == _LOCAL else text


def parsed(text: str) -> Url:
    """A URL's parts.

    Raises:
        UsageError: no such kind of store is known, or no bucket is named.
    """
    scheme, _, rest = text.partition("://")
    scheme = _SPELLINGS.get(scheme.lower(), scheme.lower())
    if scheme not in _SCHEMES:
        known = ", ".join(f"`{each}://`" for each in EXTRAS)
        raise UsageError(f"`{text}` is of a kind that is not known", f"use one of {known}, or a path")
    rest, query = rest, ""
    if scheme in _WEB:
        rest, mark, after = rest.partition("?")
        query = mark + after
    place, _, key = rest.partition("/")
    if not place:
        raise UsageError(f"`{text}` names no {'host' if scheme in _WEB else 'bucket'}", f"write `{scheme}://NAME/…`")
    return Url(scheme, place, key, query)


def trees(urls: Sequence[Url]) -> list[PurePosixPath]:
    """Where the files of a list belong below the folder that is common to all; those of several buckets or hosts by their names.

    Returns:
        a relative path for each.
    """
    folders = [(url.place, *url.folder) for url in urls]
    shortest, longest = min(folders), max(folders)
    common = next(
        (i for i, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), min(len(shortest), len(longest))
    )
    return [PurePosixPath(*folder[common:], url.name) for url, folder in zip(urls, folders, strict=True)]


def relative_fault(relative: str) -> str:
    """Why a name below a prefix can be no path below a folder; empty where it can.

    `..` would lead out of the folder of results; two names that differ by an empty part would be one file.
    """
    if any(part in ("", ".", "..") for part in relative.split("/")) or "\0" in relative:
        return "cannot be a file below a folder: its name has an empty part, `.` or `..`"
    return ""


Place = Path | Url
"""Where a file is, or is to be."""
