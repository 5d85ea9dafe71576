"""A program under `torkit run` that reaches the far end (far_end.py) by each of its doors.

`python -m bench.inside PORT`, with lines on stdin: DOOR get|put BYTES. Each is answered by a line when a
stream has been opened, carried so many bytes and closed.
"""

import socket
import sys

from bench.load import BLOCK, NAME
from torkit.namespaces import PROXY_PORT

CONNECTED = b"\r\n\r\n"  # how the answer to CONNECT ends


def connect(door: str, port: int) -> socket.socket:
    if door == "transparent":
        return socket.create_connection((NAME.decode(), port))
    sock = socket.create_connection(("127.0.0.1", PROXY_PORT))
    if door == "SOCKS":
        asked = b"\x05\x01\x00" + b"\x05\x01\x00\x03" + bytes([len(NAME)]) + NAME + port.to_bytes(2)
        sock.sendall(asked)
        answer = sock.recv(12, socket.MSG_WAITALL)
        assert answer[:4] == b"\x05\x00\x05\x00", answer
        return sock
    sock.sendall(b"CONNECT %b:%d HTTP/1.1\r\nHost: %b:%d\r\n\r\n" % (NAME, port, NAME, port))
    answer = b""
    while not answer.endswith(CONNECTED):
        answer += sock.recv(1)
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    return sock


def carry(sock: socket.socket, verb: str, length: int) -> None:
    sock.sendall(f"{verb} {length}\n".encode())
    if verb == "put":
        left = length
        while left:
            left -= sock.send(BLOCK[: min(left, len(BLOCK))])
        length = 1
    sink = bytearray(1 << 18)
    while length:
        count = sock.recv_into(sink, min(length, len(sink)))
        assert count, "the stream ended early"
        length -= count


def main() -> None:
    for line in sys.stdin:
        door, verb, length = line.split()
        with connect(door, int(sys.argv[1])) as sock:
            carry(sock, verb, int(length))
        print("done", flush=True)


if __name__ == "__main__":
    main()
