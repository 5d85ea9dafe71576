"""A private Tor network of real `tor` processes on loopback, and the small DNS server its exits ask.

    async with run_testnet() as net: ...      ready in about 10 s; everything ends with the block
    up(directory); down(directory)            the same, kept by a detached supervisor
    run_command(["curl", ...])                the same, for the length of one command

One process *owns* a network: whoever entered `run_testnet`, or the supervisor. It holds a lock on the
directory for as long as it lives, and every tor process looks for it every 15 s, so nothing survives an owner
that is killed.

    DIRECTORY/lock           held by the owner; contains its process id
    DIRECTORY/network.toml   appears when the network is ready, goes when it ends
    DIRECTORY/state.json     what other processes need to know of it
    DIRECTORY/tor/NICKNAME/  torrc, log and data of one tor process

Ready means that a client can bootstrap at once: every authority serves a consensus in which every relay has
its flags, and every relay holds that consensus and its microdescriptors. Nothing here is secret or safe: keys
have a known passphrase, and exits reach the machine's own loopback.
"""

import base64
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

import trio

from torkit.errors import NotPossible, StorageError, TimedOut, TorkitError, UsageError

# Implementation limits.
POLL_INTERVAL = 0.1  # seconds between two looks at what tor has done
ATTEMPTS = 3  # somebody may take a port between our look and tor's bind
START_DEADLINE = 60.0  # seconds for each step of the start; each takes 1 to 5 on two processors
STOP_DEADLINE = 20.0  # seconds for an owner to end its network, or for killed processes to be gone
CLIENT_DEADLINE = 60.0  # seconds for a C tor client to bootstrap, or for one page through it
MEASURED_BANDWIDTH = 10_000  # kilobytes per second, the same for every relay
REPLY_LIMIT = 4 << 20  # bytes of one HTTP reply; a consensus of ten relays is about 6 KB

# tor's smallest initial voting interval, seconds; it then votes 2 s before the interval ends. The lead leaves
# the authorities 1 s to reload their configuration before that vote.
FIRST_INTERVAL = 5
FIRST_VOTE_LEAD = 4


@dataclass(frozen=True, kw_only=True)
class Options:
    """The shape of a network.

    `voting_interval`: seconds; a consensus is fresh for one interval and valid for two. At least 10, which
    makes every client refresh all the time, and a divisor of a day.
    `distinct_subnets`: every relay has its own /16 (127.10.0.1, 127.11.0.1, ...); else all are on 127.0.0.1.
    `torrc`: nickname to lines added to that relay's torrc, before the default exit policy.
    """

    authorities: int = 3
    exits: int = 3
    middles: int = 3
    distinct_subnets: bool = True
    voting_interval: int = 1800
    log_level: str = "notice"
    torrc: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Relay:
    """One tor relay. `pid` is None before it starts and after `kill_relay`."""

    nickname: str
    address: str
    directory: Path
    is_authority: bool = False
    is_exit: bool = False
    or_port: int = 0
    dir_port: int = 0  # authorities only
    fingerprint: str = ""  # RSA identity, 40 hex digits, upper case
    ed25519: str = ""  # Ed25519 identity, base64 without padding
    v3ident: str = ""  # authorities only
    pid: int | None = None

    @property
    def torrc(self) -> Path:
        return self.directory / "torrc"

    @property
    def data_directory(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "log"


@dataclass(frozen=True)
class Check:
    """One finding of `verify`."""

    name: str
    passed: bool
    detail: str


@asynccontextmanager
async def run_testnet(
    directory: Path | None = None, options: Options | None = None
) -> AsyncIterator["Testnet"]:
    """Own a network for the length of the block; every process is gone when it ends.

    Without `directory` a temporary one is used and removed; otherwise its files stay, for reading the logs.
    Raises NotPossible (no `tor`, another network is there, tor ended), TimedOut, StorageError, UsageError.
    """
    options = options or Options()
    _check_options(options)
    for name in "tor", "tor-gencert":
        _program(name)
    with _owned(directory) as root, _serve_names() as dns_port:
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
        self.relays = _planned_relays(directory / "tor", options)
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
        return [relay for relay in self.relays if relay.is_authority]

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
        await self._wait_for(f"{nickname} to listen", START_DEADLINE, partial(_listens, relay))
        self._write_state()

    async def start_client(self, torrc: Sequence[str] = ()) -> tuple[str, int]:
        """Start a C tor client on this network and return its SOCKS address once it has bootstrapped.

        It runs until the network closes. `torrc` is added to its configuration.
        """
        parent = self.directory / "tor"
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix="client-", dir=parent))
        for _ in range(ATTEMPTS):
            with _reserved_ports(["127.0.0.1"]) as ports:
                lines = [
                    *_common_torrc(directory, self.authorities, self.options.log_level),
                    f"SocksPort 127.0.0.1:{ports[0]}",
                    f"EnforceDistinctSubnets {int(self.options.distinct_subnets)}",
                    "PathsNeededToBuildCircuits 0.67",
                    *torrc,
                ]
            _write(directory / "torrc", lines)
            try:
                await self._spawn(directory)
                await self._wait_for(
                    "a C tor client to bootstrap",
                    CLIENT_DEADLINE,
                    lambda: _log_has(directory / "log", "Bootstrapped 100%"),
                )
            except _PortTaken:
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
            _write(relay.torrc, [])
        _write(self.directory / "resolv.conf", [f"nameserver 127.0.0.1:{self.dns_port}"])
        await self._make_keys()
        # Without measurements every weight is zero; with them the choice of paths has something to weigh.
        measured = [f"node_id=${relay.fingerprint} bw={MEASURED_BANDWIDTH}" for relay in self.relays]
        _write(self.directory / "bandwidths", [str(int(time.time())), *measured])
        for _ in range(ATTEMPTS):
            try:
                await self._launch()
            except _PortTaken:
                await self.close()
                continue
            self._write_network_file()
            self._write_state()
            return
        raise NotPossible(f"found no free ports in {ATTEMPTS} attempts")

    async def _make_keys(self) -> None:
        """Make all relays' keys, as many at once as there are processors: RSA keys take seconds."""
        limit = trio.CapacityLimiter(os.cpu_count() or 1)
        failures: list[str] = []

        async def run(command: list[str], stdin: bytes = b"") -> None:
            async with limit:
                result = await trio.run_process(
                    command, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
                )
            if result.returncode != 0:
                failures.append(_last_complaint(result.stdout + result.stderr))

        async with trio.open_nursery() as nursery:
            for relay in sorted(self.relays, key=lambda relay: not relay.is_authority):  # the slow ones first
                keys = relay.data_directory / "keys"
                if relay.is_authority:
                    keys.mkdir(mode=0o700)
                    nursery.start_soon(
                        run,
                        [
                            *(_program("tor-gencert"), "--create-identity-key", "-m", "12"),
                            *("-i", f"{keys}/authority_identity_key", "-s", f"{keys}/authority_signing_key"),
                            *("-c", f"{keys}/authority_certificate", "--passphrase-fd", "0"),
                        ],
                        b"torkit\n",
                    )
                nursery.start_soon(
                    run,
                    [
                        *_tor_command(relay.directory),
                        *("--DataDirectory", str(relay.data_directory), "--Nickname", relay.nickname),
                        *("--ORPort", "1", "--DisableNetwork", "1", "--list-fingerprint"),
                    ],
                )
        if failures:
            raise NotPossible(f"making relay keys failed: {failures[0]}")
        for relay in self.relays:
            relay.fingerprint = (relay.data_directory / "fingerprint").read_text().split()[1]
            relay.ed25519 = (relay.data_directory / "fingerprint-ed25519").read_text().split()[1]
            if relay.is_authority:
                certificate = (relay.data_directory / "keys/authority_certificate").read_text()
                found = re.search(r"^fingerprint ([0-9A-F]{40})$", certificate, re.MULTILINE)
                if found is None:
                    raise NotPossible("tor-gencert wrote a certificate without a fingerprint")
                relay.v3ident = found[1]

    async def _launch(self) -> None:
        """Start every relay and wait until a client could bootstrap. Raises _PortTaken."""
        with _reserved_ports([relay.address for relay in self.relays for _ in range(2)]) as ports:
            for relay, or_port, dir_port in zip(self.relays, ports[::2], ports[1::2], strict=True):
                relay.or_port, relay.dir_port = or_port, dir_port if relay.is_authority else 0
        others = [relay for relay in self.relays if not relay.is_authority]
        # No vote until every relay is known: an incomplete first consensus would stay for a whole interval.
        half_hour = 1800
        for relay in self.relays:
            _write(relay.torrc, self._torrc(relay, half_hour, int(time.time()) + half_hour // 2))
        # Relays upload their descriptors when they start, so the authorities come first.
        for group in self.authorities, others:
            for relay in group:
                await self._spawn_relay(relay)
            for relay in group:
                await self._wait_for(f"{relay.nickname} to listen", START_DEADLINE, partial(_listens, relay))
        await self._wait_for("every relay's descriptor", START_DEADLINE, self._descriptors_are_spread)
        for relay in self.authorities:
            _write(relay.torrc, self._torrc(relay, FIRST_INTERVAL, int(time.time()) + FIRST_VOTE_LEAD))
        for relay in self.authorities:
            self._processes[relay.nickname].send_signal(signal.SIGHUP)
        await self._wait_for("a consensus", START_DEADLINE, self._consensus_is_complete)
        # A relay that has asked in vain for a consensus waits ever longer; SIGHUP makes it ask now.
        for relay in others:
            self._processes[relay.nickname].send_signal(signal.SIGHUP)
        await self._wait_for(
            "every relay to fetch the directory", START_DEADLINE, self._directory_is_mirrored
        )

    def _torrc(self, relay: Relay, first_interval: int, first_valid_after: int) -> list[str]:
        delay = 2 if self.options.voting_interval < 20 else 4  # tor wants vote + dist < interval / 2
        lines = [
            *_common_torrc(relay.directory, self.authorities, self.options.log_level),
            f"Nickname {relay.nickname}",
            f"Address {relay.address}",
            f"OutboundBindAddress {relay.address}",
            f"ORPort {relay.address}:{relay.or_port} IPv4Only",
            "SocksPort 0",
            "AssumeReachable 1",
            "ShutdownWaitLength 0",
            "PathsNeededToBuildCircuits 0.67",
            f"ServerDNSResolvConfFile {self.directory / 'resolv.conf'}",
            "ServerDNSAllowBrokenConfig 1",
            "ServerDNSDetectHijacking 0",
            "ServerDNSTestAddresses",
            # Load tests come from one address.
            "DoSCircuitCreationEnabled 0",
            "DoSConnectionEnabled 0",
            "DoSStreamCreationEnabled 0",
        ]
        if relay.is_authority:
            lines += [
                "AuthoritativeDirectory 1",
                "V3AuthoritativeDirectory 1",
                f"DirPort {relay.address}:{relay.dir_port} IPv4Only",
                f"TestingV3AuthInitialVotingInterval {first_interval}",
                "TestingV3AuthInitialVoteDelay 2",
                "TestingV3AuthInitialDistDelay 2",
                f"TestingV3AuthVotingStartOffset {first_valid_after % first_interval}",
                f"V3AuthVotingInterval {max(self.options.voting_interval, first_interval)}",
                f"V3AuthVoteDelay {delay}",
                f"V3AuthDistDelay {delay}",
                "V3AuthNIntervalsValid 2",
                f"V3BandwidthsFile {self.directory / 'bandwidths'}",
                "TestingDirAuthVoteGuard *",
                "TestingDirAuthVoteHSDir *",
                "TestingMinExitFlagThreshold 0",
            ]
        lines += self.options.torrc.get(relay.nickname, ())
        if relay.is_exit:
            # 0.0.0.0/8 is refused by every exit of the public network: clients probe circuits so.
            policy = ("reject 0.0.0.0/8:*", "accept private:*", "accept *:*")
            return [*lines, "ExitRelay 1", *(f"ExitPolicy {rule}" for rule in policy)]
        return [*lines, "ExitRelay 0", "ExitPolicy reject *:*"]

    async def _descriptors_are_spread(self) -> bool:
        """Whether every authority knows every relay; hands over what one of them lacks.

        An authority that starts a moment before the others uploads its own descriptor in vain, once.
        """
        held = [await _fetch_descriptors(authority) for authority in self.authorities]
        union = {fingerprint: text for descriptors in held for fingerprint, text in descriptors.items()}
        for authority, descriptors in zip(self.authorities, held, strict=True):
            for fingerprint in union.keys() - descriptors.keys():
                await _http(authority, "POST", "/tor/", union[fingerprint])
        return all({relay.fingerprint for relay in self.relays} <= set(descriptors) for descriptors in held)

    async def _consensus_is_complete(self) -> bool:
        """Whether every authority serves a consensus, signed by a majority, that has every relay's flags."""
        for authority in self.authorities:
            consensus = await _fetch_consensus(authority)
            if consensus is None or consensus.signatures <= len(self.authorities) // 2:
                return False
            if consensus.missing(self.relays):
                return False
        return True

    async def _directory_is_mirrored(self) -> bool:
        """Whether the other relays have the authorities' consensus and microdescriptors."""
        consensus = await _fetch_consensus(self.authorities[0])
        return consensus is not None and all(
            _holds(relay, consensus) for relay in self.relays if not relay.is_authority
        )

    def _write_network_file(self) -> None:
        authorities = ",\n".join(f'    "{_dir_authority(authority)}"' for authority in self.authorities)
        lines = [
            f"authorities = [\n{authorities},\n]",
            "testing = true",
            f"distinct_subnets = {str(self.options.distinct_subnets).lower()}",
        ]
        _write(self.network_file, lines)

    def _write_state(self) -> None:
        state = {"options": asdict(self.options), "dns_port": self.dns_port, "relays": []}
        state["relays"] = [{**asdict(relay), "directory": str(relay.directory)} for relay in self.relays]
        _write(self.directory / "state.json", [json.dumps(state)])

    # Processes.

    async def _spawn_relay(self, relay: Relay) -> None:
        relay.pid = await self._spawn(relay.directory)

    async def _spawn(self, directory: Path) -> int:
        """Start tor on `directory`'s torrc; it is known by the directory's name. Return its process id."""
        with (directory / "output").open("wb") as output:
            process = await trio.lowlevel.open_process(
                _tor_command(directory),
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
                        raise _why_tor_ended(self.directory / "tor" / nickname)
                if await condition():
                    return
                await trio.sleep(POLL_INTERVAL)
        raise TimedOut(f"waited {seconds:.0f} s for {what}")


# The detached network.


def up(directory: Path, options: Options | None = None) -> Path:
    """Start a network that outlives this process; return the path of its network file once it is ready.

    Raises what `run_testnet` raises. Blocks; not for use inside trio.
    """
    directory = directory.resolve()
    command = [
        sys.executable,
        "-m",
        "torkit.testnet",
        str(directory),
        json.dumps(asdict(options or Options())),
    ]
    starter = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    assert starter.stdout is not None
    with starter.stdout as said:
        starter.wait()  # It only forks the supervisor: tor would take a killed one, our zombie, for alive.
        try:
            reply = said.readline()
        except BaseException:  # Ctrl-C: what was not asked to stay must not stay
            os.killpg(starter.pid, signal.SIGTERM)
            said.read()
            raise
    message: dict[str, Any] = json.loads(reply) if reply else {"error": "the supervisor ended without a word"}
    if "error" in message:
        raise NotPossible(message["error"], hint=message.get("hint"))
    return Path(message["network_file"])


def down(directory: Path) -> None:
    """End the network in `directory`, wait until its processes are gone, and remove its files.

    Raises NotPossible if there is none, TimedOut if it does not end. Blocks; not for use inside trio.
    """
    directory = directory.resolve()
    if not (directory / "lock").exists():
        raise NotPossible(f"no test network is running in {directory}")
    if (pid := owner(directory)) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        _wait_until(lambda: owner(directory) is None, STOP_DEADLINE, "the test network to end")
    _end_orphans(directory)
    try:
        shutil.rmtree(directory)
    except OSError as error:
        raise StorageError(f"cannot remove the test network's files: {error}") from error


def owner(directory: Path) -> int | None:
    """The process id of the owner of the network in `directory`, or None if nobody owns it."""
    try:
        with (directory / "lock").open("r") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0) or None
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read the test network's lock: {error}") from error
    return None


def run_command(command: Sequence[str], options: Options | None = None) -> int:
    """Run `command` on a network of its own, with TORKIT_NETWORK set; return its exit status.

    TORKIT_DATA_DIR is a scratch directory unless it is set already. Ctrl-C ends the command as in a shell,
    and the network after it. A command ended by signal N returns 128 + N. Blocks; not for use inside trio.
    """

    async def run() -> int:
        async with run_testnet(options=options) as net:
            environment = {"TORKIT_DATA_DIR": str(net.directory / "client"), **os.environ}
            environment["TORKIT_NETWORK"] = str(net.network_file)
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
                try:
                    process = await trio.lowlevel.open_process(list(command), env=environment)
                except OSError as error:
                    raise UsageError(f"cannot run {command[0]}: {error.strerror}") from error
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_pass_on, signals, process)
                    status = await process.wait()
                    nursery.cancel_scope.cancel()
            return status if status >= 0 else 128 - status

    return trio.run(run)


async def _pass_on(signals: AsyncIterator[int], process: trio.Process) -> None:
    async for signum in signals:
        if signum != signal.SIGINT:  # the terminal has sent that one to the command itself
            process.send_signal(signum)


async def verify(net: Testnet) -> list[Check]:
    """Look at a running network from outside and send traffic through it. Never raises for what it finds."""
    checks = []
    running = set(_tor_processes(net.directory))
    dead = [relay.nickname for relay in net.relays if relay.pid not in running]
    total = len(net.relays)
    checks.append(
        Check(
            "processes",
            not dead,
            f"not running: {', '.join(dead)}" if dead else f"all {total} tor processes run",
        )
    )
    now = datetime.now(UTC)
    for authority in net.authorities:
        consensus = await _fetch_consensus(authority)
        name = f"consensus of {authority.nickname}"
        if consensus is None:
            checks.append(Check(name, False, "not served"))
        elif not consensus.valid_after <= now < consensus.valid_until:
            checks.append(
                Check(name, False, f"not valid now: {consensus.valid_after} to {consensus.valid_until}")
            )
        elif missing := consensus.missing(net.relays):
            checks.append(Check(name, False, f"lacks {missing}"))
        else:
            detail = f"lists all {total} relays, {consensus.signatures} signatures"
            checks.append(Check(name, True, f"{detail}, valid until {consensus.valid_until:%H:%M:%S} UTC"))
    checks.append(await _verify_traffic(net))
    return checks


async def _verify_traffic(net: Testnet) -> Check:
    """Fetch a page by name through three hops, with a C tor client of our own."""
    with _serve_page() as (port, page), tempfile.TemporaryDirectory(prefix="torkit-verify-") as scratch:
        # The client is ours, not the network's: its files are elsewhere and it ends with this check.
        visitor = Testnet(Path(scratch), net.options, dns_port=net.dns_port)
        visitor.relays = net.relays
        try:
            socks = await visitor.start_client()
            started = trio.current_time()
            with trio.fail_after(CLIENT_DEADLINE):
                reply = await _fetch_over_socks(socks, "web.test", port)
        except (TorkitError, trio.TooSlowError, OSError, trio.BrokenResourceError) as error:
            return Check("traffic", False, str(error) or "no reply in time")
        finally:
            await visitor.close()
    if reply != page:
        return Check("traffic", False, f"expected the page just made, got {len(reply)} other bytes")
    return Check(
        "traffic", True, f"a page by name through three hops in {trio.current_time() - started:.2f} s"
    )


# The directory as the authorities serve it, read only as far as readiness needs. The real parser is
# torkit.directory; this one must not share its mistakes.


@dataclass(frozen=True)
class _Consensus:
    valid_after: datetime
    valid_until: datetime
    flags: dict[str, set[str]]  # by RSA identity, upper case hex
    microdesc_digests: set[str]  # base64 without padding
    signatures: int

    def missing(self, relays: Sequence[Relay]) -> str:
        """What a complete network would have and this consensus has not, for a person; empty if complete."""
        problems = []
        for relay in relays:
            wanted = {"Running", "Valid", "V2Dir", "Guard"} | ({"Exit"} if relay.is_exit else set())
            lacking = wanted - self.flags.get(relay.fingerprint, set())
            if lacking:
                problems.append(f"{relay.nickname} ({' '.join(sorted(lacking))})")
        return ", ".join(problems)


def _read_consensus(text: str) -> _Consensus:
    times = dict(re.findall(r"^(valid-after|valid-until) (.+)$", text, re.MULTILINE))
    entries = re.findall(r"^r \S+ (\S+) .*\n(?:a .*\n)*m (\S+)\ns (.*)$", text, re.MULTILINE)
    return _Consensus(
        valid_after=datetime.fromisoformat(times["valid-after"]).replace(tzinfo=UTC),
        valid_until=datetime.fromisoformat(times["valid-until"]).replace(tzinfo=UTC),
        flags={base64.b64decode(r + "=").hex().upper(): set(s.split()) for r, _, s in entries},
        microdesc_digests={m for _, m, _ in entries},
        signatures=len(re.findall(r"^directory-signature ", text, re.MULTILINE)),
    )


async def _fetch_consensus(authority: Relay) -> _Consensus | None:
    """The microdesc consensus of `authority`; None until it serves that and all its microdescriptors."""
    with suppress(OSError, trio.BrokenResourceError):
        body = await _http(authority, "GET", "/tor/status-vote/current/consensus-microdesc")
        if not body:
            return None
        consensus = _read_consensus(body.decode())
        digests = "-".join(sorted(consensus.microdesc_digests))
        served = await _http(authority, "GET", f"/tor/micro/d/{digests}")
        return consensus if consensus.microdesc_digests <= _microdesc_digests(served) else None
    return None


async def _fetch_descriptors(authority: Relay) -> dict[str, bytes]:
    """The server descriptors that `authority` has, by RSA identity, upper case hex."""
    try:
        body = await _http(authority, "GET", "/tor/server/all")
    except (OSError, trio.BrokenResourceError):
        return {}
    descriptors = {}
    for found in re.finditer(rb"^router (?:(?!router ).*\n)*", body, re.MULTILINE):
        fingerprint = re.search(rb"^fingerprint ([0-9A-F ]+)$", found[0], re.MULTILINE)
        if fingerprint is not None:
            descriptors[fingerprint[1].decode().replace(" ", "")] = found[0]
    return descriptors


async def _http(authority: Relay, method: str, path: str, body: bytes = b"") -> bytes:
    """The body of a 200 reply from an authority's DirPort; empty for any other."""
    async with await trio.open_tcp_stream(authority.address, authority.dir_port) as stream:
        head = f"{method} {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        await stream.send_all(head.encode() + body)
        status, _, reply = (await _receive_all(stream)).partition(b"\r\n\r\n")
    return reply if status.split(b" ", 2)[1:2] == [b"200"] else b""


def _microdesc_digests(documents: bytes) -> set[str]:
    """Digests of the microdescriptors in a reply, or in tor's cache file with its `@` lines."""
    starts = re.finditer(rb"^onion-key\n(?:(?!onion-key\n|@).*\n)*", documents, re.MULTILINE)
    return {base64.b64encode(hashlib.sha256(found[0]).digest()).decode().rstrip("=") for found in starts}


def _holds(relay: Relay, consensus: _Consensus) -> bool:
    """Whether `relay` has stored a consensus as new as `consensus`, and its microdescriptors."""
    try:
        stored = _read_consensus((relay.data_directory / "cached-microdesc-consensus").read_text())
    except (FileNotFoundError, KeyError):  # tor has none yet, or is just writing it
        return False
    documents = b"\n".join(
        path.read_bytes() for path in relay.data_directory.glob("cached-microdescs*") if path.suffix != ".tmp"
    )
    is_current = stored.valid_after >= consensus.valid_after
    return is_current and consensus.microdesc_digests <= _microdesc_digests(documents)


# Configuration.


def _check_options(options: Options) -> None:
    if options.authorities < 1 or options.exits < 1 or options.middles < 0:
        raise UsageError("a test network needs at least one authority and one exit")
    if options.authorities + options.exits + options.middles < 3:
        raise UsageError("a path needs three relays")
    if options.voting_interval < 10 or 86400 % options.voting_interval:
        raise UsageError(
            f"a voting interval is at least 10 s and divides a day, got {options.voting_interval} s"
        )


def _planned_relays(directory: Path, options: Options) -> list[Relay]:
    names = [
        *(f"auth{n}" for n in range(1, options.authorities + 1)),
        *(f"exit{n}" for n in range(1, options.exits + 1)),
        *(f"middle{n}" for n in range(1, options.middles + 1)),
    ]
    return [
        Relay(
            nickname=name,
            address=f"127.{10 + n}.0.1" if options.distinct_subnets else "127.0.0.1",
            directory=directory / name,
            is_authority=name.startswith("auth"),
            is_exit=name.startswith("exit"),
        )
        for n, name in enumerate(names)
    ]


def _common_torrc(directory: Path, authorities: Sequence[Relay], log_level: str) -> list[str]:
    return [
        "TestingTorNetwork 1",
        f"DataDirectory {directory / 'data'}",
        f"Log {log_level} file {directory / 'log'}",
        f"__OwningControllerProcess {os.getpid()}",
        # A network of loopback addresses has no countries; reading the maps costs each process half a second.
        "GeoIPFile /dev/null",
        "GeoIPv6File /dev/null",
        *(f"DirAuthority {_dir_authority(authority)}" for authority in authorities),
    ]


def _dir_authority(authority: Relay) -> str:
    """The value of torrc's DirAuthority."""
    return (
        f"{authority.nickname} orport={authority.or_port} no-v2 v3ident={authority.v3ident} "
        f"{authority.address}:{authority.dir_port} {authority.fingerprint}"
    )


# tor processes.


class _PortTaken(NotPossible):
    """Somebody took a port between our look and tor's bind."""


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise NotPossible(
            f"the test network needs the program `{name}`", hint="on Debian: apt-get install tor"
        )
    return found


def _tor_command(directory: Path) -> list[str]:
    # An empty defaults file keeps the machine's own tor configuration out.
    return [_program("tor"), "--defaults-torrc", "/dev/null", "-f", str(directory / "torrc")]


def _why_tor_ended(directory: Path) -> Exception:
    """The exception for a tor that ended on its own."""
    text = b""
    for name in "output", "log":
        with suppress(FileNotFoundError):
            text += (directory / name).read_bytes()
    if b"Address already in use" in text:
        return _PortTaken(f"{directory.name}: its port was taken")
    return NotPossible(f"tor ({directory.name}) ended: {_last_complaint(text)}")


def _last_complaint(output: bytes) -> str:
    """The last warning or error among tor's lines, without its date."""
    complaints = re.findall(r"\[(?:warn|err)\] (.*)", output.decode(errors="replace"))
    useful = [line for line in complaints if not line.startswith("Reading config failed")]
    return useful[-1] if useful else "it said nothing"


async def _listens(relay: Relay) -> bool:
    for port in filter(None, (relay.or_port, relay.dir_port)):
        try:
            stream = await trio.open_tcp_stream(relay.address, port)
        except OSError:
            return False
        await stream.aclose()
    return True


def _tor_processes(directory: Path) -> list[int]:
    """Process ids of every tor that runs on a torrc of the network in `directory`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            arguments = os.fsdecode((path / "cmdline").read_bytes()).split("\0")
            is_tor = Path(arguments[0]).name == "tor"
            if is_tor and any(argument.startswith(f"{directory}/tor/") for argument in arguments):
                found.append(int(path.name))
    return found


def _end_orphans(directory: Path) -> None:
    """End the relays of an owner that was killed, rather than wait until they notice."""
    for pid in _tor_processes(directory):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _wait_until(lambda: not _tor_processes(directory), STOP_DEADLINE, "tor to end")


# The supervisor: the owner of a network that `up` started.


def _supervise(directory: Path, options: Options) -> None:
    """Run the network until SIGTERM. Says one JSON line on stdout: the network file, or why there is none."""

    async def run() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_on_signal, signals, nursery.cancel_scope)
                async with run_testnet(directory, options) as net:
                    print(json.dumps({"network_file": str(net.network_file)}), flush=True)
                    _let_go_of_the_terminal()
                    await trio.sleep_forever()

    try:
        trio.run(run)
    except* TorkitError as group:
        error = group.exceptions[0]
        hint = error.hint if isinstance(error, TorkitError) else None
        print(json.dumps({"error": str(error), "hint": hint}), flush=True)


async def _cancel_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


def _let_go_of_the_terminal() -> None:
    """Whoever reads our output must see its end, and the working directory must stay removable."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in 1, 2:
        os.dup2(null, descriptor)
    os.close(null)


# The directory on disk.


@contextmanager
def _owned(directory: Path | None) -> Iterator[Path]:
    """Hold the lock of `directory`, cleared of an earlier network; without one, of a temporary directory."""
    if directory is None:
        with (
            tempfile.TemporaryDirectory(prefix="torkit-testnet-") as temporary,
            _owned(Path(temporary)) as root,
        ):
            yield root
        return
    directory = directory.resolve()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.geteuid():
            raise StorageError(f"{directory} belongs to somebody else")
        if any(directory.iterdir()) and not (directory / "lock").exists():
            raise UsageError(f"{directory} is not empty and holds no test network")
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
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            _end_orphans(directory)
            for path in directory.iterdir():
                if path.name in ("tor", "client"):
                    shutil.rmtree(path)
                elif path.name in ("network.toml", "state.json"):
                    path.unlink()
        except OSError as error:
            raise StorageError(f"cannot clear {directory}: {error.strerror}") from error
        yield directory


def _write(path: Path, lines: Sequence[str]) -> None:
    """Write a text file that appears only when complete."""
    unfinished = path.with_name(f"{path.name}.new")
    try:
        unfinished.write_text("".join(f"{line}\n" for line in lines))
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


async def _log_has(log: Path, text: str) -> bool:
    with suppress(FileNotFoundError):
        return text in log.read_text(errors="replace")
    return False


def _wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimedOut(f"waited {seconds:.0f} s for {what}")
        time.sleep(POLL_INTERVAL)


# Small network services.


@contextmanager
def _reserved_ports(addresses: Sequence[str]) -> Iterator[list[int]]:
    """Distinct free TCP ports, one for each address, free to bind once the block ends."""
    with ExitStack() as stack:
        ports = []
        for address in addresses:
            holder = stack.enter_context(socket.socket())
            holder.bind((address, 0))
            ports.append(holder.getsockname()[1])
        yield ports


@contextmanager
def _serve_names() -> Iterator[int]:
    """The network's DNS in a thread, on a UDP port of 127.0.0.1 which it yields."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, sock = self.request
            if (reply := answer_name(query)) is not None:
                sock.sendto(reply, self.client_address)

    with socketserver.UDPServer(("127.0.0.1", 0), Handler) as server, _served(server):
        yield server.server_address[1]


@contextmanager
def _serve_page() -> Iterator[tuple[int, bytes]]:
    """A web page nobody knew before, on a TCP port of 127.0.0.1; yields both."""
    page = os.urandom(16).hex().encode()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + page)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server, _served(server):
        yield server.server_address[1], page


@contextmanager
def _served(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": POLL_INTERVAL}, daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


# RFC 1035 and RFC 3596.
DNS_HEADER = struct.Struct("!6H")
TYPE_A, TYPE_PTR, TYPE_AAAA, CLASS_IN = 1, 12, 28, 1
NXDOMAIN = 3

# PTR answers by reversed name. Exits refuse to look up private addresses, hence one from TEST-NET-1.
REVERSE_NAMES = {"1.0.0.127.in-addr.arpa": "localhost.test", "1.2.0.192.in-addr.arpa": "reverse.test"}
NAME_LIFETIME = 60  # seconds


def answer_name(query: bytes) -> bytes | None:
    """Answer one DNS query: A 127.0.0.1 for every name under `test`, PTR for `REVERSE_NAMES`, else NXDOMAIN.

    None for what is no query of one question.
    """
    try:
        query_id, flags, questions, _, _, _ = DNS_HEADER.unpack_from(query)
        end = DNS_HEADER.size
        labels = []
        while length := query[end]:
            labels.append(query[end + 1 : end + 1 + length].decode("ascii").lower())
            end += 1 + length
        kind, klass = struct.unpack_from("!2H", query, end + 1)
    except (struct.error, IndexError, UnicodeDecodeError):
        return None
    if flags & 0x8000 or questions != 1 or klass != CLASS_IN:
        return None
    name = ".".join(labels)
    data = b""
    if kind == TYPE_A and labels[-1:] == ["test"]:
        data = socket.inet_aton("127.0.0.1")
    elif kind == TYPE_PTR and name in REVERSE_NAMES:
        target = REVERSE_NAMES[name].split(".")
        data = b"".join(bytes([len(label)]) + label.encode() for label in target) + b"\0"
    exists = labels[-1:] == ["test"] or name in REVERSE_NAMES
    # Response, authoritative, recursion desired as asked and available.
    reply_flags = 0x8480 | flags & 0x0100 | (0 if exists else NXDOMAIN)
    reply = DNS_HEADER.pack(query_id, reply_flags, 1, int(bool(data)), 0, 0)
    reply += query[DNS_HEADER.size : end + 5]  # byte for byte: tor checks the letters' case
    if data:
        reply += (
            struct.pack("!3HIH", 0xC000 | DNS_HEADER.size, kind, CLASS_IN, NAME_LIFETIME, len(data)) + data
        )
    return reply


async def _fetch_over_socks(socks: tuple[str, int], host: str, port: int) -> bytes:
    """The page at http://host:port/ through a SOCKS5 proxy that resolves the name. RFC 1928."""
    async with await trio.open_tcp_stream(*socks) as stream:
        await stream.send_all(b"\x05\x01\x00")
        await _receive_exactly(stream, 2)
        name = host.encode()
        await stream.send_all(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big"))
        reply = await _receive_exactly(stream, 10)
        if reply[1] != 0:
            raise NotPossible(f"tor's SOCKS port refused with code {reply[1]}")
        await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
        return (await _receive_all(stream)).partition(b"\r\n\r\n")[2]


async def _receive_exactly(stream: trio.SocketStream, length: int) -> bytes:
    data = b""
    while len(data) < length:
        if not (more := await stream.receive_some(length - len(data))):
            raise OSError(f"the connection ended after {len(data)} of {length} bytes")
        data += more
    return data


async def _receive_all(stream: trio.SocketStream) -> bytes:
    data = b""
    async for more in stream:
        data += more
        if len(data) > REPLY_LIMIT:
            raise OSError(f"a reply of more than {REPLY_LIMIT} bytes")
    return data


if __name__ == "__main__" and os.fork() == 0:
    _supervise(Path(sys.argv[1]), Options(**json.loads(sys.argv[2])))
