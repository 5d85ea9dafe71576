"""A request in absolute form, carried to its server and answered: HTTP without CONNECT.

Each has a stream of its own, and its client's connection ends with the answer. Both sides are read and
written by h11, so that an answer cut short never looks whole, and no byte behind a request goes on.
"""

import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from torkit.errors import EndReason, PeerError, StreamClosed, TorkitError
from torkit.net.proxy.relay import receive, send
from torkit.proto.http import MAX_HEAD_LEN, NO_REQUEST, Http, forwarded

if TYPE_CHECKING:
    import h11


async def forward(door: Http, sock: socket.socket, stream: trio.abc.Stream) -> None:
    """Carry one request and its answer. Returns when the answer is whole.

    Raises PeerError where the client breaks HTTP, OSError where it is gone, and StreamClosed where the server
    or the way there fails. `door.has_answered` tells whether the client may still be told.
    """
    import h11

    server = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_LEN)
    head = server.send(door.head)
    assert head is not None
    await stream.send_all(head)
    if door.trailing_data:  # h11 takes b"" for the client's end
        door.connection.receive_data(door.trailing_data)
    failures: list[Exception] = []

    async def carry(way: Callable[..., Awaitable[None]]) -> None:
        try:
            await way(door.connection, sock, server, stream)
        except (TorkitError, OSError) as error:
            failures.append(error)
            nursery.cancel_scope.cancel()
        if way is _download:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry, _upload)
        nursery.start_soon(carry, _download)
    if failures:
        raise failures[0]


async def _upload(
    client: "h11.Connection", sock: socket.socket, server: "h11.Connection", stream: trio.abc.Stream
) -> None:
    """Carry the body of the request. A server need not read it to the end before it answers."""
    import h11

    while True:
        try:
            event = client.next_event()
        except h11.RemoteProtocolError:  # whose text may quote the request
            raise PeerError(NO_REQUEST) from None
        if event is h11.NEED_DATA:
            client.receive_data(await receive(sock))
            continue
        if not isinstance(event, h11.Data | h11.EndOfMessage):
            raise PeerError("a client ended within its request")
        if data := server.send(event):
            try:
                await stream.send_all(data)
            except (StreamClosed, trio.BrokenResourceError):
                return  # the other direction knows why
        if isinstance(event, h11.EndOfMessage):
            return


async def _download(
    client: "h11.Connection", sock: socket.socket, server: "h11.Connection", stream: trio.abc.Stream
) -> None:
    """Carry the answer."""
    import h11

    while True:
        try:
            event = server.next_event()
        except h11.RemoteProtocolError:
            raise StreamClosed("the server's answer is no whole HTTP", reason=EndReason.MISC) from None
        match event:
            case h11.NEED_DATA:
                server.receive_data(bytes(await stream.receive_some()))
                continue
            case h11.InformationalResponse():
                if client.their_http_version == b"1.0":  # HTTP/1.0 has no such thing
                    continue
                answer: h11.Event = h11.InformationalResponse(
                    status_code=event.status_code, headers=event.headers.raw_items(), reason=event.reason
                )
            case h11.Response():
                headers = forwarded(event.headers.raw_items())
                answer = h11.Response(status_code=event.status_code, headers=headers, reason=event.reason)
            case h11.Data():
                answer = h11.Data(data=event.data)  # in chunks of our own
            case h11.EndOfMessage():
                answer = event
            case _:
                raise StreamClosed("the server ended without an answer", reason=EndReason.MISC)
        if data := client.send(answer):
            await send(sock, data)
        if answer is event:
            return
