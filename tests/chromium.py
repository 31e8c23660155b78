"""A real Chromium without a window, driven over its own pipe: what a person sees, clicks and types. Needs no driver."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_ANSWER_SECONDS = 30.0


class Chromium:
    """One browser with one tab and a fresh profile; use it as a context.

    Args:
        profile: an empty folder.
        extra: further arguments of the program.
    """

    def __init__(self, profile: Path, *extra: str) -> None:
        assert PROGRAM is not None
        self._profile, self._extra = profile, extra
        self._buffer = b""
        self._last = 0
        self._session: str | None = None

    def __enter__(self) -> Chromium:
        read_end, self._to = os.pipe()
        self._from, write_end = os.pipe()
        arguments = (
            *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars"),
            *(f"--user-data-dir={self._profile}", *self._extra, "about:blank"),
        )
        self._process = subprocess.Popen(
            # Chromium reads commands from 3 and writes answers to 4.
            ["bash", "-c", f'exec "$@" 3<&{read_end} 4>&{write_end}', "bash", str(PROGRAM), *arguments],
            pass_fds=(read_end, write_end),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_end)
        os.close(write_end)
        tabs = self._call("Target.getTargets")["targetInfos"]
        target = next(tab["targetId"] for tab in tabs if tab["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        os.close(self._to)
        os.close(self._from)

    def look(self, *, width: int = 1100, height: int = 900, dark: bool = False, scripts: bool = True) -> None:
        """Set the window, the system's colours, and whether pages may run scripts."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[colours])
        self._call("Emulation.setScriptExecutionDisabled", value=not scripts)

    def open(self, url: str) -> None:
        """Go to an address, as if typed."""
        self._leave(lambda: self._call("Page.navigate", url=url))

    def evaluate(self, expression: str) -> Any:
        """A JavaScript expression's value in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    @property
    def text(self) -> str:
        """What is to be read on the page."""
        return str(self.evaluate("document.body.innerText"))

    @property
    def address(self) -> str:
        """Where the browser is."""
        return str(self.evaluate("location.href"))

    def type(self, selector: str, text: str) -> None:
        """Click into a field and type."""
        self._press(selector)
        self._call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click, and wait for the page that comes."""
        self._leave(lambda: self._press(selector))

    def press(self, key: str, *, times: int = 1) -> None:
        """Press a key such as Tab or Enter."""
        codes = {"Tab": 9, "Enter": 13, "Space": 32}
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                more = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
                self._call(
                    "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key], **more
                )

    def enter(self) -> None:
        """Press Enter, and wait for the page that comes."""
        self._leave(lambda: self.press("Enter"))

    def picture(self, file: Path, *, whole: bool = True) -> None:
        """Keep what it looks like as PNG."""
        shot = self._call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole)
        )
        file.write_bytes(base64.b64decode(shot["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _press(self, selector: str) -> None:
        found = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            " e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        assert found is not None, f"no {selector} on {self.address}"
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent", type=kind, x=found[0], y=found[1], button="left", clickCount=1
            )

    def _leave(self, act: Any) -> None:
        self.evaluate("window.left = false")
        act()
        until = time.monotonic() + _ANSWER_SECONDS
        while self.evaluate("window.left === false || document.readyState !== 'complete'"):
            assert time.monotonic() < until, f"no other page came after {self.address}"
            time.sleep(0.05)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + _ANSWER_SECONDS
        while True:
            answer = self._next(until, method)
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer.get('error')}"
                return dict(answer["result"])

    def _next(self, until: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            piece = os.read(self._from, 1 << 20) if ready else b""
            assert piece, f"Chromium did not answer {method}"
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))
