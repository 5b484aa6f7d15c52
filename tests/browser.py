"""Headless Chromium for tests, controlled by the DevTools protocol."""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
SCREENSHOTS = Path(os.environ.get("DREAMBOOTH_SCREENSHOTS", "build/screenshots"))
"""Folder of screenshots, also an artifact of CI."""


def executable() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """A browser tab."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._home = ""
        self.problems: list[str] = []
        """Console messages, exceptions, failed and foreign requests of the page."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **options: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": options}))
        while (answer := self._next()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path | str, width: int, height: int = 900) -> None:
        """Load a file or URL at a size in CSS pixels; returns when it is loaded.

        Requests to other origins are recorded in `problems`.
        """
        url = page.resolve().as_uri() if isinstance(page, Path) else page
        self._home = "" if isinstance(page, Path) else "/".join(url.split("/")[:3])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.do("Emulation.setDeviceMetricsOverride", **size)
        self.prefer("light")
        self.do("Page.navigate", url=url)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def prefer(self, scheme: Literal["light", "dark"]) -> None:
        wanted = {"name": "prefers-color-scheme", "value": scheme}
        self.do("Emulation.setEmulatedMedia", features=[wanted])

    def ask(self, expression: str) -> Any:
        """The awaited value of a JavaScript expression."""
        wanted = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.do("Runtime.evaluate", **wanted)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 60) -> Any:
        """Wait until a JavaScript expression is neither null nor false; returns its value."""
        deadline = time.monotonic() + seconds
        while (value := self.ask(expression)) in (None, False):  # an element is returned as {}
            if time.monotonic() > deadline:
                self.photograph("timeout")
                raise AssertionError(f"timed out waiting for {expression}")
            time.sleep(0.25)
        return value

    def click(self, element: str) -> None:
        """Click the centre of an element, given as a JavaScript expression.

        Waits until it exists, is enabled, and is not covered by another element.
        """
        position = self.until(
            f"(() => {{ const it = {element}; if (!it || it.disabled) return null; "
            "it.scrollIntoView({block: 'center', behavior: 'instant'}); "
            "const box = it.getBoundingClientRect(); "
            "const at = {x: box.x + box.width / 2, y: box.y + box.height / 2}; "
            "return it.contains(document.elementFromPoint(at.x, at.y)) ? at : null })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **position)

    def write(self, element: str, text: str) -> None:
        """Replace the text of a field."""
        self.click(element)
        self.ask(f"{element}.select()")
        self.do("Input.insertText", text=text)

    def choose(self, element: str, option: str) -> None:
        """Select an option of a drop-down list by keyboard."""
        self.click(element)
        for key in (*option, "\r"):
            self.do("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
            self.do("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.until(f"{element}.value === {json.dumps(option)}")

    def photograph(self, name: str, height: int | None = None) -> Path:
        """Save a screenshot of the page, or of its top `height` pixels."""
        metrics = self.do("Page.getLayoutMetrics")
        size = metrics["cssContentSize"]
        clip = {**size, "height": min(size["height"], height or size["height"]), "scale": 1}
        # only if needed, as it causes a new layout
        beyond = clip["height"] > metrics["cssLayoutViewport"]["clientHeight"]
        screenshot = self.do("Page.captureScreenshot", captureBeyondViewport=beyond, clip=clip)
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        path.write_bytes(base64.b64decode(screenshot["data"]))
        return path

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=60))
        params = message.get("params", {})
        if message.get("method") == "Runtime.consoleAPICalled":
            self.problems.append(str([each.get("value") for each in params["args"]]))
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        if message.get("method") == "Log.entryAdded":
            self.problems.append(params["entry"]["text"])
        if message.get("method") == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", self._home or "file:")):
                self.problems.append(f"requested {url}")
        return message


@contextmanager
def browsing(profile: Path) -> Iterator[Tab]:
    """A tab of a new browser process; `profile`: an empty folder."""
    from websockets.sync.client import connect

    command = [str(executable()), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        port = _port(process)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            (target,) = [each for each in json.load(answer) if each["type"] == "page"]
        # pings are answered only while messages are read
        quiet: dict[str, Any] = {"max_size": None, "proxy": None, "ping_interval": None}
        with connect(target["webSocketDebuggerUrl"], **quiet) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(30)
        if process.stderr:
            process.stderr.close()


def _port(process: subprocess.Popen[str]) -> int:
    """Read the debugging port from Chromium's output."""
    assert process.stderr
    for line in process.stderr:
        if found := re.search(r"ws://127\.0\.0\.1:(\d+)/", line):
            return int(found[1])
    raise AssertionError("Chromium ended before listening")
