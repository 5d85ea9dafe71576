"""A proxy that runs already, in the place of a client of our own: streams and look-ups through it.

Nothing else is connected to, and no name is looked up here. Paths, guards and the directory are the proxy's
affair, and are not seen.
"""

import os
from collections.abc import Hashable
from typing import NamedTuple, Protocol

import trio

from torkit.errors import EndReason, NoProxy, StreamClosed, TimedOut, TorkitError
from torkit.net.descriptors import DELIVERY_TIMEOUT, LOOK_INTERVAL, READ_SIZE, undelivered
from torkit.net.link.dial import dial_proxy
from torkit.net.progress import Phase, Progress
from torkit.proto.destination import check_destination, check_host
from torkit.proto.request import Command, Request
from torkit.proto.socks_client import Conversation, Credentials

# Seconds until a silent proxy is given up. Longer than a proxy's own limit for a request, 150 s of torkit and
# 120 s of C tor: the proxy knows the reason.
ANSWER_TIMEOUT = 180.0

# A stream that has sent everything is closed after so many seconds without a byte from the proxy, or in all.
PAUSE = 0.3
MAX_PAUSE = 5.0


class ViaAnswer(NamedTuple):
    """One answer to a look-up. A proxy gives one answer only, without its time to live."""

    kind: str  # ipv4, ipv6 or hostname
    value: str


class ViaStream(trio.abc.HalfCloseableStream):
    """One stream behind a proxy; `early` came with the proxy's answer. Its `path` and `paths` are unknown.

    `receive_some` returns b"" where the proxy ended the stream in good order. It raises StreamClosed after a
    reset, by which torkit's proxy tells that a stream was cut short. (C tor's proxy makes no difference.)
    """

    path = ()
    paths = ()

    def __init__(self, near: trio.SocketStream, early: bytes) -> None:
        self._near = near
        self._early = early

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._early:
            await trio.lowlevel.checkpoint()
            count = len(self._early) if max_bytes is None else max_bytes
            data, self._early = self._early[:count], self._early[count:]
            return data
        try:
            return await self._near.receive_some(max_bytes or READ_SIZE)
        except trio.BrokenResourceError as error:
            raise StreamClosed("the proxy has cut the stream short", reason=EndReason.MISC) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._near.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._near.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._near.send_eof()

    async def settle(self) -> None:
        """Close when the proxy has all that was sent; drop what comes. Raises TimedOut, StreamClosed.

        Linux would answer bytes that come after the close by a reset, and the proxy would then drop what it
        has not passed on. So this waits for a PAUSE, but not for longer than MAX_PAUSE.
        """
        failure: TorkitError | None = None
        now = began = taken_at = heard_at = trio.current_time()
        left = -1

        async def drop() -> None:
            nonlocal failure, heard_at
            try:
                while await self.receive_some():
                    heard_at = trio.current_time()
            except TorkitError as error:
                failure = error
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drop)
            while left or (now - heard_at < PAUSE and now - began < MAX_PAUSE):
                now, left_before, left = trio.current_time(), left, undelivered(self._near.socket.fileno())
                if left != left_before:
                    taken_at = now
                elif left and now - taken_at >= DELIVERY_TIMEOUT:
                    failure = TimedOut(f"the proxy has taken nothing for {DELIVERY_TIMEOUT:g} s")
                    break
                await trio.sleep(LOOK_INTERVAL)
            nursery.cancel_scope.cancel()
        await self.aclose()
        if failure is not None:
            raise failure

    def close(self) -> None:
        self._near.socket.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()


class Network(Protocol):
    """A torkit.config.Network, of which only this is used: `testing` allows internal destinations."""

    @property
    def testing(self) -> bool: ...


class Via:
    """Has the methods of Tor that commands use. They raise NoProxy where the proxy cannot be used.

    `place` is an IP address and a port, or the path of a Unix socket. Requests share circuits with all
    requests of the same `credentials`. The default, random ones, keeps them apart from all others.
    """

    progress = Progress(Phase.DONE, 100)

    def __init__(
        self,
        place: tuple[str, int] | str,
        credentials: Credentials | None = None,
        *,
        network: Network,
    ) -> None:
        self.network = network
        self._place = place
        self._credentials = credentials or Credentials(b"torkit", os.urandom(16).hex().encode())

    async def wait_ready(self) -> None:
        """Wait until the proxy serves. (torkit's proxy lets clients wait until it has a directory.)"""
        near, _ = await self._converse(None)
        await near.aclose()

    def request(self, host: str, port: int, *, isolation: Hashable = None) -> "ViaRequest":
        """Returns a request for a stream, not begun yet. Raises UsageError for what no exit can reach."""
        return ViaRequest(self, self._checked(Command.CONNECT, host, port), isolation)

    async def connect(
        self, host: str, port: int, *, isolation: Hashable = None, path: None = None
    ) -> ViaStream:
        """Returns a stream to `host`, a name or address that the exit resolves.

        Raises as Tor.connect does.
        """
        return await self.request(host, port, isolation=isolation).connect()

    async def resolve(self, host: str, *, isolation: Hashable = None, path: None = None) -> list[ViaAnswer]:
        """Returns the address of a name, or for an address its name, as an exit sees it.

        Raises as Tor.resolve.
        """
        request = self._checked(Command.RESOLVE, host, 0)
        if request.is_address:
            request = request._replace(command=Command.RESOLVE_PTR)
        near, conversation = await self._converse(request, isolation)
        await near.aclose()
        value = check_host(conversation.answer)
        answer = request._replace(host=value)
        kind = "hostname" if not answer.is_address else "ipv6" if ":" in value else "ipv4"
        return [ViaAnswer(kind, value)]

    async def settle(self, stream: ViaStream) -> None:
        """End `stream` when the proxy has all that was sent on it. Raises TimedOut, StreamClosed."""
        await stream.settle()

    def _checked(self, command: Command, host: str, port: int) -> Request:
        is_connection = command is Command.CONNECT
        return Request(
            command,
            check_destination(host, allow_internal=self.network.testing, allow_onion=is_connection),
            port,
        )

    async def _converse(
        self, request: Request | None, isolation: Hashable = None
    ) -> tuple[trio.SocketStream, Conversation]:
        """Have the proxy grant `request`. Returns the connection, which is the caller's."""
        conversation = Conversation(request, self._credentials.within(isolation))
        try:
            with trio.fail_after(ANSWER_TIMEOUT):
                near = await dial_proxy(self._place)
                try:
                    is_granted = False
                    while not is_granted:
                        await near.send_all(conversation.data_to_send())
                        data = await near.receive_some(READ_SIZE)
                        if not data:
                            raise NoProxy("the proxy has ended the connection without an answer")
                        is_granted = conversation.receive_data(data)
                except BaseException:
                    near.socket.close()
                    raise
        except trio.TooSlowError:
            raise TimedOut(f"the proxy has not answered within {ANSWER_TIMEOUT:g} s") from None
        except trio.BrokenResourceError as error:
            raise NoProxy("the proxy has cut the connection before its answer") from error
        return near, conversation


class ViaRequest(NamedTuple):
    """One stream to be asked for."""

    via: Via
    request: Request
    isolation: Hashable

    def begin(self) -> None:
        """Returns None: no stream can be begun without waiting. `connect` asks the proxy."""

    async def connect(self) -> ViaStream:
        near, conversation = await self.via._converse(self.request, self.isolation)
        return ViaStream(near, conversation.trailing_data)
