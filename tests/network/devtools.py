"""A headless Chromium, told what to do by DevTools as tools of its kind do: one context for each identity."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Message = dict[str, Any]


class Browser:
    """Speaks with a running Chromium by two pipes: JSON, each message ended by a zero byte."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to_browser = to_browser
        self._from_browser = from_browser
        self._received = b""
        self._asked = 0

    def picture(self, url: str, *, proxy: str, credentials: tuple[str, str] | None = None) -> bytes:
        """A PNG of the page at `url`, in a context whose proxy is `proxy`.

        `credentials` are given to a proxy that asks for some. Raises RuntimeError where there is no page.
        """
        context = self._call("Target.createBrowserContext", proxyServer=proxy, proxyBypassList="<-loopback>")[
            "browserContextId"
        ]
        target = self._call(
            "Target.createTarget", url="about:blank", browserContextId=context, width=320, height=240
        )
        session = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        self._call("Fetch.enable", session, handleAuthRequests=True)
        self._call("Page.enable", session)
        self._send("Page.navigate", session, url=url)
        while True:
            message = self._receive()
            request = message.get("params", {}).get("requestId")
            match message.get("method"):
                case "Fetch.requestPaused":
                    self._send("Fetch.continueRequest", session, requestId=request)
                case "Fetch.authRequired":
                    self._answer_challenge(session, request, credentials)
                case "Page.loadEventFired":
                    break
            if error := message.get("result", {}).get("errorText"):
                raise RuntimeError(error)
        picture = self._call("Page.captureScreenshot", session)["data"]
        self._call("Target.disposeBrowserContext", browserContextId=context)
        return base64.b64decode(picture)

    def _answer_challenge(self, session: str, request: str, credentials: tuple[str, str] | None) -> None:
        if credentials is None:
            response = {"response": "CancelAuth"}
        else:
            name, password = credentials
            response = {"response": "ProvideCredentials", "username": name, "password": password}
        self._send("Fetch.continueWithAuth", session, requestId=request, authChallengeResponse=response)

    def _call(self, method: str, session: str | None = None, **parameters: object) -> Message:
        number = self._send(method, session, **parameters)
        while (message := self._receive()).get("id") != number:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        result: Message = message["result"]
        return result

    def _send(self, method: str, session: str | None = None, **parameters: object) -> int:
        self._asked += 1
        message: Message = {"id": self._asked, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to_browser, json.dumps(message).encode() + b"\0")
        return self._asked

    def _receive(self) -> Message:
        while b"\0" not in self._received:
            data = os.read(self._from_browser, 1 << 16)
            if not data:
                raise RuntimeError("the browser has ended")
            self._received += data
        text, _, self._received = self._received.partition(b"\0")
        message: Message = json.loads(text)
        return message


@contextmanager
def running_browser(before: Sequence[str], profile: str, *options: str) -> Iterator[Browser]:
    """Chromium, ended with the block. `before` is a program that runs it, such as strace, and its options."""
    to_browser, from_us = os.pipe(), os.pipe()
    their_ends = to_browser[0], from_us[1]
    # Descriptors 3 and 4 are what the browser reads and writes.
    shuffle = f'exec 3<&{their_ends[0]} 4>&{their_ends[1]}; exec "$@"'
    command = ["bash", "-c", shuffle, "bash", *before, "chromium", "--headless", "--disable-gpu"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", "--ignore-certificate-errors", "--remote-debugging-pipe"]
    command += [f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else []), *options]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=their_ends, process_group=0
    )
    for end in their_ends:
        os.close(end)
    try:
        yield Browser(to_browser[1], from_us[0])
    finally:
        os.close(to_browser[1])
        os.close(from_us[0])
        try:
            process.wait(10)  # it ends with its pipes
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
