"""The server at the far end of the measured streams: `python -m bench.far_end` prints its port and serves.

One line per request, in ASCII: `get N` is answered by N bytes, `put N` is followed by N bytes and answered by
one. Connections stay open for the next request. A process of its own, so that its work is nobody's else.
"""

import trio

HOST = "127.0.0.1"
BLOCK = memoryview(bytes(range(256)) * 4096)  # what is sent, again and again: 1 MiB
BACKLOG = 4096  # connections; all streams of a bench may come at once
LINE_LEN_MAX = 32  # bytes


async def serve(client: trio.SocketStream) -> None:
    line = b""
    try:
        while data := await client.receive_some(LINE_LEN_MAX):
            line += data
            if b"\n" not in line:
                continue
            command, _, rest = line.partition(b"\n")
            verb, length = command.split()
            left = int(length)
            if verb == b"get":
                while left:
                    sent = min(left, len(BLOCK))
                    await client.send_all(BLOCK[:sent])
                    left -= sent
            else:
                left -= len(rest)
                buffer = bytearray(1 << 18)
                while left:
                    left -= await client.socket.recv_into(buffer, min(left, len(buffer))) or left
                await client.send_all(b"\n")
                rest = b""
            line = rest
    except (trio.BrokenResourceError, ConnectionError):
        pass  # whoever asked has gone
    finally:
        await client.aclose()


async def main() -> None:
    [listener] = await trio.open_tcp_listeners(0, host=HOST, backlog=BACKLOG)
    print(listener.socket.getsockname()[1], flush=True)
    await trio.serve_listeners(serve, [listener])


if __name__ == "__main__":
    trio.run(main)
