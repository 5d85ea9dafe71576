"""What is done on each circuit: the probes that are built in, and a function of somebody's on a stream.

connect HOST:PORT           a connection, and nothing on it
tls HOST[:PORT]             a TLS handshake: whether HOST has proved its name, and which chain was shown
http [-H NAME]... URL       a GET: status, headers by name, length and SHA-256 of the body
dns NAME                    a look-up, as the exit answers
ping                        round trips to the exit
anything else               a command: command.py
"""

import ssl
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import h11
import trio

from torkit.directory.directory import Relay
from torkit.errors import NotProven, PeerError, UsageError
from torkit.net.circuit.asking import ask_exit
from torkit.net.secured import default_context, secure, unchecked_context
from torkit.proto.destination import check_destination
from torkit.scan.outcome import Outcome, Probe
from torkit.scan.way import Way
from torkit.targets import format_address, parse_target

# Implementation limits.
PING_COUNT = 3
MAX_BODY_LEN = 16 << 20  # bytes
MAX_HEAD_LEN = 64 << 10
READ_SIZE = 64 << 10

HTTPS_PORT, HTTP_PORT = 443, 80


StreamFunction = Callable[[trio.abc.Stream], Awaitable[dict[str, Any]]]


class OnStream:
    """A function of a program's: given a stream to `host`, it returns fields for the row, as in JSON."""

    def __init__(self, host: str, port: int, function: StreamFunction) -> None:
        self.target = host, port
        self.text = f"{function.__qualname__} {format_address(host, port)}"
        self._function = function

    async def run(self, way: Way, relay: Relay) -> Outcome:
        async with await way.connect(*self.target) as stream:
            return Outcome(await self._function(stream))


class _Connect:
    def __init__(self, text: str) -> None:
        self.target = parse_target(text)
        self.text = f"connect {format_address(*self.target)}"

    async def run(self, way: Way, relay: Relay) -> Outcome:
        began = trio.current_time()
        async with await way.connect(*self.target) as stream:
            address = None if stream.address is None else str(stream.address)
            return Outcome({"seconds": _since(began), "address": address})


class _Tls:
    def __init__(self, text: str) -> None:
        self.target = parse_target(text) if _has_port(text) else parse_target(text, str(HTTPS_PORT))
        self.text = f"tls {format_address(*self.target)}"
        self._context: ssl.SSLContext | None = None

    async def run(self, way: Way, relay: Relay) -> Outcome:
        began = trio.current_time()
        self._context = self._context or default_context()
        try:
            return Outcome(await self._look(way, self._context, began))
        except NotProven as error:  # another handshake shows what was shown: this one has thrown it away
            result = await self._look(way, unchecked_context(), began)
            return Outcome(result, "not_proven", str(error))

    async def _look(self, way: Way, context: ssl.SSLContext, began: float) -> dict[str, Any]:
        tls = await secure(await way.connect(*self.target), self.target[0], context)
        try:
            chain = [sha256(one).hexdigest() for one in tls.chain]
            return {"seconds": _since(began), "tls": tls.version, "chain": chain}
        finally:
            await tls.aclose()


class _Http:
    def __init__(self, url: str, headers: Sequence[str]) -> None:
        try:
            parts = urlsplit(url)
            default = {"http": HTTP_PORT, "https": HTTPS_PORT}[parts.scheme]
            port = parts.port or default
        except (KeyError, ValueError):
            raise UsageError(f"{url!r} is no URL in http or https") from None
        if not parts.hostname or parts.username is not None:
            raise UsageError(f"{url!r}: a host expected, and no credentials")
        self.target = parts.hostname, port
        self._is_secure = parts.scheme == "https"
        self._headers = [name.lower() for name in headers]
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._authority = parts.netloc
        self._context: ssl.SSLContext | None = None
        self.text = " ".join(["http", *(f"-H {name}" for name in self._headers), url])
        try:
            self._request()
        except (h11.LocalProtocolError, UnicodeEncodeError):
            raise UsageError(f"{url!r} is no URL that HTTP takes") from None

    def _request(self) -> h11.Request:
        headers = [("Host", self._authority), ("Accept", "*/*"), ("Connection", "close")]
        return h11.Request(method="GET", target=self._path, headers=headers)

    async def run(self, way: Way, relay: Relay) -> Outcome:
        began = trio.current_time()
        stream: trio.abc.Stream = await way.connect(*self.target)
        if self._is_secure:
            self._context = self._context or default_context()
            stream = await secure(stream, self.target[0], self._context)
        try:
            return await self._ask(stream, began)
        except h11.RemoteProtocolError as error:
            raise PeerError(f"the answer is no HTTP: {error}") from error
        finally:
            await stream.aclose()

    async def _ask(self, stream: trio.abc.Stream, began: float) -> Outcome:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_LEN)
        head = connection.send(self._request()) or b""
        await stream.send_all(head + (connection.send(h11.EndOfMessage()) or b""))
        result: dict[str, Any] = {}
        length, digest = 0, sha256()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(READ_SIZE)))
            elif isinstance(event, h11.Response):
                result = {"status": event.status_code, "headers": self._wanted(event)}
                result["first_byte_seconds"] = _since(began)
            elif isinstance(event, h11.Data):
                length += len(event.data)
                digest.update(event.data)
                if length > MAX_BODY_LEN:
                    result |= {"seconds": _since(began), "length": length, "sha256": None}
                    return Outcome(result, "too_long", f"a body of more than {MAX_BODY_LEN} bytes")
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                result |= {"seconds": _since(began), "length": length, "sha256": digest.hexdigest()}
                return Outcome(result)

    def _wanted(self, response: h11.Response) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {name: [] for name in self._headers}
        for name, value in response.headers:
            if (text := name.decode("latin-1")) in found:
                found[text].append(value.decode("latin-1"))
        return found


class _Dns:
    target = None

    def __init__(self, name: str) -> None:
        self._name = name
        self.text = f"dns {name}"

    async def run(self, way: Way, relay: Relay) -> Outcome:
        began = trio.current_time()
        answers = await way.look_up(self._name)
        return Outcome({"seconds": _since(began), "answers": [answer._asdict() for answer in answers]})


class _Ping:
    target = None
    text = "ping"

    async def run(self, way: Way, relay: Relay) -> Outcome:
        seconds = []
        for _ in range(PING_COUNT):
            began = trio.current_time()
            await ask_exit(way.circuit)
            seconds.append(_since(began))
        return Outcome({"seconds": min(seconds), "all_seconds": seconds})


def parse_probe(words: Sequence[str], *, allow_internal: bool = False) -> Probe:
    """The probe that a command line names. Raises UsageError.

    `allow_internal` as in torkit.proto.destination.
    """
    match list(words):
        case []:
            raise UsageError("no probe is named", hint="such as: torkit scan -- connect example.com:443")
        case ["connect", target]:
            probe: Probe = _Connect(target)
        case ["tls", target]:
            probe = _Tls(target)
        case ["http", *rest]:
            probe = _parse_http(rest)
        case ["dns", name]:
            check_destination(name, allow_internal=allow_internal)
            return _Dns(name)
        case ["ping"]:
            return _Ping()
        case [("connect" | "tls" | "dns" | "ping") as name, *_]:
            usage = {"connect": "HOST:PORT", "tls": "HOST[:PORT]", "dns": "NAME", "ping": "nothing"}
            raise UsageError(f"{name} takes {usage[name]}", hint=f"a command of that name: ./{name}")
        case _:
            from torkit.scan.command import Command

            return Command(words)
    assert probe.target is not None
    if probe.target[1] == 0:
        raise UsageError("port 0 cannot be connected to")
    check_destination(probe.target[0], allow_internal=allow_internal)
    return probe


def _parse_http(words: list[str]) -> _Http:
    headers = []
    while len(words) > 2 and words[0] == "-H":
        headers.append(words[1])
        words = words[2:]
    if len(words) != 1:
        raise UsageError("http takes [-H NAME]... URL", hint="a command of that name: ./http")
    return _Http(words[0], headers)


def _has_port(text: str) -> bool:
    return text.rpartition("]")[2].count(":") == 1


def _since(began: float) -> float:
    return round(trio.current_time() - began, 6)
