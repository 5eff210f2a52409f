"""A real browser for tests: Chromium through its driver's plain HTTP protocol, without a network."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = next((name for name, found in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if found is None), None)

OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND"),
)


@dataclass
class Browser:
    """One window."""

    base: str
    session: str = ""

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from error

    def do(self, path: str, body: Any = None, method: str = "POST") -> Any:
        return self.ask(method, f"/session/{self.session}{path}", body if method == "POST" else None)

    def open(self, url: str, *, width: int = 1280, dark: bool = False) -> None:
        self.tool(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tool("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.do("/url", {"url": "about:blank"})  # else another fragment of the same page would not load it again
        self.complaints()
        self.do("/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.do("/execute/sync", {"script": script, "args": arguments})

    def tool(self, command: str, **parameters: Any) -> Any:
        return self.do("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def element(self, selector: str) -> str:
        found = self.do("/element", {"using": "css selector", "value": selector})
        return str(next(iter(found.values())))

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self.do(f"/element/{self.element(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        self.do(f"/element/{self.element(selector)}/value", {"text": text})

    def keys(self, *keys: str) -> None:
        actions = [
            step for key in keys for step in ({"type": "keyDown", "value": key}, {"type": "keyUp", "value": key})
        ]
        self.do("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def complaints(self) -> list[str]:
        """What the console has said since the last time."""
        return [entry["message"] for entry in self.do("/se/log", {"type": "browser"}) if entry["level"] == "SEVERE"]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.do("/screenshot", method="GET")))


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser that ends with the test."""
    assert DRIVER is not None
    with tempfile.TemporaryDirectory(prefix="colocate-browser-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "driver.log")
        with log.open("w") as file:
            driver = subprocess.Popen([DRIVER, "--port=0"], stdout=file, stderr=subprocess.STDOUT)
        found = Browser("")
        try:
            wait_until(lambda: re.search(r"successfully on port \d+", log.read_text()), 20)
            port = re.findall(r"successfully on port (\d+)", log.read_text())[-1]
            found.base = f"http://127.0.0.1:{port}"
            wait_until(lambda: _is_ready(found), 20)
            options = {"binary": CHROMIUM, "args": [*OPTIONS, f"--user-data-dir={folder}/profile"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            found.session = found.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            yield found
        finally:
            if found.session:
                found.ask("DELETE", f"/session/{found.session}")
            driver.terminate()
            driver.wait(timeout=20)


def _is_ready(found: Browser) -> bool:
    try:
        return bool(found.ask("GET", "/status")["ready"])
    except OSError:
        return False
