"""Chromium without a window, over the DevTools protocol on two pipes: no driver, no package, no port."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INSTALL = "there is no chromium; install it with `apt-get install chromium`, or name one in $CHROMIUM"
FLAGS = (
    "--headless=new --remote-debugging-pipe --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage --force-device-scale-factor=1"
)
# What keys are called where their text does not say it: (code, number).
NAMED = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Escape": 27,
    "Tab": 9,
    "Home": 36,
    "End": 35,
}


class Browser:
    """One page of a running Chromium.

    Attributes
    ----------
    problems
        What the page wrote to the console as a warning or an error, and exceptions that nothing caught.
    requests
        The addresses that were asked for since the page was opened.
    """

    def __init__(self, to: int, back: int) -> None:
        self.to, self.back, self.buffer, self.number = to, back, b"", 0
        self.session: str | None = None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self._note(answer)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Load a file and wait until it is there."""
        self.resize(width, height)
        self.problems, self.requests, self.loaded = [], [], False
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not self.loaded:
            self._note(self._next())

    def resize(self, width: int, height: int = 900) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys one after another, as a person would: by their text, or their name in `NAMED`."""
        for key in keys:
            if key in NAMED:
                names = {"key": key, "code": key, "windowsVirtualKeyCode": NAMED[key]}
                self.send("Input.dispatchKeyEvent", type="rawKeyDown", **names)
            else:
                names = {"key": key}
                self.send("Input.dispatchKeyEvent", type="keyDown", text=key, **names)
            self.send("Input.dispatchKeyEvent", type="keyUp", **names)

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the first element that a CSS selector finds."""
        at = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def hover(self, selector: str) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **self.place(selector))

    def place(self, selector: str) -> dict[str, float]:
        """Where the middle of an element is in the window, once it was scrolled into it."""
        return self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const r = e.getClientRects()[0];"
            "return {x: r.x + r.width / 2, y: r.y + r.height / 2}; })()"
        )

    def screenshot(self, path: Path) -> None:
        """What the window shows, as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def _next(self, patience: float = 30) -> dict[str, Any]:
        end = time.monotonic() + patience
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.back], [], [], max(0.0, end - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self.back, 2**20)
            assert part, "Chromium has ended"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        told, method = event.get("params", {}), event.get("method")
        if method == "Runtime.exceptionThrown":
            self.problems.append(told["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.problems.append(" ".join(str(part.get("value", part)) for part in told["args"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.problems.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True


def high(descriptor: int) -> int:
    """The same file under a number that the browser does not use itself."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A Chromium with an empty profile in the folder `profile`; ended with the block."""
    program = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    assert program, INSTALL
    ours_in, theirs_out = map(high, os.pipe())
    theirs_in, ours_out = map(high, os.pipe())
    # The protocol's pipes are descriptors 3 and 4 of the browser.
    bind = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
    command = ["bash", "-c", bind, program, *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(
        command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            yield Browser(ours_out, ours_in)
        finally:
            os.close(ours_out)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            os.close(ours_in)
