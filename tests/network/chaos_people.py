"""For the soak of chaos: what people ask a proxy for, the far end that answers, what each request came to.

Every byte that is carried is one of a fixed sequence, at a place that the request names, so either end knows
what has to come next.
"""

import errno
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import trio

HOST = "127.0.0.1"
NAME = b"far.test"  # whose address the exits' name server knows
KIB, MIB = 1 << 10, 1 << 20
SEQUENCE = Random(22).randbytes(16 * MIB)
READ_SIZE = 64 * KIB
IDENTITIES = 3  # of each person, so that circuits come to a number that stays
REPLY_WITHIN = 150.0  # seconds: torkit gives up a request after 120
BYTES_WITHIN = 90.0  # seconds without a byte, after which a transfer hangs: no fault lasts so long


class CleanError(Exception):
    """A request was refused, or broke off as something broken: nobody takes that for its end."""


class Wrong(Exception):
    """A request came to neither its right bytes nor a clean error."""


class Unanswered(Wrong):
    """A request had no answer in time."""


class Part(NamedTuple):
    """So many bytes of the sequence from `start` on."""

    start: int
    length: int

    @classmethod
    def draw(cls, rng: Random, length: int) -> "Part":
        return cls(rng.randrange(len(SEQUENCE) - length), length)

    def find(self, at: int, count: int) -> bytes:
        return SEQUENCE[self.start + at : self.start + min(at + count, self.length)]


# --- the far end --------------------------------------------------------------------------------------


class FarEnd:
    """Answers one line, `WHAT START LENGTH`, on each connection. `faults` is what must not have come."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.port = 0

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        [listener] = await trio.open_tcp_listeners(0, host=HOST, backlog=512)
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve, [listener])

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError, OSError):  # an exit is gone
                await self._answer(stream)

    async def _answer(self, stream: trio.SocketStream) -> None:
        data = bytearray()
        while b"\n" not in data:
            if not (more := await stream.receive_some(READ_SIZE)):
                return
            data += more
        line, _, rest = bytes(data).partition(b"\n")
        what, start, length = line.split()
        part = Part(int(start), int(length))
        if what == b"put":
            if await self._take(stream, part, rest):
                await stream.send_all(b"all %d\n" % part.length)
            return
        if what == b"idle":  # the answer comes after a second question
            while not rest:
                if not (rest := await stream.receive_some(READ_SIZE)):
                    return
        for at in range(0, part.length, READ_SIZE):
            await stream.send_all(part.find(at, READ_SIZE))

    async def _take(self, stream: trio.SocketStream, part: Part, data: bytes) -> bool:
        """Whether all of an upload has come. Tor's streams have no end of one direction."""
        count = 0
        while True:
            if data != part.find(count, len(data)):
                self.faults.append(f"other bytes were uploaded after {count} of {part}")
                return False
            count += len(data)
            if count == part.length:
                return True
            if not (data := await stream.receive_some(READ_SIZE)):
                return False


# --- one request --------------------------------------------------------------------------------------


class Door(NamedTuple):
    """A connection to the proxy, for a request of one identity."""

    stream: trio.SocketStream
    identity: str

    async def send(self, data: bytes) -> None:
        with _clean():
            await self.stream.send_all(data)

    async def receive(self, within: float = BYTES_WITHIN) -> bytes:
        try:
            with trio.fail_after(within), _clean():
                return bytes(await self.stream.receive_some(READ_SIZE))
        except trio.TooSlowError:
            raise Unanswered(f"nothing came for {within:.0f} s") from None

    async def receive_exactly(self, count: int) -> bytes:
        """Part of an answer of the proxy itself."""
        data = b""
        with trio.move_on_after(REPLY_WITHIN), _clean():
            while len(data) < count:
                more = await self.stream.receive_some(count - len(data))
                if not more:
                    raise Wrong(f"the proxy closed after {data!r}, without an answer")
                data += more
            return data
        raise Unanswered(f"the proxy had no answer after {REPLY_WITHIN:.0f} s")

    async def ask(self, command: int, name: bytes, port: int) -> bytes:
        """SOCKS5. Returns the address of the reply."""
        user = self.identity.encode()
        hello = b"\x05\x01\x02\x01" + bytes([len(user)]) + user + b"\x01x"
        request = b"\x05" + bytes([command]) + b"\0\x03" + bytes([len(name)]) + name + struct.pack("!H", port)
        await self.send(hello)
        if (reply := await self.receive_exactly(4)) != b"\x05\x02\x01\0":
            raise Wrong(f"SOCKS handshake: {reply!r}")
        await self.send(request)
        reply = await self.receive_exactly(4)
        address = await self.receive_exactly({1: 4, 4: 16}[reply[3]] + 2)
        if reply[1] != 0:
            raise CleanError(f"SOCKS reply {reply[1]}")
        return address

    async def connect(self, port: int) -> None:
        await self.ask(1, NAME, port)

    async def connect_by_http(self, port: int) -> None:
        where = NAME + b":%d" % port
        await self.send(b"CONNECT " + where + b" HTTP/1.1\r\nHost: " + where + b"\r\n\r\n")
        reply = b""
        while not reply.endswith(b"\r\n\r\n"):
            reply += await self.receive_exactly(1)
        status = reply.split()[1]
        if status != b"200":
            raise CleanError(f"HTTP {status.decode()}")

    async def check(self, part: Part) -> None:
        """Until the end of an answer, which has to be this part."""
        count = 0
        while data := await self.receive():
            if data != part.find(count, len(data)):
                raise Wrong(f"other bytes came after {count} of {part}")
            count += len(data)
        if count != part.length:
            raise Wrong(f"a clean end after {count} bytes of {part}")


class _clean:
    """What a socket raises where its peer has reset it."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else error
        if isinstance(cause, OSError):
            if cause.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
                raise Wrong(f"the socket says {cause}") from error
            raise CleanError("reset") from error


Ask = Callable[[Door, Random, int], Awaitable[None]]


def _download(least: int, most: int) -> Ask:
    async def ask(door: Door, rng: Random, port: int) -> None:
        part = Part.draw(rng, rng.randint(least, most))
        await door.connect(port)
        await door.send(b"get %d %d\n" % part)
        await door.check(part)

    return ask


async def _upload(door: Door, rng: Random, port: int) -> None:
    part = Part.draw(rng, rng.randint(1, MIB))
    await door.connect(port)

    try:
        await door.send(b"put %d %d\n" % part)
        for at in range(0, part.length, READ_SIZE):
            with trio.fail_after(BYTES_WITHIN):
                await door.send(part.find(at, READ_SIZE))
    except trio.TooSlowError:
        raise Unanswered(f"an upload stood still for {BYTES_WITHIN:.0f} s") from None
    answer = b""
    while data := await door.receive():
        answer += data
    if answer != b"all %d\n" % part.length:
        raise Wrong(f"an upload of {part.length} was answered by {answer!r}")


async def _half_closed(door: Door, rng: Random, port: int) -> None:
    """End the question; the answer comes all the same."""
    part = Part.draw(rng, 128 * KIB)
    await door.connect(port)
    await door.send(b"get %d %d\n" % part)
    with _clean():
        await door.stream.send_eof()
    await door.check(part)


async def _idle(door: Door, rng: Random, port: int) -> None:
    part = Part.draw(rng, 16 * KIB)
    await door.connect(port)
    await door.send(b"idle %d %d\n" % part)
    with trio.move_on_after(rng.uniform(10, 60)):
        if data := await door.receive(BYTES_WITHIN):
            raise Wrong(f"{len(data)} bytes came before they were asked for")
        raise Wrong("a clean end while nothing was asked for")
    await door.send(b"now\n")
    await door.check(part)


async def _resolve(door: Door, rng: Random, port: int) -> None:
    address = await door.ask(0xF0, b"name%d.test" % rng.randrange(1000), 0)
    if address[:4] != socket.inet_aton(HOST):
        raise Wrong(f"another address: {address!r}")


async def _http(door: Door, rng: Random, port: int) -> None:
    part = Part.draw(rng, 64 * KIB)
    await door.connect_by_http(port)
    await door.send(b"get %d %d\n" % part)
    await door.check(part)


async def _unreachable(door: Door, rng: Random, port: int) -> None:
    """Nobody listens there, or no such name exists. A refusal is what is right."""
    name, there = rng.choice([(NAME, 1), (b"nobody.invalid", port)])
    try:
        await door.ask(1, name, there)
    except CleanError as error:
        if "SOCKS" in str(error):
            return
        raise
    raise Wrong(f"a connection to {name!r}, port {there}")


async def _leave(door: Door, rng: Random, port: int) -> None:
    """Go in the middle of a download, by an end or by a reset."""
    part = Part.draw(rng, 2 * MIB)
    await door.connect(port)
    await door.send(b"get %d %d\n" % part)
    count = 0
    while count < rng.randrange(part.length // 2):
        if not (data := await door.receive()):
            raise Wrong(f"a clean end after {count} bytes of {part}")
        count += len(data)
    if rng.random() < 0.5:
        linger = struct.pack("ii", 1, 0)
        door.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


KINDS: dict[str, tuple[float, Ask]] = {  # how many of a hundred requests; what is done
    "page, 1 to 16 KiB": (34, _download(KIB, 16 * KIB)),
    "download, 1 MiB": (10, _download(MIB, MIB)),
    "download, 4 to 8 MiB": (2, _download(4 * MIB, 8 * MIB)),
    "upload, to 1 MiB": (10, _upload),
    "half-closed": (8, _half_closed),
    "idle, 10 to 60 s": (6, _idle),
    "RESOLVE": (10, _resolve),
    "HTTP CONNECT": (10, _http),
    "unreachable": (5, _unreachable),
    "client leaves": (5, _leave),
}


# --- people -------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """`began` and `seconds` by trio's clock; `error` where it was a clean one, `wrong` where neither.

    `untold` says why the proxy could not know that there would be no answer.
    """

    kind: str
    began: float
    seconds: float
    error: str = ""
    wrong: str = ""
    untold: str = ""

    @property
    def is_right(self) -> bool:
        return not self.error and not self.wrong and not self.untold


# Called while a request that went wrong still has its connection, from this port. Returns why the proxy could
# not know that there would be no answer, or "".
Explain = Callable[[int, Wrong], Awaitable[str]]


@dataclass
class Crowd:
    """So many at once, each asking for one thing after the other until `is_over`."""

    count: int
    proxy: int
    port: int
    seed: int
    explain: Explain
    is_over: trio.Event = field(default_factory=trio.Event)
    outcomes: list[Outcome] = field(default_factory=list)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for who in range(self.count):
                nursery.start_soon(self._go_on, who)

    async def _go_on(self, who: int) -> None:
        rng = Random(f"{self.seed} {who}")
        names = list(KINDS)
        weights = [weight for weight, _ in KINDS.values()]
        while not self.is_over.is_set():
            [kind] = rng.choices(names, weights)
            identity = f"{who}-{rng.randrange(IDENTITIES)}"
            outcome = await request(kind, rng, self.proxy, self.port, identity, self.explain)
            self.outcomes.append(outcome)
            with trio.move_on_after(rng.uniform(0.2, 1.5)):
                await self.is_over.wait()


async def request(kind: str, rng: Random, proxy: int, port: int, identity: str, explain: Explain) -> Outcome:
    """One request, to its end."""
    began = trio.current_time()
    error = wrong = untold = ""
    seconds = 0.0
    try:
        with _clean():
            stream = await trio.open_tcp_stream(HOST, proxy)
        async with stream:
            try:
                await KINDS[kind][1](Door(stream, identity), rng, port)
            except Wrong as neither:
                seconds = trio.current_time() - began
                untold = await explain(stream.socket.getsockname()[1], neither)
                wrong = "" if untold else str(neither)
    except CleanError as clean:
        error = str(clean)
    except Wrong as neither:
        wrong = str(neither)
    return Outcome(kind, began, seconds or trio.current_time() - began, error, wrong, untold)
