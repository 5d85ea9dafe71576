"""One network: its owner starts, kills and ends its processes; others attach to look."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Self

import trio

from torkit.errors import NotPossible, StorageError, TimedOut, UsageError
from torkit.files import make_private_directory
from torkit.testnet.files import POLL_INTERVAL, log_has, owner, write_lines
from torkit.testnet.keys import make_keys
from torkit.testnet.model import Options, Relay, authorities_of, check_options, planned_relays
from torkit.testnet.processes import (
    PortTaken,
    end_orphans,
    find_program,
    listens,
    reserved_ports,
    tor_command,
    why_tor_ended,
)
from torkit.testnet.ready import (
    Incomplete,
    consensus_is_complete,
    directory_is_mirrored,
    spread_descriptors,
)
from torkit.testnet.services import serve_names
from torkit.testnet.torrc import common_torrc, dir_authority, relay_torrc

# Implementation limits.
ATTEMPTS = 3  # somebody may take a port between our look and tor's bind, or an authority vote too late
START_DEADLINE = 60.0  # seconds for each step of the start; each takes 1 to 5 on two processors
CLIENT_DEADLINE = 60.0  # seconds for a C tor client to bootstrap, or for one page through it
MEASURED_BANDWIDTH = 10_000  # kilobytes per second, the same for every relay

# tor's smallest initial voting interval, seconds; it then votes 2 s before the interval ends. The lead leaves
# the authorities 1 s to reload their configuration before that vote.
FIRST_INTERVAL = 5
FIRST_VOTE_LEAD = 4


@asynccontextmanager
async def run_testnet(
    directory: Path | None = None, options: Options | None = None
) -> AsyncIterator["Testnet"]:
    """Own a network for the length of the block; every process is gone when it ends.

    Without `directory` a temporary one is used and removed; otherwise its files stay, for reading the logs.
    Raises NotPossible (no `tor`, another network is there, tor ended), TimedOut, StorageError, UsageError.
    """
    options = options or Options()
    check_options(options)
    for name in "tor", "tor-gencert":
        find_program(name)
    with owned(directory) as root, serve_names() as dns_port:
        net = Testnet(root, options, dns_port=dns_port)
        try:
            await net._start()
            yield net
        finally:
            await net.close()
            with suppress(OSError):
                net.network_file.unlink()  # nobody should take a stopped network for a running one


class Testnet:
    """A running network: owned (`run_testnet` made it) or attached to by another process.

    Not thread-safe; call it from the trio run that made it. Stops only processes that it started itself.
    """

    __test__ = False  # for pytest: not a test class

    def __init__(self, directory: Path, options: Options, *, dns_port: int) -> None:
        self.directory = directory
        self.options = options
        self.dns_port = dns_port
        self.network_file = directory / "network.toml"
        self.relays = planned_relays(directory / "tor", options)
        self._processes: dict[str, trio.Process] = {}

    @classmethod
    def attach(cls, directory: Path) -> Self:
        """Look at the network that another process owns. Raises NotPossible if none is ready there."""
        directory = directory.resolve()
        try:
            state = json.loads((directory / "state.json").read_text())
        except FileNotFoundError:
            state = None
        except (OSError, ValueError) as error:
            raise StorageError(f"cannot read the test network's state: {error}") from error
        if state is None or owner(directory) is None:
            raise NotPossible(
                f"no test network is running in {directory}", hint="start one with `torkit testnet up`"
            )
        net = cls(directory, Options(**state["options"]), dns_port=state["dns_port"])
        net.relays = [Relay(**{**relay, "directory": Path(relay["directory"])}) for relay in state["relays"]]
        return net

    @property
    def authorities(self) -> list[Relay]:
        return authorities_of(self.relays)

    @property
    def exits(self) -> list[Relay]:
        return [relay for relay in self.relays if relay.is_exit]

    def relay(self, nickname: str) -> Relay:
        """Raises UsageError if there is none of that name."""
        for relay in self.relays:
            if relay.nickname == nickname:
                return relay
        raise UsageError(f"no relay is called {nickname}")

    async def kill_relay(self, nickname: str) -> None:
        """End one relay at once, as a crash would. `start_relay` brings it back."""
        relay = self.relay(nickname)
        process = self._processes.pop(nickname, None)
        if process is None:
            raise UsageError(f"{nickname} is not running, or not ours to end")
        process.kill()
        await process.wait()
        relay.pid = None
        self._write_state()

    async def start_relay(self, nickname: str) -> None:
        """Start a killed relay again, with its keys and port, and wait until it accepts connections."""
        relay = self.relay(nickname)
        if nickname in self._processes:
            raise UsageError(f"{nickname} is running already")
        await self._spawn_relay(relay)
        await self._wait_for(f"{nickname} to listen", START_DEADLINE, partial(listens, relay))
        self._write_state()

    async def start_client(self, torrc: Sequence[str] = ()) -> tuple[str, int]:
        """Start a C tor client on this network and return its SOCKS address once it has bootstrapped.

        It runs until the network closes. `torrc` is added to its configuration.
        """
        parent = self.directory / "tor"
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix="client-", dir=parent))
        for _ in range(ATTEMPTS):
            with reserved_ports(["127.0.0.1"]) as ports:
                lines = [
                    *common_torrc(directory, self.authorities, self.options.log_level),
                    f"SocksPort 127.0.0.1:{ports[0]}",
                    f"EnforceDistinctSubnets {int(self.options.distinct_subnets)}",
                    "PathsNeededToBuildCircuits 0.67",
                    *torrc,
                ]
            write_lines(directory / "torrc", lines)
            try:
                await self._spawn(directory)
                await self._wait_for(
                    "a C tor client to bootstrap",
                    CLIENT_DEADLINE,
                    lambda: log_has(directory / "log", "Bootstrapped 100%"),
                )
            except PortTaken:
                continue
            return "127.0.0.1", ports[0]
        raise NotPossible(f"no free port for a C tor client in {ATTEMPTS} attempts")

    async def close(self) -> None:
        """End every process this object started, and wait until it is gone. Never cancelled half-way."""
        # No SIGTERM: nothing here is worth saving, and a tor 0.4.9.11 that gets one soon after a SIGHUP may
        # wait for its own worker threads for ever.
        with trio.CancelScope(shield=True):
            for process in self._processes.values():
                process.kill()
            for process in self._processes.values():
                await process.wait()
            self._processes.clear()

    # Starting, in order.

    async def _start(self) -> None:
        for relay in self.relays:
            relay.data_directory.mkdir(mode=0o700, parents=True)
            write_lines(relay.torrc, [])
        write_lines(self.directory / "resolv.conf", [f"nameserver 127.0.0.1:{self.dns_port}"])
        await make_keys(self.relays)
        # Without measurements every weight is zero; with them the choice of paths has something to weigh.
        measured = [f"node_id=${relay.fingerprint} bw={MEASURED_BANDWIDTH}" for relay in self.relays]
        write_lines(self.directory / "bandwidths", [str(int(time.time())), *measured])
        failure: NotPossible | None = None
        for _ in range(ATTEMPTS):
            try:
                await self._launch()
            except (PortTaken, Incomplete) as error:
                failure = error
                await self.close()
                self._forget_directory()
                continue
            self._write_network_file()
            self._write_state()
            return
        raise NotPossible(f"the network did not start in {ATTEMPTS} attempts: {failure}")

    def _forget_directory(self) -> None:
        """Have relays keep nothing but their keys: with a consensus, the next vote is an interval away."""
        for relay in self.relays:
            for path in relay.data_directory.iterdir():
                if path.name == "keys":
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    async def _launch(self) -> None:
        """Start every relay and wait until a client could bootstrap. Raises PortTaken, Incomplete."""
        with reserved_ports([relay.address for relay in self.relays for _ in range(2)]) as ports:
            for relay, or_port, dir_port in zip(self.relays, ports[::2], ports[1::2], strict=True):
                relay.or_port, relay.dir_port = or_port, dir_port if relay.is_authority else 0
        others = [relay for relay in self.relays if not relay.is_authority]
        # No vote until every relay is known: an incomplete first consensus would stay for a whole interval.
        half_hour = 1800
        for relay in self.relays:
            write_lines(relay.torrc, self._torrc_of(relay, half_hour, int(time.time()) + half_hour // 2))
        # Relays upload their descriptors when they start, so the authorities come first.
        for group in self.authorities, others:
            for relay in group:
                await self._spawn_relay(relay)
            for relay in group:
                await self._wait_for(f"{relay.nickname} to listen", START_DEADLINE, partial(listens, relay))
        await self._wait_for(
            "every relay's descriptor", START_DEADLINE, partial(spread_descriptors, self.relays)
        )
        # One look at the clock: authorities that expect another consensus reject each other's votes.
        first_valid_after = int(time.time()) + FIRST_VOTE_LEAD
        for relay in self.authorities:
            write_lines(relay.torrc, self._torrc_of(relay, FIRST_INTERVAL, first_valid_after))
        for relay in self.authorities:
            self._processes[relay.nickname].send_signal(signal.SIGHUP)
        await self._wait_for("a consensus", START_DEADLINE, partial(consensus_is_complete, self.relays))
        # A relay that has asked in vain for a consensus waits ever longer; SIGHUP makes it ask now.
        for relay in others:
            self._processes[relay.nickname].send_signal(signal.SIGHUP)
        await self._wait_for(
            "every relay to fetch the directory", START_DEADLINE, partial(directory_is_mirrored, self.relays)
        )

    def _torrc_of(self, relay: Relay, first_interval: int, first_valid_after: int) -> list[str]:
        return relay_torrc(
            relay,
            directory=self.directory,
            authorities=self.authorities,
            options=self.options,
            first_interval=first_interval,
            first_valid_after=first_valid_after,
        )

    def _write_network_file(self) -> None:
        authorities = ",\n".join(f'    "{dir_authority(authority)}"' for authority in self.authorities)
        lines = [
            f"authorities = [\n{authorities},\n]",
            "testing = true",
            f"distinct_subnets = {str(self.options.distinct_subnets).lower()}",
        ]
        write_lines(self.network_file, lines)

    def _write_state(self) -> None:
        state = {"options": asdict(self.options), "dns_port": self.dns_port, "relays": []}
        state["relays"] = [{**asdict(relay), "directory": str(relay.directory)} for relay in self.relays]
        write_lines(self.directory / "state.json", [json.dumps(state)])

    # Processes.

    async def _spawn_relay(self, relay: Relay) -> None:
        relay.pid = await self._spawn(relay.directory)

    async def _spawn(self, directory: Path) -> int:
        """Start tor on `directory`'s torrc; it is known by the directory's name. Return its process id."""
        with (directory / "output").open("wb") as output:
            process = await trio.lowlevel.open_process(
                tor_command(directory),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # a terminal's Ctrl-C goes to the owner only, which then ends them in order
            )
        self._processes[directory.name] = process
        return process.pid

    async def _wait_for(self, what: str, seconds: float, condition: Callable[[], Awaitable[bool]]) -> None:
        """Poll until `condition`. Raises TimedOut, and at once if a process of ours has ended."""
        with trio.move_on_after(max(seconds, 0)):
            while True:
                for nickname, process in list(self._processes.items()):
                    if process.poll() is not None:
                        del self._processes[nickname]
                        raise why_tor_ended(self.directory / "tor" / nickname)
                if await condition():
                    return
                await trio.sleep(POLL_INTERVAL)
        raise TimedOut(f"waited {seconds:.0f} s for {what}")


@contextmanager
def owned(directory: Path | None) -> Iterator[Path]:
    """Hold the lock of `directory`, cleared of an earlier network; without one, of a temporary directory."""
    if directory is None:
        with (
            tempfile.TemporaryDirectory(prefix="torkit-testnet-") as temporary,
            owned(Path(temporary)) as root,
        ):
            yield root
        return
    directory = directory.resolve()
    try:
        if directory.is_dir() and any(directory.iterdir()) and not (directory / "lock").exists():
            raise UsageError(f"{directory} is not empty and holds no test network")
        make_private_directory(directory)
        lock = (directory / "lock").open("a+")
    except OSError as error:
        raise StorageError(f"cannot use {directory} for a test network: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotPossible(
                f"a test network is running in {directory} already",
                hint="stop it with `torkit testnet down`, or choose another --dir",
            ) from None
        except OSError as error:  # a file system without locks cannot tell who owns the network
            raise StorageError(
                f"cannot lock {directory}: {error.strerror}", hint="choose another --dir"
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            end_orphans(directory)
            for path in directory.iterdir():
                if path.name in ("tor", "client"):
                    shutil.rmtree(path)
                elif path.name in ("network.toml", "state.json"):
                    path.unlink()
        except OSError as error:
            raise StorageError(f"cannot clear {directory}: {error.strerror}") from error
        yield directory
