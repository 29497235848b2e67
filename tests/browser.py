"""A headless Chromium for the tests of pages, if there is one."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time

NAMES = ("chromium", "google-chrome", "chrome")
# Not on Windows, where a process inherits no pipes by their numbers.
BROWSER = next(filter(None, map(shutil.which, NAMES)), None) if os.name != "nt" else None
PIPES = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(pipes[0], 3), os.dup2(pipes[1], 4)  # where a browser with --remote-debugging-pipe listens and speaks
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A headless Chromium, spoken to in its DevTools protocol through two pipes."""

    def __init__(self, folder):
        its_ear, self.mouth = os.pipe()
        self.ear, its_mouth = os.pipe()
        command = [
            *(sys.executable, "-c", PIPES, str(its_ear), str(its_mouth), BROWSER),
            *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-dev-shm-usage", "--disable-background-networking", f"--user-data-dir={folder}"),
        ]
        quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen(command, pass_fds=(its_ear, its_mouth), **quiet)
        os.close(its_ear), os.close(its_mouth)
        self.events, self.waiting, self.number, self.session = [], b"", 0, None

    def open(self, url: str) -> None:
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.send(f"{domain}.enable")
        self.size(1280, 900)
        self.send("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired")

    def send(self, method: str, **parameters) -> dict:
        self.number += 1
        message = dict(id=self.number, method=method, params=parameters)
        if self.session:
            message["sessionId"] = self.session
        os.write(self.mouth, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self, seconds: float = 30) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self.waiting:
            if not select.select([self.ear], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            if not (more := os.read(self.ear, 1 << 20)):
                raise EOFError("the browser has gone")
            self.waiting += more
        text, _, self.waiting = self.waiting.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def wait_for(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            self.receive()

    def value(self, expression: str):
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str, modifiers: int = 0) -> None:
        code = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Tab": 9}[key]
        for kind in ("rawKeyDown", "keyUp"):
            keys = dict(type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers)
            self.send("Input.dispatchKeyEvent", **keys)

    def size(self, width: int, height: int) -> None:
        of_screen = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.send("Emulation.setDeviceMetricsOverride", **of_screen)

    def screenshot(self, path) -> None:
        path.write_bytes(
            base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        )

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        os.close(self.mouth), os.close(self.ear)
