"""One client of the proxy, from its first byte to its last."""

import socket
from collections.abc import Awaitable, Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from torkit._fast.sources import LocalEvent
from torkit.errors import InternalError, TimedOut, TorkitError, UsageError
from torkit.net.circuit.stream import Stream
from torkit.net.descriptors import READ_SIZE
from torkit.net.proxy.carrier import Carrier
from torkit.net.proxy.deadlines import deadline
from torkit.net.proxy.doors import FrontDoor
from torkit.net.proxy.isolation import Origin
from torkit.net.proxy.shared import CONNECT_TIMEOUT, Proxy
from torkit.net.proxy.upstream import Requested
from torkit.proto.first_byte import AnyProtocol
from torkit.proto.request import Command, Request

if TYPE_CHECKING:
    from torkit.net.via import ViaStream


class Client:
    """Owns an accepted socket, and speaks with it through its front door."""

    def __init__(
        self, proxy: Proxy, sock: socket.socket, origin: Origin, door: FrontDoor, *, is_unix: bool
    ) -> None:
        self._proxy = proxy
        self._socket = sock
        self._origin = origin
        self._door = door
        # A Unix socket tells of its close at once, though there may be more to read.
        self._source = proxy.pump.add_local(sock.fileno(), self, is_pipe=is_unix)
        self._isolation: Hashable = None
        self._has_asked = False  # its request is known
        self._requested: Requested | None = None  # until its stream is connected
        self._stream: Stream | None = None
        self._far: ViaStream | None = None  # in the place of a stream, behind another proxy
        self._answer = b""  # to its handshake, not sent yet
        self._has_more = False  # the client sends before it is answered; the next news of it is that it broke
        self._sent_early = 0  # bytes that came with its request, sent before the exit has answered (as C tor)
        self._carrier: Carrier | None = None
        self._scope: trio.CancelScope | None = None  # of a task that works for this client

    def __repr__(self) -> str:
        """Returns the state of the client, without its destination: a log may get it."""
        if self._carrier is not None:
            state = f"carries {self._stream!r}"
        elif self._far is not None:
            state = "is carried to another proxy"
        elif self._requested is not None:
            state = "waits for its stream"
        else:
            state = "has said nothing yet" if self._door.request is None else "is answered"
        return f"<Client of {type(self._door).__name__}, {state}>"

    def start(self) -> None:
        self._proxy.limits.add(self)
        if self._door.request is not None:
            self._serve(self._door.request)

    # --- the handshake ----------------------------------------------------------------------------

    def on_local(self, event: LocalEvent) -> None:
        """Read what the client sends. Bytes behind its request wait until the exit has answered."""
        if self._has_asked:
            if self._has_more:
                self.close()
                return
            self._has_more = True
            self._proxy.pump.watch_reading(self._source, False)
            return
        try:
            data = self._socket.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        try:
            request = self._door.receive_data(data) if data else None
            if isinstance(self._door, AnyProtocol) and self._door.chosen is not None:
                self._door = self._door.chosen
        except TorkitError as error:
            self._proxy.journal.note_refusal("a client", error)
            self._answer = self._door.data_to_send()
            self._part(b"")
            return
        self._answer = self._door.data_to_send()
        if not data:
            self._part(b"")
            return
        if request is not None:
            self._serve(request)
        if self._answer and not self._send(b""):
            self.close()

    def give_up_handshake(self) -> None:
        """Refuse a client that has taken too long to say what it wants."""
        self._proxy.journal.note_refusal("a client", TimedOut("it took too long to say what it wants"))
        self._door.give_up()
        self._part(self._door.data_to_send())

    def _serve(self, request: Request) -> None:
        self._has_asked = True
        self._proxy.limits.note_request(self)
        try:
            self._proxy.leaks.check(request)
            if request.command is Command.RESOLVE and request.is_address:
                self._tell(request.host)
                return
            self._isolation = self._origin.key(request)
            if not request.is_connection:
                self._work(self._look_up, request)
                return
            ask = self._proxy.upstream.request
            self._requested = ask(request.host, request.port, isolation=self._isolation)
            self._proxy.leaks.note(request)
            if request.command is Command.FORWARD:
                self._has_more = True
                self._proxy.pump.watch_reading(self._source, False)
                self._work(self._forward, self._requested, request)
                return
            stream = self._requested.begin()
        except TorkitError as error:
            self._refuse(error)
            return
        if stream is None:
            self._work(self._connect, self._requested)
            return
        self._stream = stream
        self._sent_early = stream.put(self._door.trailing_data)
        stream.watcher = self
        self._proxy.attempts.add(self)

    # --- connecting -------------------------------------------------------------------------------

    def on_change(self) -> None:
        """Note that the first stream has been answered, or has failed."""
        assert self._stream is not None
        if self._stream.is_connected:
            self._proxy.attempts.discard(self)
            self._carry(self._stream)
        else:
            self.give_up_attempt()

    def on_xon(self) -> None:
        """Do nothing: no byte is sent yet."""

    def give_up_attempt(self) -> None:
        """Have a task make further attempts: the first has failed, or has taken too long."""
        assert self._stream is not None
        assert self._requested is not None
        self._proxy.attempts.discard(self)
        self._stream.watcher = None
        self._stream = None
        self._sent_early = 0
        self._work(self._connect, self._requested)

    def _work(self, task: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Have a task work for this client until it leaves; it may leave before the task begins."""
        self._scope = trio.CancelScope()
        self._proxy.nursery.start_soon(task, *arguments)

    async def _connect(self, requested: Requested) -> None:
        with self._guarded():
            try:
                with deadline(CONNECT_TIMEOUT, "a connection"):
                    stream = await requested.connect()
            except TorkitError as error:
                self._refuse(error)
                return
            if isinstance(stream, Stream):
                self._carry(stream)
                return
            self._far = stream
            await self._relay(stream)

    async def _look_up(self, request: Request) -> None:
        with self._guarded():
            try:
                host = await self._proxy.lookup(request, self._isolation)
            except TorkitError as error:
                self._refuse(error)
            else:
                self._tell(host)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Run `work` until the client leaves. A fault of ours must not end other clients."""
        assert self._scope is not None
        with self._scope:
            try:
                yield
            except Exception as error:
                self._refuse(InternalError.ending("a connection", error))

    async def _forward(self, requested: Requested, request: Request) -> None:
        from torkit.net.proxy.forward import forward

        door = request.forwarded()
        with self._guarded():
            try:
                with deadline(CONNECT_TIMEOUT, "a connection"):
                    stream = await requested.connect()
                if isinstance(stream, Stream):
                    self._stream = stream
                    self._proxy.journal.note_connected(stream)
                else:
                    self._far = stream
                await forward(door, self._socket, stream)
            except TorkitError as error:
                if door.has_answered:
                    self.close()
                    return
                self._refuse(error)
                return
            except OSError:
                self.close()
                return
            self._part(b"")

    async def _relay(self, far: "ViaStream") -> None:
        """Carry between the client and another proxy."""
        from torkit.net.proxy.relay import relay

        if not self._send(self._door.encode_grant()):
            self.close()
            return
        self._has_more = True
        self._proxy.pump.watch_reading(self._source, False)
        is_whole = True
        try:
            await relay(self._socket, far, self._door.trailing_data, self.look)
        except TorkitError as error:
            self._proxy.journal.note_cut(error)
            is_whole = False
        except OSError:
            self.close()
            return
        self._close_stream()
        if not self._source.is_watched:
            self.close()
            return
        self._bid_farewell(None, is_whole=is_whole)

    # --- carrying ---------------------------------------------------------------------------------

    def _carry(self, stream: Stream) -> None:
        self._stream = stream
        self._requested = None
        # In a write of its own: ncat before 7.94 loses what arrives together with the reply.
        if not self._send(self._door.encode_grant()):
            self.close()
            return
        self._proxy.journal.note_connected(stream)
        self._carrier = Carrier(self._proxy, self._socket, self._source, stream, self._end)
        self._carrier.start(self._door.trailing_data[self._sent_early :])

    def _end(self, failure: Exception | None) -> None:
        """Go on to the farewell: the carrier is done, or has failed by `failure`."""
        assert self._stream is not None
        self._proxy.journal.note_over(self._stream, failure)
        if isinstance(failure, OSError) or not self._source.is_watched:
            self.close()
            return
        if not self._stream.has_ended:  # by a fault of ours
            self._close_stream()
        self._bid_farewell(self._stream, is_whole=failure is None)

    def look(self) -> None:
        """Close if the client has gone. An idle socket reports nothing, so we ask."""
        if self._carrier is not None:
            self._carrier.look()
        elif self._is_served and self._proxy.kernel.is_closed_by_program(self._socket):
            self.close()

    @property
    def _is_served(self) -> bool:
        return self._stream is not None or self._far is not None

    # --- the end ----------------------------------------------------------------------------------

    def _tell(self, host: str) -> None:
        """Answer a look-up."""
        try:
            self._part(self._door.encode_answer(host))
        except UsageError as error:  # SOCKS4 has no room for such an answer
            self._refuse(error)

    def _refuse(self, error: TorkitError) -> None:
        """Tell the client of a failure; by a reset where its protocol has no words for it."""
        assert self._door.request is not None
        what = "a connection" if self._door.request.is_connection else "a look-up"
        self._proxy.journal.note_refusal(what, error)
        refusal = self._door.encode_refusal(error)
        if not refusal:
            self.close()
            return
        self._part(refusal)

    def _send(self, data: bytes) -> bool:
        """Send a few bytes without waiting, behind what is still unsent. Returns whether all were accepted.

        Bytes that are ready together go in one segment: programs that send their whole handshake at once also
        read the whole answer at once. (As C tor.)
        """
        data, self._answer = self._answer + data, b""
        try:
            return self._socket.send(data) == len(data)
        except OSError:
            return False

    def _part(self, last_words: bytes) -> None:
        """Send the last bytes, and let the client read them."""
        self._close_stream()
        if not self._source.is_watched or ((self._answer or last_words) and not self._send(last_words)):
            self.close()
            return
        self._bid_farewell(None, is_whole=True)

    def _bid_farewell(self, stream: Stream | None, *, is_whole: bool) -> None:
        self._proxy.limits.note_request(self)
        self._proxy.farewells.begin(self._socket, self._source, stream, is_whole=is_whole, close=self.close)

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.watcher = None
            self._stream.close()
            self._stream = self._carrier = None
        if self._far is not None:
            self._far.close()
            self._far = None

    def on_fault(self, error: InternalError) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything, once. The client sees a reset, unless it was told all."""
        self._proxy.limits.remove(self)
        self._proxy.attempts.discard(self)
        self._proxy.farewells.discard(self._source)
        self._proxy.pump.remove(self._source)
        if self._scope is not None:
            self._scope.cancel()
        self._close_stream()
        self._socket.close()
