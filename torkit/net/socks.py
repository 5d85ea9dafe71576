"""The SOCKS proxy: from a local program's connection to a stream, and bytes both ways.

The rules of the handshake are in proto/socks.py. What is decided here is how ends are carried over, since
TCP ends each direction by itself and Tor ends streams whole:

    the client ends its direction   nothing is told to the peer; what the peer sends is still carried
    the client is gone              the stream ends (sockdiag.py tells the two apart)
    the peer ends in good order     the client gets every byte, then the end of file
    anything else goes wrong        the client's connection is reset, so that no cut looks like an end

Destinations are never logged.
"""

import logging
import os
import socket
import struct
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from enum import Enum
from typing import NoReturn, Protocol

import trio

from torkit.errors import EndReason, StreamClosed, TimedOut, TorkitError
from torkit.net.sockdiag import is_closed_by_program
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

READ_SIZE = 65_536  # bytes; large enough that one read feeds some 130 cells

# A client writes its handshake at once; this is for those that write nothing.
HANDSHAKE_TIMEOUT = 30.0  # seconds

# As long as C tor's SocksTimeout: several circuits may be tried within it.
CONNECT_TIMEOUT = 120.0  # seconds

# How long a client may take to read what was said last, once nothing more will be carried.
LINGER_TIMEOUT = 2.0  # seconds

# A client that closed its socket and one that only ended its direction look alike until the kernel asks.
KEEPALIVE_IDLE = 30  # seconds until it asks
KEEPALIVE_INTERVAL = 15  # seconds between questions, and between our looks at the answer

# Each has one descriptor; half of the usual soft limit of 1,024 is left for relays and files.
MAX_CLIENTS = 512

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


class SocksStream(Protocol):
    """What the proxy needs of a stream: torkit.net.stream.Stream is one."""

    async def send_all(self, data: bytes | bytearray) -> None: ...
    async def copy_to(self, descriptor: int) -> None: ...
    async def aclose(self) -> None: ...


class Connect(Protocol):
    """Opens a stream for one request; raises TorkitError."""

    async def __call__(self, host: str, port: int, *, isolation: Hashable) -> SocksStream: ...


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
    connect: Connect,
    resolve: Resolve,
    max_clients: int = MAX_CLIENTS,
    isolate: Collection[Isolate] = ISOLATION,
    names_only: bool = False,
) -> NoReturn:
    """Serve SOCKS clients until cancelled. Clients beyond `max_clients` wait to be accepted.

    `isolate` says what keeps streams on circuits of their own. With `names_only`, connections to addresses
    are refused: whoever asks for one may have asked a resolver for its name.
    """
    proxy = _Proxy(connect, resolve, frozenset(isolate), names_only)
    places = trio.Semaphore(max_clients)
    for listener in listeners:
        _set_keepalive(listener.socket)

    async def serve(client: trio.SocketStream) -> None:
        try:
            await proxy.serve(client)
        finally:
            places.release()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.look)
        await trio.serve_listeners(serve, [_BoundedListener(listener, places) for listener in listeners])


class _BoundedListener(trio.abc.Listener[trio.SocketStream]):
    """Accepts a client only when it has a place for it."""

    def __init__(self, listener: trio.SocketListener, places: trio.Semaphore) -> None:
        self._listener = listener
        self._places = places

    async def accept(self) -> trio.SocketStream:
        await self._places.acquire()
        try:
            return await self._listener.accept()
        except BaseException:
            self._places.release()
            raise

    async def aclose(self) -> None:
        await self._listener.aclose()


class _Proxy:
    """What the clients of one proxy share."""

    def __init__(
        self, connect: Connect, resolve: Resolve, isolate: frozenset[Isolate], names_only: bool
    ) -> None:
        self._connect = connect
        self._resolve = resolve
        self._isolate = isolate
        self._names_only = names_only
        self._is_leak_settled = False
        self._carriers: set[_Carrier] = set()

    async def look(self) -> NoReturn:
        """Look now and then for clients that are gone."""
        while True:
            await trio.sleep(KEEPALIVE_INTERVAL)
            for carrier in list(self._carriers):
                carrier.look()

    async def serve(self, client: trio.SocketStream) -> None:
        """Serve one client to its end; never raises for what it or its peer does."""
        try:
            async with client:
                handshake = Handshake()
                request = await _negotiate(client, handshake)
                if request is None:
                    return
                if self._is_leak(request):
                    await _answer(client, encode_reply(request.version, Reply.NOT_ALLOWED))
                    return
                isolation = self._isolation(client, request)
                if request.command is Command.CONNECT:
                    await self._serve_connect(client, request, isolation, handshake.trailing_data)
                else:
                    await self._serve_lookup(client, request, isolation)
        except trio.BrokenResourceError:
            pass  # the client is gone; nobody is left to be told
        except Exception as error:
            # A fault of ours in one connection must not end the others. Its text may name a destination.
            debugging = logger.isEnabledFor(logging.DEBUG)
            logger.warning("a SOCKS connection failed: internal %s", type(error).__name__, exc_info=debugging)

    def _isolation(self, client: trio.SocketStream, request: Request) -> Hashable:
        """Equal for requests that may share a circuit."""
        try:
            peer, listener = client.socket.getpeername()[0], client.socket.getsockname()[:2]
        except OSError as error:
            raise trio.BrokenResourceError from error
        keys: dict[Isolate, Hashable] = {
            Isolate.AUTH: request.isolation,
            Isolate.CLIENT: peer,
            Isolate.LISTENER: listener,
            Isolate.DEST_ADDR: request.host.rstrip(".").lower(),
            Isolate.DEST_PORT: request.port,
            Isolate.STREAM: object(),
        }
        return tuple(keys[flag] for flag in Isolate if flag in self._isolate)

    async def _serve_connect(
        self, client: trio.SocketStream, request: Request, isolation: Hashable, early: bytes
    ) -> None:
        try:
            with _deadline(CONNECT_TIMEOUT, "a connection"):
                stream = await self._connect(request.host, request.port, isolation=isolation)
        except TorkitError as error:
            await _answer(client, encode_reply(request.version, reply_for(error)))
            return
        async with aclosing(stream):
            # In a write of its own: ncat before 7.94 loses what arrives together with the reply.
            await client.send_all(encode_reply(request.version, Reply.SUCCEEDED))
            # From here on a close is a reset, whatever causes it, until the peer has ended in good order.
            _reset_on_close(client, True)
            carrier = _Carrier(client, stream)
            self._carriers.add(carrier)
            try:
                await carrier.run(early)
            except TorkitError as error:
                logger.info("a stream failed: %s", error)
                return
            finally:
                self._carriers.discard(carrier)
            _reset_on_close(client, False)
        await _close_gently(client)

    async def _serve_lookup(self, client: trio.SocketStream, request: Request, isolation: Hashable) -> None:
        try:
            host = await self._lookup(request, isolation)
            reply = encode_reply(request.version, Reply.SUCCEEDED, host)
        except TorkitError as error:
            reply = encode_reply(request.version, reply_for(error))
        await _answer(client, reply)

    async def _lookup(self, request: Request, isolation: Hashable) -> str:
        """The one answer that a SOCKS reply has room for; raises TorkitError if there is none."""
        if request.command is Command.RESOLVE and request.is_address:
            return request.host
        with _deadline(CONNECT_TIMEOUT, "a look-up"):
            answers = await self._resolve(request.host, isolation=isolation)
        if request.command is Command.RESOLVE_PTR:
            kinds = ["hostname"]
        elif request.version == SOCKS4_VERSION:
            kinds = ["ipv4"]
        else:
            kinds = ["ipv4", "ipv6"]
        for kind in kinds:
            for answer in answers:
                if answer.kind == kind:
                    return check_host(answer.value)
        raise StreamClosed("no answer of the kind asked for", reason=EndReason.RESOLVEFAILED)

    def _is_leak(self, request: Request) -> bool:
        """Whether to refuse an address of which nobody has asked us for the name.

        Warns once of the first that is refused, or that is the first destination of all.
        """
        if request.is_address and request.command is not Command.CONNECT:
            return False
        if request.is_address and not self._is_leak_settled:
            logger.warning(
                "a program asked for an address, not a name%s; if it looked the name up by itself, "
                "its resolver knows where it goes (use socks5h:// or SOCKS4a)",
                ", and was refused" if self._names_only else "",
            )
        self._is_leak_settled = self._is_leak_settled or request.is_address or not self._names_only
        return request.is_address and self._names_only


async def _negotiate(client: trio.SocketStream, handshake: Handshake) -> Request | None:
    """Take the client's request; None if it made none that is served, and was told so."""
    with trio.move_on_after(HANDSHAKE_TIMEOUT) as deadline:
        while data := await client.receive_some(READ_SIZE):
            try:
                request = handshake.receive_data(data)
            except TorkitError as error:
                logger.info("a SOCKS client was refused: %s", error)
                break
            if answer := handshake.data_to_send():
                await client.send_all(answer)
            if request is not None:
                return request
    if deadline.cancelled_caught:
        handshake.give_up()
    await _answer(client, handshake.data_to_send())
    return None


class _Carrier:
    """Carries bytes both ways between one client and its stream."""

    def __init__(self, client: trio.SocketStream, stream: SocksStream) -> None:
        self._client = client
        self._stream = stream
        self._scope: trio.CancelScope  # that of `run`
        self._has_ended = False  # the client, its direction
        self._is_gone = False

    async def run(self, early: bytes) -> None:
        """Carry, `early` first to the stream, until the peer ends it.

        Raises what the stream raises when it ended otherwise than in good order, and
        trio.BrokenResourceError when the client is gone. The caller closes both.
        """
        failure: TorkitError | None = None
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            nursery.start_soon(self._upload, early)
            try:
                await self._stream.copy_to(self._client.socket.fileno())
            except TorkitError as error:
                failure = error
            except OSError:
                self._is_gone = True
            nursery.cancel_scope.cancel()
        if self._is_gone:
            raise trio.BrokenResourceError("the client is gone")
        if failure is not None:
            raise failure

    async def _upload(self, early: bytes) -> None:
        data = early
        try:
            data = data or await self._receive()
            while data:
                # If the stream is over, nobody takes this; how it ended, and what came before, `run` tells.
                with suppress(TorkitError, trio.BrokenResourceError):
                    await self._stream.send_all(data)
                data = await self._receive()
        except OSError:
            self._leave()
        self._has_ended = True
        self.look()

    async def _receive(self) -> bytes:
        """As the client's own receive_some, at half the price: most clients send once, and then wait."""
        descriptor = self._client.socket.fileno()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            with suppress(BlockingIOError):
                return os.read(descriptor, READ_SIZE)

    def look(self) -> None:
        """End if the client is gone, which nothing need tell while nothing is read or written.

        A client that only ended its direction answers the kernel's keepalive questions; one that closed
        its socket does not, or answers with a reset.
        """
        sock = self._client.socket
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or (
            self._has_ended and is_closed_by_program(sock)
        ):
            self._leave()

    def _leave(self) -> None:
        self._is_gone = True
        self._scope.cancel()


async def _answer(client: trio.SocketStream, data: bytes) -> None:
    """Send the last bytes that the client gets."""
    with trio.move_on_after(LINGER_TIMEOUT):
        await client.send_all(data)
        await _close_gently(client)


async def _close_gently(client: trio.SocketStream) -> None:
    """Let the client read what was sent: a close with bytes of its own unread would take that back."""
    with trio.move_on_after(LINGER_TIMEOUT):
        await client.send_eof()
        while await client.receive_some(READ_SIZE):
            pass


def _reset_on_close(client: trio.SocketStream, reset: bool) -> None:
    """Whether closing `client` sends a reset, which its program sees as an error, or an end of file."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))


def _set_keepalive(listener: trio.socket.SocketType) -> None:
    """Have the kernel ask whether a silent client is still there: accepted sockets inherit this."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # elsewhere the system's own, long, times hold
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)


@contextmanager
def _deadline(seconds: float, purpose: str) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise TimedOut(f"{purpose} took longer than {seconds:g} s") from None
