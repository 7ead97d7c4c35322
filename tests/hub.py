"""A model hub on loopback: as much of the hub's API as huggingface_hub speaks to, with faults on demand.

Small files are served as they are. Large ones (`*.safetensors`, `*.bin`, `*.ckpt`) are listed with size and SHA-256 and answered
by a redirect to a store on another host name, as the hub does with its large files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "c0ffee" * 6 + "c0de"
_LARGE = (".safetensors", ".bin", ".ckpt")


@dataclass(frozen=True)
class Request:
    """What a client asked, and how many bytes of a body it is sent."""

    method: str
    path: str
    host: str
    range: str
    token: str
    sent: int


class Hub(ThreadingHTTPServer):
    """Serves `repos`; what befalls the next GETs of a file stands in `faults`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Mapping[str, bytes]] = {}
        self.licences: dict[str, str] = {}
        self.gated: set[str] = set()
        """Repositories that want the token `let-me-in`."""
        self.faults: dict[str, list[str]] = {}
        """By path: `drop` (the connection ends midway), `stall` (it goes silent there), `403`, `500`, `wrong` (one byte is)."""
        self.listed: dict[str, str] = {}
        """SHA-256 by path, in place of the true ones in the list and the headers."""
        self.etags: dict[str, str] = {}
        """By path, in place of git's SHA-1."""
        self.commit = COMMIT
        self.ignores_ranges = False
        self.tells_lengths = True
        """Whether the headers of large files say how long they are."""
        self.tells_sizes = True
        self.requests: list[Request] = []
        self.stalled = threading.Event()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def store(self) -> str:
        return f"http://localhost:{self.server_port}"

    def gets(self, path: str) -> list[Request]:
        """The GETs of a file, wherever they went."""
        return [each for each in self.requests if each.method == "GET" and each.path.endswith(f"/{path}")]

    def sum_of(self, path: str, data: bytes) -> str:
        return self.listed.get(path) or hashlib.sha256(data).hexdigest()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        file = re.fullmatch(r"/(store/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo, revision = (api[1], api[2]) if api else (file[2], file[3]) if file else ("", "")
        if file and file[1]:
            self._send_file(file[4], self.server.repos[repo][file[4]])
        elif repo in self.server.gated and self.headers.get("Authorization") != "Bearer let-me-in":
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif repo not in self.server.repos:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", COMMIT):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif api:
            listing = json.dumps(self._listing(repo, with_sizes=self.server.tells_sizes and "blobs=" in query)).encode()
            self._answer(200, listing, {"Content-Type": "application/json"})
        elif file and file[4] in self.server.repos[repo]:
            self._resolve(path, file[4], self.server.repos[repo][file[4]])
        else:
            self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _listing(self, repo: str, *, with_sizes: bool) -> Any:
        card = {"license": self.server.licences[repo]} if repo in self.server.licences else {}
        siblings = [self._sibling(*item, with_sizes=with_sizes) for item in self.server.repos[repo].items()]
        return {"id": repo, "sha": self.server.commit, "cardData": card, "siblings": siblings}

    def _sibling(self, name: str, data: bytes, *, with_sizes: bool) -> dict[str, Any]:
        if not with_sizes:
            return {"rfilename": name}
        large = {"sha256": self.server.sum_of(name, data), "size": len(data), "pointerSize": 130}
        more = {"lfs": large} if name.endswith(_LARGE) else {}
        return {"rfilename": name, "size": len(data), "blobId": git_sha1(data), **more}

    def _resolve(self, path: str, name: str, data: bytes) -> None:
        if not name.endswith(_LARGE):
            self._send_file(name, data)
            return
        headers = {
            "X-Linked-ETag": f'"{self.server.sum_of(name, data)}"',
            "X-Repo-Commit": COMMIT,
            "Location": f"{self.server.store}/store{path}",
        }
        if self.server.tells_lengths:
            headers["X-Linked-Size"] = str(len(data))
            headers["X-Xet-Hash"] = "f" * 64  # large files may be had over another protocol, which nobody answers here
            headers["X-Xet-Refresh-Route"] = f"{self.server.url}/api/xet"
        self._answer(302, b"", headers)

    def _send_file(self, name: str, data: bytes) -> None:
        etag = self.server.sum_of(name, data) if name.endswith(_LARGE) else self.server.etags.get(name, git_sha1(data))
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        faults = self.server.faults.get(name)
        fault = faults.pop(0) if faults and self.command == "GET" else ""
        if fault in ("403", "500"):
            self._answer(int(fault), b"")
            return
        if fault == "wrong":
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, span = 200, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if span and not self.server.ignores_ranges:
            start = int(span[1])
            if start >= len(data):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        self._answer(status, data, headers, fault)

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, fault: str = "") -> None:
        body = b"" if self.command == "HEAD" else data[: len(data) // 2] if fault in ("drop", "stall") else data
        asked = (self.headers.get("Host", ""), self.headers.get("Range", ""), self.headers.get("Authorization", ""))
        self.server.requests.append(Request(self.command, self.path.partition("?")[0], *asked, len(body)))
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client went away
            self.wfile.write(body)
            self.wfile.flush()
        if fault == "stall":
            self.server.stalled.set()
            self.server.released.wait(20)
        self.close_connection = True


def git_sha1(data: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder's files, as a repository has them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def running_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process and its children speak to, with an empty cache in `home`."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_DISABLE_XET"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join(5)
