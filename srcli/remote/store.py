"""One store or web server: what it holds, what is fetched from it and put into it, whole, and tried again where that helps."""

from __future__ import annotations

import functools
import importlib.util
import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from srcli.errors import UsageError
from srcli.remote.faults import ShortError, StoreError, named, no_bucket, passes
from srcli.remote.urls import EXTRAS, Url

log = logging.getLogger("srcli")

TRIES = 5
FIRST_WAIT_S = 0.5
"""Before the second try; it doubles from one to the next."""
CONNECT_S, READ_S = 10, 60
"""How long a store may be silent."""
LOST_AFTER = 4
"""So many objects in a row that cannot be had after all tries: the store is given up."""
CONNECTIONS = 32
PAGE = 1000
T = TypeVar("T")


class Entry(NamedTuple):
    """An object of a listing."""

    url: Url
    size: int | None
    """In bytes; None where it is not known."""
    modified: float | None
    """Seconds since 1970."""


class Store:
    """A bucket, container or host. May be used by several threads.

    Args:
        url: of anything in it.

    Raises:
        UsageError: the package for it is not installed.
    """

    def __init__(self, url: Url) -> None:
        module, extra = EXTRAS.get(url.scheme, ("fsspec", ""))
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"`{url}` needs the package `{module}`", f"run `pip install 'srcli[{extra}]'`")
        import fsspec

        self.url = url
        try:
            self._files = fsspec.filesystem(url.scheme, **_options(url.scheme))
        except Exception as fault:  # of any package
            raise named(fault, url) from fault
        self._files.retries = 1  # s3fs and gcsfs: there is one place that tries again, here
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._lost = 0
        self._gone: StoreError | None = None

    @property
    def gone(self) -> StoreError | None:
        """Why nothing more is fetched from it, where that is so; what is ready to be put is still tried."""
        return self._gone

    def entries(self, folder: Url, *, recursive: bool = True) -> Iterator[Entry]:
        """What lies in a folder, by name as bytes are ordered, in as little memory as the store allows.

        S3 and Google's store give pages of a thousand names. Others are listed folder by folder.

        Raises:
            StoreError: it cannot be listed (further).
        """
        pages = {"s3": self._s3_pages, "gs": self._gs_pages}.get(folder.scheme)
        if pages is None:
            yield from self._by_folder(folder, recursive)
            return
        try:
            for page in pages(folder, recursive):
                yield from page
        except StoreError as error:  # pages of a folder without anything are empty
            if error.missing:
                raise no_bucket(folder) from error
            raise

    def look(self, url: Url) -> Entry | None:
        """An object by its name; None where it is a folder.

        Raises:
            StoreError: there is neither, or the store does not tell.
        """
        if not url.key or url.key.endswith("/"):
            return None
        info = self._ask(lambda: self._files.info(url.address), url)
        return None if info["type"] == "directory" else Entry(url, info.get("size"), _modified(info))

    def fetch(self, url: Url, size: int | None, path: Path, *, grows: bool = False) -> None:
        """Bring an object onto the disk.

        Args:
            url: of it.
            size: what the listing said, in bytes; None where there is none.
            path: the file to write.
            grows: the object may have become larger since.

        Raises:
            StoreError: it cannot be had whole, or the store was given up before.
        """

        def once() -> None:
            self._files.get_file(url.address, str(path))
            came = path.stat().st_size
            if size is not None and (came < size or (came > size and not grows)):
                raise ShortError(f"came with {came} bytes of the {size} that were listed: it was cut off, or changed meanwhile")

        try:
            if self._gone is not None:
                raise self._gone
            self._ask(once, url, single=True)
        except StoreError:
            with suppress(OSError):
                path.unlink()
            raise

    def put(self, path: Path, url: Url) -> None:
        """Make a file an object, which is there when it is whole, and not before.

        Raises:
            StoreError: it cannot be written.
        """
        self._ask(lambda: self._files.put_file(str(path), url.address), url, single=True)

    def close(self) -> None:
        """Try nothing again from now on."""
        self._closed.set()

    def _ask(self, what: Callable[[], T], url: Url, *, single: bool = False) -> T:
        """Try several times, each later than the last by about twice as much; `single`: of one of many objects.

        Raises:
            StoreError: it cannot be done.
        """
        for trial in range(TRIES):
            try:
                answer = what()
            except Exception as fault:  # of any package
                if not passes(fault) or trial == TRIES - 1 or self._closed.is_set():
                    error = named(fault, url)
                    self._count(error, single)
                    raise error from fault
                log.debug("try %d of `%s` failed: %s", trial + 1, url, fault)
                self._closed.wait(FIRST_WAIT_S * 2**trial * random.uniform(0.75, 1.25))  # noqa: S311 (no secret)
            else:
                self._lost = 0
                return answer
        raise AssertionError("the last try has returned or raised")

    def _count(self, error: StoreError, single: bool) -> None:
        with self._lock:
            self._lost += error.passing
            if single and (error.lasting or self._lost >= LOST_AFTER):
                self._gone = self._gone or error

    def _s3_pages(self, folder: Url, recursive: bool) -> Iterator[list[Entry]]:
        token: dict[str, str] = {}
        asked = {"Bucket": folder.place, "Prefix": folder.below, "MaxKeys": PAGE, **({} if recursive else {"Delimiter": "/"})}
        while True:
            request = {**asked, **self._files.req_kw, **token}
            page = self._ask(functools.partial(self._files.call_s3, "list_objects_v2", **request), folder)
            found = page.get("Contents", [])
            yield [Entry(_at(folder, each["Key"]), each["Size"], each["LastModified"].timestamp()) for each in found]
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _gs_pages(self, folder: Url, recursive: bool) -> Iterator[list[Entry]]:
        asked = {"prefix": folder.below, "maxResults": PAGE, **({} if recursive else {"delimiter": "/"})}
        token: dict[str, str] = {}
        while True:
            ask = functools.partial(self._files.call, "GET", "b/{}/o", folder.place, json_out=True, **asked, **token)
            page = self._ask(ask, folder)
            found = page.get("items", [])
            yield [Entry(_at(folder, each["name"]), int(each["size"]), _modified(each)) for each in found]
            if not page.get("nextPageToken"):
                return
            token = {"pageToken": page["nextPageToken"]}

    def _by_folder(self, folder: Url, recursive: bool) -> Iterator[Entry]:
        """Sorted as if it were one list: a folder stands where its slash would."""
        found = self._ask(functools.partial(self._files.ls, folder.address, detail=True), folder)
        named = {
            each["name"].rstrip("/").rsplit("/", 1)[-1] + ("/" if each["type"] == "directory" else ""): each for each in found
        }
        for name, info in sorted(named.items()):
            url = folder.joined(name.rstrip("/"))
            if not name.endswith("/"):
                yield Entry(url, info.get("size"), _modified(info))
            elif recursive:
                yield from self._by_folder(url, recursive)


def _at(folder: Url, key: str) -> Url:
    return Url(folder.scheme, folder.place, key)


def _modified(info: dict[str, Any]) -> float | None:
    names = ("LastModified", "mtime", "updated", "last_modified", "created")
    value = next((info[name] for name in names if info.get(name)), None)
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    return value.timestamp() if isinstance(value, datetime) else value


def _options(scheme: str) -> dict[str, Any]:
    """How the packages are told of our patience, and to keep no listings; what the user sets in fsspec's own ways stays."""
    import fsspec.config

    given = fsspec.config.conf.get(scheme, {})
    if scheme == "s3":
        ours = {
            "connect_timeout": CONNECT_S,
            "read_timeout": READ_S,
            "max_pool_connections": CONNECTIONS,
            "retries": {"total_max_attempts": 1},
        }
        return {"use_listings_cache": False, "config_kwargs": {**ours, **given.get("config_kwargs", {})}}
    if scheme in ("http", "https"):
        from aiohttp import ClientTimeout

        patience = {"timeout": ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=READ_S)}
        return {"use_listings_cache": False, "client_kwargs": {**patience, **given.get("client_kwargs", {})}}
    return {} if scheme == "memory" else {"use_listings_cache": False}


class Stores:
    """Each store once, opened when it is first asked for."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Store] = {}
        self._lock = threading.Lock()

    def of(self, url: Url) -> Store:
        """The store that `url` lies in.

        Raises:
            UsageError: the package for it is not installed.
        """
        with self._lock:
            if (url.scheme, url.place) not in self._open:
                self._open[url.scheme, url.place] = Store(url)
            return self._open[url.scheme, url.place]

    def close(self) -> None:
        """Have none of them try again what fails."""
        for store in self._open.values():
            store.close()
