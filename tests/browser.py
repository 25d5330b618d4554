"""A page in a real browser: chromium without a window, controlled over its debugging pipe."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
FLAGS += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]


class Browser:
    """Commands and events of the Chrome DevTools Protocol; each message ends with a zero byte."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self.to_browser, self.from_browser = to_browser, from_browser
        self.number, self.unread = 0, b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def await_event(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.unread:
            read = os.read(self.from_browser, 1 << 20)
            assert read, "the browser has ended"
            self.unread += read
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def opened(page: Path, profile: Path) -> Iterator[tuple[Browser, str]]:
    """Opens the page in a browser; yields it and the session to evaluate in."""
    their_input, to_browser = os.pipe()
    from_browser, their_output = os.pipe()
    # The browser reads descriptor 3 and writes descriptor 4.
    place = f'exec "$@" 3<&{their_input} 4>&{their_output}'
    command = ["bash", "-c", place, "bash", str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        command, pass_fds=(their_input, their_output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(their_input)
    os.close(their_output)
    try:
        browser = Browser(to_browser, from_browser)
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            browser.call(f"{domain}.enable", session)
        browser.call("Page.navigate", session, url=page.as_uri())
        browser.await_event("Page.loadEventFired")
        yield browser, session
    finally:
        process.kill()
        process.wait()
        os.close(to_browser)
        os.close(from_browser)


def rendered(browser: Browser, session: str, width: int, scheme: str) -> tuple[int, int]:
    """Returns how far a page reaches beyond a screen of that width, and the brightness of its background, 0 to 255.

    Args:
        scheme: `light` or `dark`.
    """
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", session, **screen)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", session, features=media)
    look = "[document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    answer = browser.call("Runtime.evaluate", session, expression=look, returnByValue=True)
    reaches, color = answer["result"]["value"]
    return max(0, reaches - width), sum(int(part) for part in color[4:-1].split(",")) // 3
