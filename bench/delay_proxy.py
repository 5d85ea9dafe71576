"""A TCP proxy that holds every byte for a while.

    python -m bench.delay_proxy HOST PORT TO_HOST TO_PORT SECONDS

Prints one line once it listens. It reads at once, as a long link would take bytes, and writes each piece
SECONDS after it was read, in both directions; it limits no rate. A process of its own.
"""

import sys
from functools import partial

import trio

READ_SIZE = 1 << 18  # bytes
PIECES_MAX = 16_384  # under way in one direction: more than any window of Tor lets pass within the delay


async def carry(source: trio.SocketStream, sink: trio.SocketStream, delay: float) -> None:
    """One direction, until its end."""
    send, receive = trio.open_memory_channel[tuple[float, bytes]](PIECES_MAX)

    async def read() -> None:
        async with send:
            while data := await source.receive_some(READ_SIZE):
                await send.send((trio.current_time() + delay, data))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async for due, data in receive:
            await trio.sleep_until(due)
            await sink.send_all(data)
    await sink.send_eof()


async def serve(client: trio.SocketStream, *, to: tuple[str, int], delay: float) -> None:
    try:
        async with client, await trio.open_tcp_stream(*to) as server, trio.open_nursery() as nursery:
            nursery.start_soon(carry, client, server, delay)
            nursery.start_soon(carry, server, client, delay)
    except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # an end that is gone ends the connection


async def main(*arguments: str) -> None:
    host, port, to_host, to_port, seconds = arguments
    listeners = await trio.open_tcp_listeners(int(port), host=host)
    print("listening", flush=True)
    await trio.serve_listeners(partial(serve, to=(to_host, int(to_port)), delay=float(seconds)), listeners)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
