"""The messages between parent and child, and the sockets that change hands."""

import json
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

# The steps of both sides.
UNSHARED = b"unshared"
MAPPED = b"mapped"
RUN = b"run"

# Exit statuses of a command that cannot be run, as env(1) has them.
NOT_EXECUTABLE = 126
NOT_FOUND = 127

PROXY_PORT = 9150  # where programs inside find the proxy; nobody else can have it

MAX_MESSAGE = 4096  # bytes
MAX_SOCKETS = 8  # two families of addresses, each with two listeners, and two more


class Sockets(NamedTuple):
    """The sockets that lead out of the namespaces, or tell of them."""

    proxy: socket.socket  # listens for clients of a proxy
    kernel: socket.socket  # sock_diag(7) of the namespace
    redirected: list[
        socket.socket
    ]  # listen for connections to elsewhere: IPv4's, then IPv6's if there is any
    dns: list[socket.socket]  # UDP; as above


def send_sockets(sockets: Sockets, connection: socket.socket) -> None:
    """The sender keeps none."""
    every = [sockets.proxy, sockets.kernel, *sockets.redirected, *sockets.dns]
    message = json.dumps({"families": len(sockets.dns)}).encode()
    socket.send_fds(connection, [message], [sock.fileno() for sock in every])
    for sock in every:
        sock.close()


def receive_sockets(connection: socket.socket) -> Sockets | Mapping[str, Any]:
    """Returns the sockets, or what the child says instead; nothing where it has ended."""
    message, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE, MAX_SOCKETS)
    answer: dict[str, Any] = json.loads(message or b"{}")
    if "families" not in answer:
        return answer
    proxy, kernel, *others = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    return Sockets(proxy, kernel, others[: answer["families"]], others[answer["families"] :])


def send(connection: socket.socket, **message: Any) -> None:
    connection.send(json.dumps(message).encode())
