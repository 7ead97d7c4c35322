"""A real headless Chromium, driven through ChromeDriver's HTTP interface (W3C WebDriver) with the standard library alone."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

ARROW_LEFT, ARROW_RIGHT, END, TAB = "\ue012", "\ue014", "\ue010", "\ue004"
"""Keys, as WebDriver writes them."""
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


def why_not() -> str:
    """Why no browser can be started here; empty if one can."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(missing)} not installed (Debian's packages chromium and chromium-driver)" if missing else ""


class Browser:
    """One window; use as a context manager.

    Args:
        profile: an empty folder for the browser's own files.
        size: (width, height) of the window in pixels.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1300, 1000)) -> None:
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
        )
        assert self._driver.stdout is not None
        port = next(found[1] for line in self._driver.stdout if (found := re.search(r"started successfully on port (\d+)", line)))
        self._root = f"http://127.0.0.1:{port}"
        options = {
            "binary": shutil.which("chromium"),
            "args": [*_FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"],
        }
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        try:
            self._root += f"/session/{self._send('POST', '/session', wanted)['sessionId']}"
        except Exception:
            self._stop()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._send("DELETE", "")
        finally:
            self._stop()

    def open(self, page: Path) -> None:
        """Load a file, and wait until it is loaded."""
        self._send("POST", "/url", {"url": page.resolve().as_uri()})

    def resize(self, width: int, height: int) -> None:
        """Set the window's size in pixels."""
        self._send("POST", "/window/rect", {"width": width, "height": height})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a JavaScript function returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, selector: str, keys: str) -> None:
        """Type into the element that a CSS selector finds, as a keyboard does."""
        self._send("POST", f"/element/{self._find(selector)}/value", {"text": keys})

    def click(self, selector: str) -> None:
        """Click on the element."""
        self._send("POST", f"/element/{self._find(selector)}/click", {})

    def screenshot(self, path: Path) -> None:
        """The visible part of the page as PNG."""
        path.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def errors(self) -> list[str]:
        """What the page wrote to the console as an error, files that could not be loaded among it."""
        entries = self._send("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def _find(self, selector: str) -> str:
        return str(self._send("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT])

    def _send(self, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self._root + path, data, {"Content-Type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def _stop(self) -> None:
        self._driver.terminate()
        self._driver.communicate(timeout=20)
