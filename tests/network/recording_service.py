"""What relays see of an onion service: those of recording.py's wide network, which play one client of it.

Every relay is a directory of the service's and stands as whatever it is asked for.
"""

import socket
from pathlib import Path

import trio
from network.recording import Client, Recording, c_tor, running, torkit, wait_until
from onion_network import OnionNetwork

from torkit._fast.cells import RelayCommand
from torkit.hs.address import encode_address
from torkit.hs.calendar import RUN_INTERVALS, Calendar
from torkit.hs.descriptor import Descriptor
from torkit.net.hosting.keys import make_key
from torkit.testing.directory.authority import HOUR
from torkit.testing.onion import FarClient
from torkit.testing.relay import FakeCircuit

KEY, TARGET = "service", "target"  # in the directory of a service: its key, and a server's socket
PORT, NO_PORT = 80, 81
POINT_COUNT = 3  # of either program's descriptor


class Hosted:
    """What was recorded of one service."""

    def __init__(self, seen: Recording, net: OnionNetwork, descriptor: Descriptor, far: FarClient) -> None:
        self.seen = seen
        self.net = net
        self.descriptor = descriptor
        self.far = far  # a client that has joined

    @property
    def rendezvous(self) -> FakeCircuit:
        """The service's circuit that has joined."""
        return self.far.circuit

    @property
    def answers(self) -> list[tuple[int, bytes]]:
        """What the client was told of its streams."""
        cells = [cell for _, cell in self.far.circuit.control_cells]
        told = (RelayCommand.CONNECTED, RelayCommand.END)
        return [(cell.command, cell.body) for cell in cells if cell.command in told]


def torkit_service(directory: Path, dir_authorities: list[str], fallback_dir: str, port: int) -> list[str]:
    line = torkit(directory, dir_authorities, fallback_dir, port)
    options = line[: line.index("socks")]
    target = f"{PORT}:unix:{directory / TARGET}"
    return [*options, "onion", "serve", "--key", str(directory / KEY), target]


def c_tor_service(directory: Path, dir_authorities: list[str], fallback_dir: str, port: int) -> list[str]:
    line = c_tor(directory, dir_authorities, fallback_dir, port)
    with (directory / "torrc").open("a") as torrc:
        torrc.write(
            f"HiddenServiceDir {directory / KEY}\nHiddenServicePort {PORT} unix:{directory / TARGET}\n"
        )
    return line


async def record_service(client: Client, directory: Path, now: int) -> Hosted:
    """Run a service until a client has had a stream, and was refused one. Raises trio.TooSlowError."""
    valid_after = now - HOUR // 2
    address = encode_address(make_key(directory / KEY).public)
    with trio.socket.socket(socket.AF_UNIX) as listening:
        await listening.bind(str(directory / TARGET))
        listening.listen()
        async with running(client, directory, valid_after, 3 * HOUR, is_wide=True) as (seen, _, _):
            net = OnionNetwork(seen.relays)
            # As both services take it on a testing network, whose consensus is fresh for an hour.
            period = Calendar(valid_after, HOUR, RUN_INTERVALS * HOUR // 60).period
            net.period = lambda: period
            await wait_until(lambda: _is_published(net, address))
            descriptor = net.descriptor(address)
            hosted = Hosted(seen, net, descriptor, far := await net.meet(descriptor))
            far.begin(PORT, b"request")
            server, _ = await listening.accept()
            with server:
                assert await server.recv(100) == b"request"
                far.begin(NO_PORT)
                await wait_until(lambda: len(hosted.answers) == 2)
            return hosted


def _is_published(net: OnionNetwork, address: str) -> bool:
    try:
        return len(net.descriptor(address).points) == POINT_COUNT
    except ValueError:  # there is none
        return False
