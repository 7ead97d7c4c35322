"""A stand-in for an object store, in a process of its own on loopback: moto's S3, with faults on demand.

`python store_server.py` prints its port. `POST /-/faults` takes a JSON list of faults, of which the first that fits a request
happens; `GET /-/log` gives the requests so far, and empties the list. It is no store: moto has S3's requests and answers, but not
its consistency, limits or speed.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Environ = dict[str, Any]
Start = Callable[..., Any]

_REASONS = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown", 404: "html"}


class Faulty:
    """moto behind faults: a dict of `method` and `path` (patterns of `METHOD` and `/path?query`), `after` and `times`
    (requests that fit: passed by before, and hit), and `do`: a status, `cut` (half of the answer), or seconds to wait.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self.faults: list[dict[str, Any]] = []
        self.log: list[str] = []

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"] + ("?" + environ["QUERY_STRING"] if environ.get("QUERY_STRING") else "")
        if path.startswith("/-/"):
            return self._told(path, environ, start)
        with self._lock:
            self.log.append(f"{environ['REQUEST_METHOD']} {path}")
            fault = self._next(environ["REQUEST_METHOD"], path)
        if isinstance(fault, int):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code = _REASONS[fault]
            body = (
                b"<html>no store</html>"
                if code == "html"
                else f"<Error><Code>{code}</Code><Message>so</Message></Error>".encode()
            )
            start(f"{fault} so", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        if isinstance(fault, float):
            time.sleep(fault)
        answer = self._app(environ, start)
        return self._half(answer) if fault == "cut" else answer

    def _next(self, method: str, path: str) -> Any:
        for fault in self.faults:
            if re.fullmatch(fault.get("method", ".*"), method) and re.search(fault.get("path", ""), path):
                fault["after"] = fault.get("after", 0) - 1
                if fault["after"] < 0 and fault.get("times", 1) > 0:
                    fault["times"] = fault.get("times", 1) - 1
                    return fault["do"]
        return None

    def _half(self, answer: Iterable[bytes]) -> Iterator[bytes]:
        body = b"".join(answer)
        yield body[: len(body) // 2]
        raise ConnectionResetError

    def _told(self, path: str, environ: Environ, start: Start) -> list[bytes]:
        with self._lock:
            if path == "/-/faults":
                self.faults = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            body = json.dumps(self.log).encode()
            self.log = []
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server("127.0.0.1", 0, Faulty(), threaded=True)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until whoever started it ends


if __name__ == "__main__":
    main()
