"""Chromium without a screen, asked over the WebDriver protocol (a W3C recommendation)."""

from __future__ import annotations

import base64
import contextlib
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from benchmarks.browser_runtime import FLAGS

_ARGUMENTS = (*FLAGS, "--hide-scrollbars")
_DEADLINE = 120  # seconds for one command


class Chromium:
    """One window of a browser."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, address: str) -> None:
        """Loads a page."""
        _send("POST", f"{self._session}/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """Returns what a script returns, which may wait, and has its `arguments`."""
        body = f"return (async () => {{ {script} }})()"  # the driver waits for promises
        return _send(
            "POST", f"{self._session}/execute/sync", {"script": body, "args": list(arguments)}
        )

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the page in pixels of CSS."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, scheme: str) -> None:
        """Prefers "light" or "dark" pages."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def press(self, key: str) -> None:
        """Presses "Tab", "Space" or "ArrowLeft"."""
        value = {"Tab": "\ue004", "Space": " ", "ArrowLeft": "\ue012"}[key]
        actions = [{"type": kind, "value": value} for kind in ("keyDown", "keyUp")]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        _send("POST", f"{self._session}/actions", {"actions": [source]})

    def command(self, name: str, **parameters: Any) -> Any:
        """Sends a command of the DevTools protocol."""
        body = {"cmd": name, "params": parameters}
        return _send("POST", f"{self._session}/goog/cdp/execute", body)

    def screenshot(self, path: pathlib.Path) -> None:
        """Writes what the window shows as a PNG file."""
        path.write_bytes(base64.b64decode(_send("GET", f"{self._session}/screenshot")))


def missing() -> str:
    """What of Chromium and its driver is not on this machine; empty if nothing is missing."""
    return " and ".join(name for name in ("chromium", "chromedriver") if not shutil.which(name))


@contextlib.contextmanager
def chromium() -> Iterator[Chromium]:
    """A browser with a fresh profile, which is closed at the end."""
    with (
        tempfile.TemporaryDirectory() as profile,
        subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as driver,
    ):
        try:
            assert driver.stdout is not None
            port = next(
                int(match[1])
                for line in driver.stdout
                if (match := re.search(rb"started successfully on port (\d+)", line))
            )
            options = {
                "binary": shutil.which("chromium"),
                "args": [*_ARGUMENTS, f"--user-data-dir={profile}"],
            }
            wanted = {"browserName": "chrome", "goog:chromeOptions": options}
            address = f"http://127.0.0.1:{port}/session"
            session = _send("POST", address, {"capabilities": {"alwaysMatch": wanted}})
            session = f"{address}/{session['sessionId']}"
            timeouts = {"script": 1000 * _DEADLINE, "pageLoad": 1000 * _DEADLINE}
            _send("POST", f"{session}/timeouts", timeouts)
            try:
                yield Chromium(session)
            finally:
                _send("DELETE", session)
        finally:
            driver.terminate()


def _send(method: str, address: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, method=method)
    request.add_header("Content-Type", "application/json")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_DEADLINE + 10) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.load(error)["value"]["message"]) from error
