"""A headless Chromium that tests look at pages with, through its DevTools protocol."""

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
"""Where screenshots are kept, for people and as an artifact of a build."""


def executable() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Tab:
    """One page."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._home = ""
        self.complaints: list[str] = []
        """What the page wrote to the console, what it threw, and what it was refused."""
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
        """Load a file, or a server's page, at a size in CSS pixels; returns when it is loaded.

        A server may be asked for whatever it has; asking another one is worth a complaint.
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
        """The value of a JavaScript expression, awaited."""
        wanted = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self.do("Runtime.evaluate", **wanted)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 60) -> Any:
        """The value of a JavaScript expression, once there is one that is not false."""
        deadline = time.monotonic() + seconds
        while (value := self.ask(expression)) in (None, False):  # an element comes as {}
            if time.monotonic() > deadline:
                self.photograph("waited-in-vain")
                raise AssertionError(f"waited in vain for {expression}")
            time.sleep(0.25)
        return value

    def click(self, element: str) -> None:
        """Press the mouse in the middle of what a JavaScript expression finds.

        Once it is there, and nothing lies on it, such as a message that goes away after a while.
        """
        place = self.until(
            f"(() => {{ const it = {element}; if (!it || it.disabled) return null; "
            "it.scrollIntoView({block: 'center', behavior: 'instant'}); "
            "const box = it.getBoundingClientRect(); "
            "const at = {x: box.x + box.width / 2, y: box.y + box.height / 2}; "
            "return it.contains(document.elementFromPoint(at.x, at.y)) ? at : null })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def write(self, element: str, text: str) -> None:
        """Type into a field, in the place of what stands there."""
        self.click(element)
        self.ask(f"{element}.select()")
        self.do("Input.insertText", text=text)

    def choose(self, element: str, option: str) -> None:
        """Pick from a drop-down list, by its first letters and Enter."""
        self.click(element)
        for key in (*option, "\r"):
            self.do("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
            self.do("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.until(f"{element}.value === {json.dumps(option)}")

    def photograph(self, name: str, height: int | None = None) -> Path:
        """Keep the whole page, or what is above `height`, as an image."""
        metrics = self.do("Page.getLayoutMetrics")
        size = metrics["cssContentSize"]
        clip = {**size, "height": min(size["height"], height or size["height"]), "scale": 1}
        # where there is nothing beyond, it would lay out the page anew
        beyond = clip["height"] > metrics["cssLayoutViewport"]["clientHeight"]
        shot = self.do("Page.captureScreenshot", captureBeyondViewport=beyond, clip=clip)
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=60))
        told = message.get("params", {})
        if message.get("method") == "Runtime.consoleAPICalled":
            self.complaints.append(str([each.get("value") for each in told["args"]]))
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        if message.get("method") == "Log.entryAdded":
            self.complaints.append(told["entry"]["text"])
        if message.get("method") == "Network.requestWillBeSent":
            url = told["request"]["url"]
            if not url.startswith(("file:", "data:", "blob:", self._home or "file:")):
                self.complaints.append(f"asked for {url}")
        return message


@contextmanager
def browsing(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, with its profile in an empty folder."""
    from websockets.sync.client import connect

    command = [str(executable()), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        port = _port(process)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            (target,) = [each for each in json.load(answer) if each["type"] == "page"]
        # while nobody reads what the page has to say, no ping is answered either
        quiet: dict[str, Any] = {"max_size": None, "proxy": None, "ping_interval": None}
        with connect(target["webSocketDebuggerUrl"], **quiet) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(30)
        if process.stderr:
            process.stderr.close()


def _port(process: subprocess.Popen[str]) -> int:
    """Chromium writes where it listens; it may write other things before."""
    assert process.stderr
    for line in process.stderr:
        if found := re.search(r"ws://127\.0\.0\.1:(\d+)/", line):
            return int(found[1])
    raise AssertionError("Chromium ended before it listened")
