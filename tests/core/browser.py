"""A headless Chromium, driven over the pipes of its DevTools protocol."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--remote-debugging-pipe",
)
# The protocol is spoken on descriptors 3 and 4; either may be taken by the other until both are out of the way.
_LAUNCHER = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(descriptor), fcntl.F_DUPFD, 10) for descriptor in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
_LARGEST_MESSAGE = 1 << 26
# The code and the text of a key.
_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), " ": (32, " ")}


_LEFT = "navigated or closed"


class PageLeftError(Exception):
    """The browser went to another page before a script of this one had ended."""


class Page:
    """One tab: what it is told to do, and everything it complained of. The first tab gets the complaints of the others too."""

    def __init__(self, commands: asyncio.StreamWriter, opener: "Page | None" = None) -> None:
        self._commands = commands
        self._numbers: Iterator[int] = opener._numbers if opener else count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = opener._answers if opener else {}
        self._session: dict[str, str] = {}
        self.complaints: list[str] = []
        self.requests: list[str] = []

    async def listen(self, events: asyncio.StreamReader) -> None:
        """Take in what the browser says until it ends."""
        with suppress(asyncio.IncompleteReadError):
            while True:
                message = json.loads((await events.readuntil(b"\0"))[:-1])
                if "id" in message:
                    self._answers.pop(message["id"]).set_result(message)
                else:
                    self._note(message["method"], message["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning", "assert"}:
            self.complaints.append(f"console: {params['args']}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(f"exception: {params['exceptionDetails']}")
        elif method == "Log.entryAdded" and params["entry"]["level"] in {"error", "warning"}:
            self.complaints.append(f"log: {params['entry']}")
        elif method == "Audits.issueAdded" and "contentSecurityPolicyIssueDetails" in params["issue"]["details"]:
            self.complaints.append(f"policy: {params['issue']['details']}")

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and give its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params, **self._session}
        self._commands.write(json.dumps(message).encode() + b"\0")
        result = await asyncio.wait_for(answer, 30)
        if _LEFT in result.get("error", {}).get("message", ""):
            raise PageLeftError
        assert "error" not in result, (method, result)
        found: dict[str, Any] = result["result"]
        return found

    async def attach(self) -> None:
        """Open the tab and ask to be told everything."""
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            await self.send(f"{domain}.enable")

    async def new_tab(self) -> "Page":
        """Open another tab of the same browser."""
        page = Page(self._commands, self)
        await page.attach()
        return page

    async def open(self, url: str) -> None:
        """Go to an address."""
        await self.send("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """Evaluate an expression in the page, and wait for it if it is a promise."""
        result = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def wait_for(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true, and return its value. The page may change during the wait."""
        async with asyncio.timeout(30):
            while True:
                with suppress(PageLeftError):
                    return await self._look_for(expression)

    async def _look_for(self, expression: str) -> Any:
        return await self.run(
            "new Promise((resolve, reject) => { const end = Date.now() + 15000; (function look() {"
            f"  const found = {expression};"
            "  if (found) resolve(found === true || typeof found === 'string' ? found : true);"
            f"  else if (Date.now() > end) reject(new Error({json.dumps(f'never: {expression}')}));"
            "  else setTimeout(look, 20); })() })"
        )

    async def click(self, selector: str) -> None:
        """Click what is found first, once it is there."""
        await self.wait_for(f"document.querySelector({json.dumps(selector)})")
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")

    async def fill(self, selector: str, text: str) -> None:
        """Type into a field, once it is there, in the way that React notices."""
        await self.wait_for(f"document.querySelector({json.dumps(selector)})")
        await self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.send("Input.insertText", text=text)

    async def write(self, text: str) -> None:
        """Type into the field that has the focus."""
        await self.send("Input.insertText", text=text)

    async def press(self, key: str, times: int = 1) -> None:
        """Press a key, such as `Tab`, `Enter` or `Shift+Tab`, and release it."""
        *held, name = key.split("+")
        code, text = _KEYS[name]
        described = {"key": name, "windowsVirtualKeyCode": code, "modifiers": 8 if held else 0}
        for _ in range(times):
            await self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **described)
            await self.send("Input.dispatchKeyEvent", type="keyUp", **described)

    async def resize(self, width: int, height: int, *, scheme: str = "light", media: str = "screen") -> None:
        """Show the page in a window of this size, with a light or dark scheme, on the screen or on paper."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.send("Emulation.setEmulatedMedia", media=media, features=features)


@asynccontextmanager
async def browsing(directory: Path) -> AsyncIterator[Page]:
    """Start a browser with a profile of its own, and end it and all its processes."""
    commands_out, commands_in = os.pipe()
    events_out, events_in = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _LAUNCHER, str(commands_out), str(events_in)),
        *(PROGRAM or "chromium", *_FLAGS, f"--user-data-dir={directory}"),
        pass_fds=(commands_out, events_in),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(commands_out)
    os.close(events_in)
    loop = asyncio.get_running_loop()
    events = asyncio.StreamReader(limit=_LARGEST_MESSAGE)
    reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(events), os.fdopen(events_out, "rb"))
    writing, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(commands_in, "wb"))
    page = Page(asyncio.StreamWriter(writing, protocol, None, loop))
    listening = asyncio.create_task(page.listen(events))
    try:
        await page.attach()
        yield page
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        reading.close()
        writing.close()
