"""Headless Chromium, spoken to through its debugging pipe."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One tab. `with Browser(folder) as tab: tab.open(url, width=390); tab.value("1 + 1")`.

    Attributes:
        refused: What the pages logged as errors: exceptions, and what they may not load.
    """

    def __init__(self, folder: Path) -> None:
        commands, answers = os.pipe(), os.pipe()

        def place() -> None:  # Chromium reads commands at 3 and writes answers at 4
            os.dup2(commands[0], 103)
            os.dup2(answers[1], 104)
            os.dup2(103, 3)
            os.dup2(104, 4)

        flags = (
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={folder}"),
        )
        self._process = subprocess.Popen(
            [str(CHROMIUM), *flags, "about:blank"],
            preexec_fn=place,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands[0])
        os.close(answers[1])
        self._out = os.fdopen(commands[1], "wb", buffering=0)
        self._in = os.fdopen(answers[0], "rb")
        self._number = 0
        self._session: str | None = None
        self.refused: list[str] = []

    def __enter__(self) -> Browser:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._in.close()

    def call(self, method: str, **params: Any) -> Any:
        """Send a command and wait for its answer; errors that the page logs are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            data = bytearray()
            while (byte := self._in.read(1)) != b"\0":
                assert byte, "Chromium has ended"
                data += byte
            found = json.loads(data)
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return found["result"]
            entry = found.get("params", {}).get("entry", {})
            if found.get("method") == "Runtime.exceptionThrown" or entry.get("level") == "error":
                self.refused.append(json.dumps(found["params"], ensure_ascii=False))

    def open(self, url: str, width: int, height: int = 900) -> None:
        mobile = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if mobile else 1,
            mobile=mobile,
        )
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """What a script gives."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, script: str, seconds: float = 20.0) -> None:
        ends = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < ends, (script, self.refused)
            time.sleep(0.05)

    def screenshot(self, path: Path) -> bytes:
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
        return path.read_bytes()
