"""The SOCKS proxy: from a local program's connection to a stream (carrier.py carries its bytes).

The rules of the handshake are in proto/socks.py. Clients come in crowds, and a task costs as much as all else
that is done for one. So the pump calls here when a client has sent something, and where a circuit is ready
its stream is begun at once; a task is made only where there is something to wait for: a circuit, another try,
a look-up.

Destinations are never logged.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM
from math import inf
from typing import Any, NoReturn, Protocol

import trio

from torkit.errors import EndReason, InternalError, StreamClosed, TimedOut, TorkitError, UsageError
from torkit.net.carrier import KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, READ_SIZE, Carrier
from torkit.net.farewell import AT_ONCE, Farewells
from torkit.net.pump import Pump
from torkit.net.sockdiag import SockDiag
from torkit.net.stream import Stream
from torkit.proto.destination import check_host
from torkit.proto.socks import (
    SOCKS4_VERSION,
    Command,
    Handshake,
    Reply,
    Request,
    encode_reply,
    reply_for,
)

# How long a client may take to say what it wants, as C tor's SocksTimeout. Where there is no room for another
# client, the one that has been silent for longest leaves at once.
HANDSHAKE_TIMEOUT = 120.0  # seconds

# How long a request may take in all. net/attempts.py gives up before: it knows why.
CONNECT_TIMEOUT = 150.0  # seconds

# How long the first attempt has, on a circuit that was ready, as C tor's.
FIRST_ATTEMPT_TIMEOUT = 10.0  # seconds

# Each has one descriptor; half of the usual soft limit of 1,024 is left for relays and files.
MAX_CLIENTS = 512

# Addresses that look-ups have answered: a program that connects to one has leaked no name.
MAX_TOLD = 1024

ACCEPTED_PER_TURN = 64  # clients, before those that are there have their turn
ACCEPT_RETRY = 0.1  # seconds, where the system has no descriptor left
ACCEPT_WARNING = 60.0  # seconds between two warnings of that
OUT_OF_RESOURCES = {EMFILE, ENFILE, ENOBUFS, ENOMEM}

logger = logging.getLogger(__name__)


class Isolate(Enum):
    """What must be equal for two requests to share a circuit, in C tor's words for its SocksPort."""

    AUTH = "auth"  # the credentials
    CLIENT = "client"  # the client's address
    LISTENER = "listener"  # where the client has connected to
    DEST_ADDR = "dest-addr"
    DEST_PORT = "dest-port"
    STREAM = "stream"  # nothing is: every request has a circuit of its own


ISOLATION = frozenset({Isolate.AUTH, Isolate.CLIENT, Isolate.LISTENER})  # as C tor's SocksPort by default


class Begin(Protocol):
    """Begins a stream for one request on a circuit that is ready; None where none is. Raises TorkitError."""

    def __call__(self, host: str, port: int, *, isolation: Hashable) -> Stream | None: ...


class Connect(Protocol):
    """Opens a stream for one request, however long it takes; raises TorkitError.

    `begun` is a first attempt, which has failed or was not answered in time.
    """

    async def __call__(
        self, host: str, port: int, *, isolation: Hashable, begun: Stream | None = None
    ) -> Stream: ...


class Answer(Protocol):
    """One answer to a look-up."""

    @property
    def kind(self) -> str:
        """`ipv4`, `ipv6` or `hostname`."""

    @property
    def value(self) -> str: ...


class Resolve(Protocol):
    """Looks up a name, or the name of an address; raises TorkitError."""

    async def __call__(self, host: str, *, isolation: Hashable) -> Sequence[Answer]: ...


async def serve_socks(
    listeners: Sequence[trio.SocketListener],
    *,
    begin: Begin,
    connect: Connect,
    resolve: Resolve,
    max_clients: int = MAX_CLIENTS,
    isolate: Collection[Isolate] = ISOLATION,
    names_only: bool = False,
) -> NoReturn:
    """Serve SOCKS clients until cancelled, and close the listeners.

    Where there are `max_clients`, a new one takes the place of the one that has kept silent for longest, and
    waits to be accepted where all have said what they want. `isolate` says what keeps streams apart. With
    `names_only`, connections to addresses are refused: whoever asks for one may have asked a resolver for its
    name.
    """
    async with trio.open_nursery() as nursery:
        proxy = _Proxy(nursery, begin, connect, resolve, max_clients, frozenset(isolate), names_only)
        try:
            proxy.listen(listeners)
            for waiting in (proxy.handshakes, proxy.attempts, proxy.farewells):
                nursery.start_soon(waiting.run)
            await proxy.look()
        finally:
            proxy.close()
            for listener in listeners:
                listener.socket.close()


class _Proxy:
    """What the clients of one proxy share."""

    def __init__(
        self,
        nursery: trio.Nursery,
        begin: Begin,
        connect: Connect,
        resolve: Resolve,
        max_clients: int,
        isolate: frozenset[Isolate],
        names_only: bool,
    ) -> None:
        self.nursery = nursery
        self.begin = begin
        self.connect = connect
        self.resolve = resolve
        self.pump = Pump.current()
        self.kernel = SockDiag()
        self.handshakes = _Deadlines(HANDSHAKE_TIMEOUT, _Client.give_up_handshake)
        self.attempts = _Deadlines(FIRST_ATTEMPT_TIMEOUT, _Client.give_up_attempt)
        self.farewells = Farewells(self.pump)
        self._clients: set[_Client] = set()
        self._max_clients = max_clients
        self._listeners: list[_Listener] = []
        self._isolation_keys = [key for flag, key in _ISOLATION_KEYS.items() if flag in isolate]
        self.names_only = names_only
        self._told: dict[str, None] = {}  # addresses that look-ups have answered, the oldest first
        self._has_warned_of_leak = False

    def listen(self, listeners: Sequence[trio.SocketListener]) -> None:
        self._listeners = [_Listener(self, listener) for listener in listeners]

    async def look(self) -> NoReturn:
        """Look now and then for clients that are gone."""
        while True:
            await trio.sleep(KEEPALIVE_INTERVAL)
            for client in list(self._clients):
                client.look()

    def close(self) -> None:
        for listener in self._listeners:
            listener.close()
        for client in list(self._clients):
            client.close()
        self.kernel.close()

    @property
    def has_room(self) -> bool:
        """Whether a client may be accepted, if need be in the place of a silent one."""
        return len(self._clients) < self._max_clients or self.handshakes.oldest is not None

    def add(self, client: "_Client") -> None:
        silent = self.handshakes.oldest
        if len(self._clients) >= self._max_clients and silent is not None:
            silent.close()
        self._clients.add(client)
        self.handshakes.add(client)
        if not self.has_room:
            self._watch_listeners()

    def forget(self, client: "_Client") -> None:
        self.note_request(client)
        self.attempts.discard(client)
        had_room = self.has_room
        self._clients.discard(client)
        if not had_room:
            self._watch_listeners()

    def note_request(self, client: "_Client") -> None:
        """It has said what it wants, or leaves."""
        had_room = self.has_room
        self.handshakes.discard(client)
        if had_room and not self.has_room:
            self._watch_listeners()

    def _watch_listeners(self) -> None:
        for listener in self._listeners:
            listener.watch(self.has_room)

    def isolation(self, client: "_Client", request: Request) -> Hashable:
        """Equal for requests that may share a circuit."""
        return tuple([key(client, request) for key in self._isolation_keys])

    async def lookup(self, request: Request, isolation: Hashable) -> str:
        """The one answer that a SOCKS reply has room for; raises TorkitError if there is none."""
        with _deadline(CONNECT_TIMEOUT, "a look-up"):
            answers = await self.resolve(request.host, isolation=isolation)
        if request.command is Command.RESOLVE_PTR:
            kinds = ["hostname"]
        elif request.version == SOCKS4_VERSION:
            kinds = ["ipv4"]
        else:
            kinds = ["ipv4", "ipv6"]
        for kind in kinds:
            for answer in answers:
                if answer.kind == kind:
                    host = check_host(answer.value)
                    self._note_told(host)
                    return host
        raise StreamClosed("no answer of the kind asked for", reason=EndReason.RESOLVEFAILED)

    def _note_told(self, host: str) -> None:
        self._told.pop(host, None)
        self._told[host] = None
        if len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]

    def is_leak(self, request: Request) -> bool:
        """Whether a connection is asked for by an address that no look-up here has answered."""
        is_address = request.command is Command.CONNECT and request.is_address
        return is_address and (self.names_only or request.host not in self._told)

    def warn_of_leak(self) -> None:
        """Once for this proxy, however many connections by name came before."""
        if not self._has_warned_of_leak:
            self._has_warned_of_leak = True
            logger.warning(
                "a program asked for an address, not a name%s; if it looked the name up by itself, "
                "its resolver knows where it goes (use socks5h:// or SOCKS4a)",
                ", and was refused" if self.names_only else "",
            )


class _Listener:
    """Accepts clients while there is room for them."""

    def __init__(self, proxy: _Proxy, listener: trio.SocketListener) -> None:
        self._proxy = proxy
        # A second descriptor of the same socket: trio's own waits for nobody.
        self._socket = socket.fromfd(listener.socket.fileno(), listener.socket.family, socket.SOCK_STREAM)
        _set_options(self._socket)
        self._address = self._socket.getsockname()[:2]
        self._source = proxy.pump.add_local(self._socket.fileno(), self)
        self._warned_at = -inf  # that the system is out of descriptors or memory

    def watch(self, is_wanted: bool) -> None:
        self._proxy.pump.watch_reading(self._source, is_wanted)

    def on_pump(self, what: Any) -> None:
        """Somebody is at the door."""
        for _ in range(ACCEPTED_PER_TURN):
            if not self._proxy.has_room:
                return
            try:
                accepted, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    if trio.current_time() - self._warned_at >= ACCEPT_WARNING:
                        self._warned_at = trio.current_time()
                        reason = os.strerror(error.errno or 0)
                        logger.warning("no client can be accepted now, others wait: %s", reason)
                    self.watch(False)
                    self._proxy.nursery.start_soon(self._try_later)
                    return
                continue  # that client has left again
            accepted.setblocking(False)
            self._proxy.add(_Client(self._proxy, accepted, address[0], self._address))

    def on_fault(self, error: InternalError) -> None:
        """Go on: the next client may fare better."""
        if not self._source.is_watched:
            self._source = self._proxy.pump.add_local(self._socket.fileno(), self)

    async def _try_later(self) -> None:
        await trio.sleep(ACCEPT_RETRY)
        self.watch(self._proxy.has_room)

    def close(self) -> None:
        self._proxy.pump.remove(self._source)
        self._socket.close()


class _Client:
    """One client, from its first byte to its last. `address` is where it is, `listener` where it came to."""

    def __init__(self, proxy: _Proxy, sock: socket.socket, address: str, listener: tuple[str, int]) -> None:
        self.address = address
        self.listener = listener
        self._proxy = proxy
        self._socket = sock
        self._source = proxy.pump.add_local(sock.fileno(), self)
        self._handshake = Handshake()
        self._request: Request | None = None
        self._isolation: Hashable = None
        self._stream: Stream | None = None
        self._answer = b""  # to its handshake, not sent yet
        self._has_more = False  # it sends before it is answered; what is heard of it next is that it broke
        self._sent_early = 0  # bytes of what it sent with its request, before the exit has answered; as C tor
        self._carrier: Carrier | None = None
        self._scope: trio.CancelScope | None = None  # of a task that works for this client

    # --- the handshake ----------------------------------------------------------------------------

    def on_pump(self, what: Any) -> None:
        """It sends, or has broken. What it sends behind its request waits until the exit has answered."""
        if self._request is not None:
            if self._has_more:
                return self.close()
            self._has_more = True
            self._proxy.pump.watch_reading(self._source, False)
            return None
        try:
            data = self._socket.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return self.close()
        try:
            self._request = self._handshake.receive_data(data) if data else None
        except TorkitError as error:
            logger.info("a SOCKS client was refused: %s", error)
            self._answer = self._handshake.data_to_send()
            return self._part(b"")
        self._answer = self._handshake.data_to_send()
        if not data:
            return self._part(b"")
        if self._request is not None:
            self._serve(self._request)
        if self._answer and not self._send(b""):
            return self.close()
        return None

    def give_up_handshake(self) -> None:
        """It has taken too long to say what it wants."""
        self._handshake.give_up()
        self._part(self._handshake.data_to_send())

    def _serve(self, request: Request) -> None:
        self._proxy.note_request(self)
        if self._proxy.is_leak(request):
            self._proxy.warn_of_leak()
            if self._proxy.names_only:
                return self._part(encode_reply(request.version, Reply.NOT_ALLOWED))
        if request.command is Command.RESOLVE and request.is_address:
            return self._tell(request, request.host)
        self._isolation = self._proxy.isolation(self, request)
        if request.command is not Command.CONNECT:
            self._work(self._look_up, request)
            return None
        try:
            stream = self._proxy.begin(request.host, request.port, isolation=self._isolation)
        except TorkitError as error:
            return self._refuse(request, error)
        if stream is None:
            self._work(self._connect, request, None)
            return None
        self._stream = stream
        self._sent_early = stream.put(self._handshake.trailing_data)
        stream.watcher = self
        self._proxy.attempts.add(self)
        return None

    # --- connecting -------------------------------------------------------------------------------

    def on_change(self) -> None:
        """The stream that was begun has been answered, or has failed."""
        assert self._stream is not None
        if self._stream.is_connected:
            self._proxy.attempts.discard(self)
            self._carry(self._stream)
        else:
            self.give_up_attempt()

    def on_xon(self) -> None:
        """Nothing is sent yet."""

    def give_up_attempt(self) -> None:
        """It failed or has taken too long: what can be done about that is worth a task."""
        assert self._stream is not None
        assert self._request is not None
        self._proxy.attempts.discard(self)
        self._stream.watcher = None
        begun, self._stream = self._stream, None
        self._sent_early = 0
        self._work(self._connect, self._request, begun)

    def _work(self, task: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Have a task work for this client until it leaves, be it before the task begins."""
        self._scope = trio.CancelScope()
        self._proxy.nursery.start_soon(task, *arguments)

    async def _connect(self, request: Request, begun: Stream | None) -> None:
        with self._guarded():
            try:
                with _deadline(CONNECT_TIMEOUT, "a connection"):
                    stream = await self._proxy.connect(
                        request.host, request.port, isolation=self._isolation, begun=begun
                    )
            except TorkitError as error:
                self._refuse(request, error)
            else:
                self._carry(stream)

    async def _look_up(self, request: Request) -> None:
        with self._guarded():
            try:
                host = await self._proxy.lookup(request, self._isolation)
            except TorkitError as error:
                self._refuse(request, error)
            else:
                self._tell(request, host)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Until the client leaves. A fault of ours must not end the others."""
        assert self._scope is not None
        with self._scope:
            try:
                yield
            except Exception as error:
                # Its text may name a destination.
                debugging = logger.isEnabledFor(logging.DEBUG)
                name = type(error).__name__
                logger.warning("a SOCKS connection failed: internal %s", name, exc_info=debugging)
                assert self._request is not None
                self._part(encode_reply(self._request.version, Reply.GENERAL_FAILURE))

    # --- carrying ---------------------------------------------------------------------------------

    def _carry(self, stream: Stream) -> None:
        assert self._request is not None
        self._stream = stream
        # In a write of its own: ncat before 7.94 loses what arrives together with the reply.
        if not self._send(encode_reply(self._request.version, Reply.SUCCEEDED)):
            return self.close()
        self._carrier = Carrier(self._proxy, self._socket, self._source, stream, self._end)
        self._carrier.start(self._handshake.trailing_data[self._sent_early :])
        return None

    def _end(self, failure: Exception | None) -> None:
        """The carrier has done its work; `failure` is why it could not do all."""
        if isinstance(failure, TorkitError):
            logger.info("a stream failed: %s", failure)
        if isinstance(failure, OSError) or not self._source.is_watched:
            return self.close()
        if self._stream is not None and not self._stream.has_ended:  # by a fault of ours
            self._close_stream()
        return self._bid_farewell(self._stream, is_whole=failure is None)

    def look(self) -> None:
        """End if the client is gone, which nothing need tell while nothing is read or written."""
        if self._carrier is not None:
            self._carrier.look()

    # --- the end ----------------------------------------------------------------------------------

    def _tell(self, request: Request, host: str) -> None:
        """Answer a look-up."""
        try:
            self._part(encode_reply(request.version, Reply.SUCCEEDED, host))
        except UsageError as error:  # SOCKS4 has no room for it
            self._refuse(request, error)

    def _refuse(self, request: Request, error: TorkitError) -> None:
        self._part(encode_reply(request.version, reply_for(error)))

    def _send(self, data: bytes) -> bool:
        """Send a few bytes without waiting, behind what is still unsent. Returns whether all were accepted.

        What can be said at once goes in one segment, as from C tor: programs that send their whole handshake
        at once also read the whole answer at once.
        """
        data, self._answer = self._answer + data, b""
        try:
            return self._socket.send(data) == len(data)
        except OSError:
            return False

    def _part(self, last_words: bytes) -> None:
        """Say the last that will be said, and let the client read it."""
        self._close_stream()
        if not self._source.is_watched or ((self._answer or last_words) and not self._send(last_words)):
            return self.close()
        return self._bid_farewell(None, is_whole=True)

    def _bid_farewell(self, stream: Stream | None, *, is_whole: bool) -> None:
        self._proxy.handshakes.discard(self)
        self._proxy.farewells.begin(self._socket, self._source, stream, is_whole=is_whole, close=self.close)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.watcher = None
            self._stream.close()
            self._stream = self._carrier = None

    def on_fault(self, error: InternalError) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything, once. The client sees a reset, unless all was said."""
        self._proxy.forget(self)
        self._proxy.farewells.discard(self._source)
        self._proxy.pump.remove(self._source)
        if self._scope is not None:
            self._scope.cancel()
        self._close_stream()
        self._socket.close()


_ISOLATION_KEYS: dict[Isolate, Callable[[_Client, Request], Hashable]] = {
    Isolate.AUTH: lambda _, request: request.isolation,
    Isolate.CLIENT: lambda client, _: client.address,
    Isolate.LISTENER: lambda client, _: client.listener,
    Isolate.DEST_ADDR: lambda _, request: request.host.rstrip(".").lower(),
    Isolate.DEST_PORT: lambda _, request: request.port,
    Isolate.STREAM: lambda _, __: object(),
}


class _Deadlines:
    """Clients that have equally long to be through with something, the first of them first."""

    def __init__(self, timeout: float, expire: Callable[[_Client], None]) -> None:
        self._timeout = timeout
        self._expire = expire
        self._waiting: dict[_Client, float] = {}
        self._is_needed = trio.Event()

    def add(self, client: _Client) -> None:
        self._waiting[client] = trio.current_time() + self._timeout
        self._is_needed.set()

    def discard(self, client: _Client) -> None:
        self._waiting.pop(client, None)

    @property
    def oldest(self) -> _Client | None:
        return next(iter(self._waiting), None)

    async def run(self) -> NoReturn:
        while True:
            await self._is_needed.wait()
            self._is_needed = trio.Event()
            while self._waiting:
                client, at = next(iter(self._waiting.items()))
                if at <= trio.current_time():
                    del self._waiting[client]
                    self._expire(client)
                else:
                    await trio.sleep_until(at)


def _set_options(listener: socket.socket) -> None:
    """What accepted sockets inherit.

    The kernel asks whether a silent client is still there. And whatever closes its socket resets the
    connection, until all has been said in good order (farewell.py): no cut may look like an end.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)


@contextmanager
def _deadline(seconds: float, purpose: str) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise TimedOut(f"{purpose} took longer than {seconds:g} s") from None
