"""Relays that flood, in a process of their own: a port for each flood. They serve until stdin ends.

Prints a JSON object: who the relays say they are, and the port of each flood by its name.
"""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from served import fresh_relays

from torkit._fast.cells import Command
from torkit.testing.relay.raw_tls import TLS_1_2, RawPeer, raw_server

SECONDS = 2.0  # for which what has no bound is sent
CELL_LEN = 514
CIRC_ID = 0x80000001


def cells_of(command: int, count: int, circ_id: int = 0) -> bytes:
    return count * (circ_id.to_bytes(4, "big") + bytes([command]) + bytes(CELL_LEN - 5))


def send_for_long(peer: RawPeer, cells: bytes) -> None:
    ends_at = time.monotonic() + SECONDS
    while time.monotonic() < ends_at:
        peer.sock.sendall(peer.records(cells))


# What is sent once the link is open; then in which version of TLS.
FLOODS: dict[str, tuple[Callable[[RawPeer], None], int]] = {
    "KeyUpdates, answers asked": (lambda peer: peer.send(peer.key_updates(100_000, is_asked=True)), 0),
    "KeyUpdates": (lambda peer: peer.send(peer.key_updates(100_000, is_asked=False)), 0),
    "session tickets": (lambda peer: peer.send(peer.tickets(5000)), 0),
    "HelloRequests of TLS 1.2": (lambda peer: peer.send(peer.hello_requests(50_000)), TLS_1_2),
    "records of one byte": (lambda peer: peer.send(peer.records(bytes(200_000), 1)), 0),
    "PADDING cells": (lambda peer: peer.send(peer.records(cells_of(Command.PADDING, 20_000))), 0),
    "unknown cells": (lambda peer: peer.send(peer.records(cells_of(99, 20_000))), 0),
    "cells of no circuit, without end": (
        lambda peer: send_for_long(peer, cells_of(Command.RELAY, 4000, CIRC_ID)),
        0,
    ),
}


def play(flood: Callable[[RawPeer], None], peer: RawPeer) -> None:
    peer.shake_hands()
    peer.open_link()
    try:
        flood(peer)
    except OSError:
        return  # the client has closed
    peer.wait_closed()


def main() -> None:
    [relay] = fresh_relays(1)
    with ExitStack() as stack:
        ports = {
            name: stack.enter_context(raw_server(relay, partial(play, flood), version))[1]
            for name, (flood, version) in FLOODS.items()
        }
        about = {"rsa": relay.rsa_identity.hex(), "ed25519": relay.ed_identity.hex(), "ports": ports}
        print(json.dumps(about), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
