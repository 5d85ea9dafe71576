"""tor processes: how one is started, whether it listens, why it ended, which run."""

import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import trio

from torkit.errors import NotPossible
from torkit.testnet.files import STOP_DEADLINE, wait_until
from torkit.testnet.model import Relay


class PortTaken(NotPossible):
    """Somebody took a port between our look and tor's bind."""


def find_program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NotPossible(
            f"the test network needs the program `{name}`", hint="on Debian: apt-get install tor"
        )
    return found


def tor_command(directory: Path) -> list[str]:
    # An empty defaults file keeps the machine's own tor configuration out.
    return [find_program("tor"), "--defaults-torrc", "/dev/null", "-f", str(directory / "torrc")]


def why_tor_ended(directory: Path) -> Exception:
    """Returns the exception for a tor that ended on its own."""
    text = b""
    for name in "output", "log":
        with suppress(FileNotFoundError):
            text += (directory / name).read_bytes()
    if b"Address already in use" in text:
        return PortTaken(f"{directory.name}: its port was taken")
    return NotPossible(f"tor ({directory.name}) ended: {last_complaint(text)}")


def last_complaint(output: bytes) -> str:
    """Returns the last warning or error among tor's lines, without its date."""
    complaints = re.findall(r"\[(?:warn|err)\] (.*)", output.decode(errors="replace"))
    useful = [line for line in complaints if not line.startswith("Reading config failed")]
    return useful[-1] if useful else "it said nothing"


async def listens(relay: Relay) -> bool:
    for port in filter(None, (relay.or_port, relay.dir_port)):
        try:
            stream = await trio.open_tcp_stream(relay.address, port)
        except OSError:
            return False
        await stream.aclose()
    return True


@contextmanager
def reserved_ports(addresses: Sequence[str]) -> Iterator[list[int]]:
    """Distinct free TCP ports, one for each address, free to bind once the block ends."""
    with ExitStack() as stack:
        ports = []
        for address in addresses:
            holder = stack.enter_context(socket.socket())
            holder.bind((address, 0))
            ports.append(holder.getsockname()[1])
        yield ports


def tor_processes(directory: Path) -> list[int]:
    """Process ids of every tor that runs on a torrc of the network in `directory`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            arguments = os.fsdecode((path / "cmdline").read_bytes()).split("\0")
            is_tor = Path(arguments[0]).name == "tor"
            if is_tor and any(argument.startswith(f"{directory}/tor/") for argument in arguments):
                found.append(int(path.name))
    return found


def end_orphans(directory: Path) -> None:
    """End the relays of an owner that was killed, rather than wait until they notice."""
    for pid in tor_processes(directory):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not tor_processes(directory), STOP_DEADLINE, "tor to end")
