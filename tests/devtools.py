"""Chromium without a window, by the DevTools protocol over a pipe: for tests/browser_test.py and scripts/screenshot.

    with Browser() as browser:
        page = browser.open(path, width=400, height=800)
        page.evaluate("document.title")

Needs nothing but Python and chromium. Nothing is fetched: the browser has no network beyond the files that it is given.
"""
import base64
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import tempfile
import time

TIMEOUT_S = 60  # of one answer; far above what any takes


def find_chromium():
    """The path of the browser, or None."""
    for name in (os.environ.get("EVENKEEL_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"):
        if name and shutil.which(name):
            return shutil.which(name)
    return None


class BrowserError(Exception):
    pass


class Browser:
    def __init__(self):
        program = find_chromium()
        if program is None:
            raise BrowserError("chromium is not found")
        self.profile = tempfile.mkdtemp(prefix="evenkeel-chromium-")
        command_read, self.command_write = os.pipe()
        self.event_read, event_write = os.pipe()

        def place_pipes():  # the browser reads commands from 3 and writes events to 4
            read, write = os.dup(command_read), os.dup(event_write)
            os.dup2(read, 3)
            os.dup2(write, 4)

        # Proxies to a closed port: what a page would fetch fails, and shows as a request.
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run", "--disable-extensions",
                   "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
                   "--hide-scrollbars", "--force-color-profile=srgb", "--proxy-server=127.0.0.1:9", f"--user-data-dir={self.profile}"]
        self.process = subprocess.Popen([program, *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        close_fds=False, preexec_fn=place_pipes, start_new_session=True)
        os.close(command_read)
        os.close(event_write)
        self.buffer = b""
        self.next_id = 0
        self.events = []  # that nobody has asked for yet

    def __enter__(self):
        return self

    def __exit__(self, *error):
        try:
            self.send("Browser.close")
            self.process.wait(timeout=10)
        except (BrowserError, OSError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, signal.SIGKILL)  # its own group: chromium has a dozen children
            self.process.wait()
        os.close(self.command_write)
        os.close(self.event_read)
        shutil.rmtree(self.profile, ignore_errors=True)

    def message(self, deadline):
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.event_read], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self.event_read, 1 << 20) if ready else b""
            if not data:
                raise BrowserError("the browser has ended" if ready else f"no answer within {TIMEOUT_S} s")
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def send(self, method, session=None, **parameters):
        """Calls a method of the protocol and returns its result; events that come before go to self.events."""
        self.next_id += 1
        message = {"id": self.next_id, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.command_write, data):]
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            answer = self.message(deadline)
            if answer.get("id") != self.next_id:
                self.events.append(answer)
                continue
            if "error" in answer:
                raise BrowserError(f"{method}: {answer['error'].get('message')}")
            return answer["result"]

    def open(self, path, width=1280, height=800, dark=False, scale=1):
        """A loaded page of a file."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        page.resize(width, height, scale)
        page.media(dark=dark)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.send("Page.navigate", url=pathlib.Path(path).resolve().as_uri())
        page.wait_for("Page.loadEventFired")
        page.settle()
        return page


class Page:
    def __init__(self, browser, session):
        self.browser, self.session = browser, session
        self.seen = []  # all events of this page

    def send(self, method, **parameters):
        return self.browser.send(method, self.session, **parameters)

    def gather(self):
        ours = [e for e in self.browser.events if e.get("sessionId") == self.session]
        self.browser.events = [e for e in self.browser.events if e.get("sessionId") != self.session]
        self.seen += ours

    def wait_for(self, method):
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            self.gather()
            if any(e["method"] == method for e in self.seen):
                return
            self.browser.events.append(self.browser.message(deadline))

    def evaluate(self, expression):
        """The value of a JavaScript expression; a promise is awaited."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise BrowserError(f"{expression}: {result['exceptionDetails'].get('exception', {}).get('description', 'exception')}")
        return result["result"].get("value")

    def settle(self):
        """Until what was changed is laid out and drawn."""
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 50))))")

    def resize(self, width, height, scale=1):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=width < 600)

    def media(self, kind="", dark=False):
        """kind: "print", or "" for the screen."""
        self.send("Emulation.setEmulatedMedia", media=kind,
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def complaints(self):
        """Errors on the console, exceptions, and requests for anything but the page itself, one line each."""
        self.evaluate("0")  # what was said before this has arrived then
        self.gather()
        found = []
        for event in self.seen:
            method, p = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                details = p["exceptionDetails"]
                found.append("exception: " + details.get("exception", {}).get("description", details["text"]))
            elif method == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"):
                found.append(f"console.{p['type']}: " + " ".join(str(a.get("value", a.get("description"))) for a in p["args"]))
            elif method == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
                found.append(f"{p['entry']['level']}: {p['entry']['text']}")
            elif method == "Network.requestWillBeSent":
                url = p["request"]["url"]
                if p.get("type") != "Document" and not url.startswith("data:") or not url.startswith(("file:", "data:")):
                    found.append(f"request: {url[:200]}")
        return found

    def screenshot(self, **clip):
        """PNG bytes of what is seen, or of the rectangle x, y, width, height of the page."""
        more = {"clip": {"scale": 1, **clip}, "captureBeyondViewport": True} if clip else {}
        return base64.b64decode(self.send("Page.captureScreenshot", format="png", **more)["data"])
