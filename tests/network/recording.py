"""What relays see of a client: scripted relays that write down each cell of C tor's client, or of torkit's.

Both clients are SOCKS proxies with a network of their own, and are asked for the same things. What the relays
can do differs, and weights leave no choice of whom to use where:

    guard0 to guard2    CGO; never in the middle; directories as well
    middle              no CGO; the only one in the middle; the only fallback, and an authority; IPv6
    exit0, exit1        CGO; accept ports 80 and 443

A wide network has three others for the middle, which can do CGO and have an IPv6 address as well (`middle` is
hardly used there: two circuits may be all that C tor builds), and idle relays, which nobody uses.
"""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from bisect import bisect
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from network.servers import HOST, free_port
from network.tracing import STRACE, peers_in
from network_docs import consensus
from served import doc_of, fresh_relays, serve

from torkit._fast.cells import RelayCommand
from torkit.hs.address import encode_address
from torkit.testing.directory import DirectoryService, RelayDoc, consensus_diff, make_authorities
from torkit.testing.directory.authority import HOUR
from torkit.testing.directory.consensus import PROTOCOLS, WEIGHTS
from torkit.testing.relay import FakeCircuit, FakeLink, FakeRelay, FakeStream, RelayCell, RelayState, ignore

DEADLINE = 100.0  # seconds for all that one client is asked for; 4 pass where nothing else runs
POLL_INTERVAL = 0.02

LEGS = 6  # that C tor's client links before anybody asks
EXITS = 2  # circuits to exits that it builds ahead, where it links none
QUIET = 2.0  # seconds; C tor looks each second whether one more circuit is wanted

# All that relays can do but to link circuits, which exits of few recordings can.
PROTOCOLS = PROTOCOLS
LINKING = f"{PROTOCOLS} Conflux=1"
WITHOUT_CGO = PROTOCOLS.replace("Relay=1-6", "Relay=1-4")
PARAMS = "ExtendByEd25519ID=1"  # as on the public network
WEIGHTS = WEIGHTS | {"Wmg": 0, "Wme": 0, "Wmd": 0}

NAME, ADDRESS, REVERSE_NAME = "web.test", "192.0.2.7", "7.2.0.192.in-addr.arpa"
REQUEST = b"GET / HTTP/1.0\r\n\r\n"
UPLOAD = bytes(40_000)  # more than fits into the longest write of C tor's
LATE_NAME, EARLY = "late.test", b"sent before the answer"
SLOW_REQUEST = b"GET /slow HTTP/1.0\r\n\r\n"
SLOW_LEN = 500_000  # bytes: more than a socket of the file system and XOFF_LIMIT hold
XOFF_LIMIT = 50  # cells of data that make clients of a wide network say XOFF
IDLE_COUNT = 100  # relays of a wide network that make the list of microdescriptors longer
ANSWER_LEN = 60_000  # bytes: more DATA cells than either kind of SENDME acknowledges

ONION = encode_address(Ed25519PrivateKey.generate().public_key().public_bytes_raw())  # is nowhere
TRACE = "trace"  # a file of strace's, in a client's directory

FINISHED = 9  # a reason in DESTROY
CELL_LEN, VERSIONS_LEN = 514, 11  # bytes; of all cells of a client but VERSIONS, and of that
APPLICATION_DATA = 23  # a type of TLS records
SEALED_BY = 17  # bytes that a record of TLS 1.3 with AES-GCM has more than what is sealed in it
CONNECT, RESOLVE, RESOLVE_PTR = 0x01, 0xF0, 0xF1  # commands of SOCKS


class LinkCell(NamedTuple):
    """A cell as it came out of a client's connection."""

    link: FakeLink
    circ_id: int
    command: int
    body: bytes


class HopCell(NamedTuple):
    """A relay cell as the hop that recognized it sees it; hops count from 1."""

    circuit: FakeCircuit
    hop: int
    cell: RelayCell
    number: int  # of its link cell


@dataclass
class Recording:
    """All that one client said, in order."""

    relays: dict[str, FakeRelay]  # by nickname
    voters: list[bytes]  # the authorities' v3 identities, as configured
    wire: dict[FakeLink, bytes] = field(default_factory=dict)  # what came out of each socket
    link_cells: list[LinkCell] = field(default_factory=list)
    hop_cells: list[HopCell] = field(default_factory=list)
    kept: list[FakeCircuit] = field(default_factory=list)  # circuits for directories, open after their use
    peers: set[tuple[str, int]] = field(default_factory=set)  # addresses that it named to the kernel
    outlived_breach: bool | None = None  # whether the circuit went on after data for a stream that is none

    def note(self, circuit: FakeCircuit, hop: int, cell: RelayCell) -> None:
        """Write down a relay cell. What a directory is asked must come before it says CONNECTED."""
        self.hop_cells.append(HopCell(circuit, hop, cell, len(self.link_cells) - 1))
        stream = circuit.streams.get(cell.stream_id)
        is_data = cell.command == RelayCommand.DATA
        if is_data and stream is not None and stream.target is None and not stream.received:
            stream.send(RelayCommand.CONNECTED)

    def note_wire(self, link: FakeLink, data: bytes) -> None:
        self.wire[link] = self.wire.get(link, b"") + data

    def records(self, link: FakeLink) -> list[int]:
        """How many bytes of cells each TLS record has; the first with application data is TLS's Finished."""
        lengths, at, data = [], 0, self.wire[link]
        while at < len(data):
            kind, length = data[at], int.from_bytes(data[at + 3 : at + 5], "big")
            if kind == APPLICATION_DATA:
                lengths.append(length - SEALED_BY)
            at += 5 + length
        return lengths[1:]

    def record_of(self, number: int) -> int:
        """The record, by its place on its link, in which the link cell of this number begins."""
        link = self.link_cells[number].link
        before = sum(one.link is link for one in self.link_cells[:number])
        start = before and VERSIONS_LEN + (before - 1) * CELL_LEN
        return bisect(list(accumulate(self.records(link))), start)

    def cells_of(self, circuit: FakeCircuit) -> list[LinkCell]:
        """What the first relay of a circuit gets for it."""
        return [one for one in self.link_cells if (one.link, one.circ_id) == (circuit.link, circuit.circ_id)]

    def messages(self, command: int) -> list[HopCell]:
        return [one for one in self.hop_cells if one.cell.command == command]

    def requests(self, what: bytes) -> list[HopCell]:
        """What directories were asked that `what` occurs in; each request fits one cell here."""
        asked = (one for one in self.messages(RelayCommand.DATA) if one.cell.body.startswith(b"GET /tor/"))
        return [one for one in asked if what in one.cell.body]

    def whole_requests(self, what: bytes) -> list[bytes]:
        """The same, longer than a cell: what each stream to a directory that `what` occurs in was sent."""
        sent: dict[tuple[int, int], bytes] = {}
        for one in self.messages(RelayCommand.DATA):
            key = (id(one.circuit), one.cell.stream_id)
            sent[key] = sent.get(key, b"") + one.cell.body
        return [one for one in sent.values() if one.startswith(b"GET /tor/") and what in one]

    def circuits(self, length: int) -> list[FakeCircuit]:
        """All circuits that got so many hops."""
        made = {id(one): one for relay in self.relays.values() for one in relay.circuits}
        return [one for one in made.values() if len(one.hops) == length]

    def streams(self) -> list[FakeStream]:
        """Those that are open."""
        return [stream for circuit in self.circuits(3) for stream in circuit.streams.values()]

    def name_of(self, relay: RelayState) -> str:
        return next(name for name, one in self.relays.items() if one is relay)


SOCKET = "socks"  # of the file system, in a client's directory: a second port of its proxy

# How a client is started: its command line, from the directory for its files, the values of torrc's
# DirAuthority and FallbackDir, and the port that its SOCKS proxy shall have.
Client = Callable[[Path, list[str], str, int], list[str]]


def torkit(directory: Path, dir_authorities: list[str], fallback_dir: str, port: int) -> list[str]:
    entries = "".join(f'  "{one}",\n' for one in dir_authorities)
    network = directory / "network.toml"
    network.write_text(f'authorities = [\n{entries}]\nfallbacks = ["{fallback_dir}"]\ntesting = true\n')
    options = ["--network", str(network), "--data-dir", str(directory / "data")]
    listeners = ["--listen", f"{HOST}:{port}", "--listen", f"unix:{directory / SOCKET}"]
    return [sys.executable, "-m", "torkit", *options, "socks", *listeners]


def c_tor(directory: Path, dir_authorities: list[str], fallback_dir: str, port: int) -> list[str]:
    lines = [
        "TestingTorNetwork 1",
        f"DataDirectory {directory / 'data'}",
        f"Log notice file {directory / 'log'}",
        "GeoIPFile /dev/null",
        "GeoIPv6File /dev/null",
        f"SocksPort {HOST}:{port} IPv6Traffic PreferIPv6",  # as Tor Browser has it
        f"SocksPort unix:{directory / SOCKET} IPv6Traffic PreferIPv6",
        *(f"DirAuthority {one}" for one in dir_authorities),
        f"FallbackDir {fallback_dir}",
    ]
    torrc = directory / "torrc"
    torrc.write_text("\n".join(lines) + "\n")
    return ["tor", "--defaults-torrc", "/dev/null", "-f", str(torrc), "--quiet"]


async def record(client: Client, directory: Path, now: int) -> Recording:
    """Run a client through everything. Raises trio.TooSlowError where it does not get through.

    The consensus is about to expire, so that whoever has it asks for a newer one at once, and gets a diff.
    """
    async with running(client, directory, now - 3 * HOUR + 300, 3 * HOUR) as (seen, port, process):
        await _use(seen, port, process)
        process.terminate()
        await wait_until(lambda: all(link.closed for one in seen.relays.values() for link in one.links))
        await wait_until(lambda: process.poll() is not None)
        return seen


async def time_of_refresh(client: Client, directory: Path, valid_after: int, lifetime: int) -> float:
    """When a client with such a consensus asks for a newer one, in seconds from `valid_after`."""
    async with running(client, directory, valid_after, lifetime) as (seen, _, _):
        await wait_until(lambda: seen.requests(b"X-Or-Diff-From-Consensus"))
        return time.time() - valid_after


async def sets_ahead(
    client: Client, directory: Path, now: int
) -> tuple[list[list[int]], set[tuple[str, ...]]]:
    """How many legs each set of linked circuits has, before anybody asks for a stream, and once one goes by
    a set; when there are as many as C tor links, and no more have come for a while. And what exits were told
    by the legs, in order: of LINK all but its nonce, of others the command.

    Raises trio.TooSlowError where there are fewer.
    """
    links: list[bytes] = []  # the nonce of each

    def link(circuit: FakeCircuit, hop: int, cell: RelayCell) -> None:
        if cell.command == RelayCommand.CONFLUX_LINK:
            links.append(cell.body[1:33])
            circuit.send(hop, RelayCommand.CONFLUX_LINKED, 0, cell.body[:49] + b"\1")

    async def legs_of_each(least: int) -> list[int]:
        await wait_until(lambda: len(links) >= least)
        count = -1
        while count != len(links):
            count = len(links)
            await trio.sleep(QUIET)
        return sorted(Counter(links).values())

    async with running(client, directory, now - HOUR // 2, 3 * HOUR, is_wide=True, of_exits=LINKING) as (
        seen,
        port,
        _,
    ):
        for name in "exit0", "exit1":
            seen.relays[name].on_unknown = link
        before = await legs_of_each(LEGS)
        async with await ask(port, CONNECT, NAME, 80):
            counts = [before, await legs_of_each(LEGS + 2)]
            told: dict[int, list[str]] = {}
            for circuit, hop, cell, _ in seen.hop_cells:
                if hop == 3:
                    word = RelayCommand(cell.command).name
                    if cell.command == RelayCommand.CONFLUX_LINK:
                        word += f" {cell.body[:1].hex()} {cell.body[33:].hex()}"
                    told.setdefault(id(circuit), []).append(word)
            return counts, set(map(tuple, told.values()))


async def exits_ahead(client: Client, directory: Path, now: int) -> list[int]:
    """How many circuits to exits there are before anybody asks for a stream, and once one goes by one of
    them; when there are as many as C tor builds, and no more have come for a while.

    Raises trio.TooSlowError where there are fewer.
    """
    async with running(client, directory, now - HOUR // 2, 3 * HOUR) as (seen, port, _):

        def to_exits() -> int:
            return sum(seen.name_of(one.hops[2].relay).startswith("exit") for one in seen.circuits(3))

        async def count_of(least: int) -> int:
            await wait_until(lambda: to_exits() >= least)
            count = -1
            while count != to_exits():
                count = to_exits()
                await trio.sleep(QUIET)
            return count

        before = await count_of(EXITS)
        async with await ask(port, CONNECT, NAME, 80):
            return [before, await count_of(EXITS + 1)]


async def guards_in_turn(client: Client, directory: Path, now: int) -> tuple[list[str], list[str]]:
    """The guards that carried two streams, the first of which was dead before the second; and all guards of
    the client's sample, in the order of its file."""
    async with running(client, directory, now - HOUR // 2, 3 * HOUR) as (seen, port, process):
        used = []
        for _ in range(2):
            async with await ask(port, CONNECT, NAME, 80):
                pass
            guard = seen.relays[seen.name_of(seen.messages(RelayCommand.BEGIN)[-1].circuit.hops[0].relay)]
            used.append(seen.name_of(guard))
            guard.on_versions = FakeLink.close
            for link in guard.links:
                link.close()
        process.terminate()
        await wait_until(lambda: process.poll() is not None)
        names = {relay.rsa_identity.hex().upper(): name for name, relay in seen.relays.items()}
        return used, [names[one] for one in _sampled(directory / "data")]


def _sampled(data_dir: Path) -> list[str]:
    """The fingerprints of the guards in torkit's file, or in C tor's."""
    theirs = data_dir / "state"
    if not theirs.exists():
        guards = json.loads((data_dir / "state.json").read_text())["guards"]
        return [one["fingerprint"] for one in guards]
    lines = re.findall(
        r"^Guard in=default rsa_id=(\S+).* sampled_idx=(\d+)", theirs.read_text(), re.MULTILINE
    )
    return [fingerprint for fingerprint, _ in sorted(lines, key=lambda one: int(one[1]))]


async def record_widely(client: Client, directory: Path, now: int) -> Recording:
    """Run a client, traced, through what `record` does not ask. Raises trio.TooSlowError as that does."""
    async with running(client, directory, now - HOUR // 2, 3 * HOUR, is_wide=True) as (seen, port, _):
        await _use_widely(seen, port, directory / SOCKET)
        seen.peers = peers_in(directory / TRACE)
        return seen


@asynccontextmanager
async def running(
    client: Client,
    directory: Path,
    valid_after: int,
    lifetime: int,
    *,
    is_wide: bool = False,
    of_exits: str = PROTOCOLS,
) -> AsyncIterator[tuple[Recording, int, subprocess.Popen[bytes]]]:
    """What is seen of a client, the port of its proxy, and its process, which is traced in a wide network."""
    async with _network(valid_after, lifetime, is_wide=is_wide, of_exits=of_exits) as network:
        seen, dir_authorities, fallback_dir = network
        port = free_port()
        line = client(directory, dir_authorities, fallback_dir, port)
        if is_wide:  # -D: the client is our child, and strace its own
            line = [*STRACE.replace("strace ", "strace -D ").split(), str(directory / TRACE), *line]
        with (directory / "stderr").open("wb") as stderr:
            process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stderr=stderr)
        try:
            with trio.fail_after(DEADLINE):
                yield seen, port, process
        except trio.TooSlowError as error:
            for name in "stderr", "log":
                with suppress(FileNotFoundError):
                    error.add_note((directory / name).read_text())
            raise
        finally:
            process.kill()
            process.wait()


# --- The network ---------------------------------------------------------------------------------------


@asynccontextmanager
async def _network(
    valid_after: int, lifetime: int, *, is_wide: bool, of_exits: str
) -> AsyncIterator[tuple[Recording, list[str], str]]:
    """A network, and the values of torrc's DirAuthority and FallbackDir."""
    names = ["middle", "guard0", "guard1", "guard2", "exit0", "exit1"]
    names += ["able0", "able1", "able2"] if is_wide else []
    signers = make_authorities()
    seen = Recording(
        dict(zip(names, fresh_relays(len(names)), strict=True)), [one.v3ident for one in signers]
    )
    service = DirectoryService()
    async with AsyncExitStack() as stack:
        docs = []
        for name, relay in seen.relays.items():
            relay.protocols = {"middle": WITHOUT_CGO, "exit0": of_exits, "exit1": of_exits}.get(
                name, PROTOCOLS
            )
            relay.hosts = {NAME: [ADDRESS], REVERSE_NAME: [NAME]}
            relay.on_data = answer_request
            relay.on_begin = _begin
            relay.directory = service
            relay.on_wire = seen.note_wire
            relay.on_link_cell = lambda *cell: seen.link_cells.append(LinkCell(*cell))
            relay.on_relay_cell = seen.note
            relay.on_begin_dir = ignore  # see Recording.note
            relay.cc_xoff_client = XOFF_LIMIT if is_wide else relay.cc_xoff_client
            await stack.enter_async_context(serve(relay))
            flags = {"g": "Guard", "e": "Exit"}.get(name[0], "")
            policy = "accept 80,443" if flags == "Exit" else None
            doc = doc_of(relay, name, flags=flags, policy=policy)
            ipv6 = None if flags else "[2001:db8::7]:9001"
            bandwidth = 1 if is_wide and name == "middle" else doc.bandwidth
            docs.append(
                replace(doc, protocols=relay.protocols, policy6=policy, ipv6=ipv6, bandwidth=bandwidth)
            )
        params = f"{PARAMS} cc_xoff_client={XOFF_LIMIT}" if is_wide else PARAMS
        docs += [_idle(number) for number in range(IDLE_COUNT if is_wide else 0)]
        old, new = (
            consensus(docs, signers, valid_after=begin, lifetime=lifetime, params=params, weights=WEIGHTS)
            for begin in (valid_after, valid_after + 2 * lifetime // 3)
        )
        service.consensus, service.diff = old, consensus_diff(old, new)
        service.certificates = b"".join(one.certificate() for one in signers)
        service.hold(docs)
        fallback = seen.relays["middle"]
        host, or_port = fallback.address
        dir_authorities = [
            f"{one.nickname} orport={relay.address[1]} no-v2 v3ident={one.v3ident.hex()} "
            f"{host}:{relay.address[1]} {relay.rsa_identity.hex()}"
            for one, relay in zip(signers, seen.relays.values(), strict=False)
        ]
        yield seen, dir_authorities, f"{host}:{or_port} orport={or_port} id={fallback.rsa_identity.hex()}"


def _idle(number: int) -> RelayDoc:
    """A relay of no weight, which is not there."""
    key = bytes([number + 1]) * 32
    return RelayDoc(
        f"idle{number}",
        key[:20],
        HOST,
        flags="Running Valid",
        bandwidth=0,
        ntor_onion_key=key,
        ed25519_identity=key,
    )


def _begin(stream: FakeStream) -> None:
    """Connected at once, except to LATE_NAME."""
    if stream.target != (LATE_NAME, 80):
        stream.connected()


def answer_request(stream: FakeStream, _: bytes) -> None:
    """What the web server behind the exits does."""
    if stream.received == REQUEST:
        stream.write(bytes(ANSWER_LEN))
        stream.finish()
    elif stream.received == SLOW_REQUEST:
        stream.write(bytes(SLOW_LEN))


# --- What the clients are asked for --------------------------------------------------------------------


async def _use(seen: Recording, port: int, process: subprocess.Popen[bytes]) -> None:
    """A download that the server ends; an upload that the client ends, and finds all there at its first read;
    names looked up while another stream, on which the client has sent already, waits for its answer; a
    circuit cut off.

    Before the newer consensus is asked for, relays end what circuits of one hop the bootstrap has left.
    """
    await wait_until(lambda: seen.requests(b"/tor/micro/"))
    seen.kept = [circuit for circuit in seen.circuits(1) if not circuit.closed]
    for circuit in seen.kept:
        circuit.destroy(FINISHED)
    async with await ask(port, CONNECT, NAME, 80) as stream:
        await stream.send_all(REQUEST)
        received = b""
        while data := await stream.receive_some():
            received += data
        assert len(received) == ANSWER_LEN
    async with await ask(port, CONNECT, NAME, 443) as stream:
        process.send_signal(signal.SIGSTOP)
        await stream.send_all(UPLOAD)
        process.send_signal(signal.SIGCONT)
        await wait_until(lambda: any(one.received == UPLOAD for one in seen.streams()))
    await wait_until(lambda: any(one.hop == 3 for one in seen.messages(RelayCommand.END)))
    async with await _request(port, CONNECT, LATE_NAME, 80, EARLY):
        await wait_until(lambda: len(seen.messages(RelayCommand.BEGIN)) == 3)
        for command, name in (RESOLVE, NAME), (RESOLVE_PTR, ADDRESS):
            async with await ask(port, command, name, 0):
                pass
        (late,) = (one for one in seen.streams() if one.target == (LATE_NAME, 80))
        late.connected()
        await wait_until(lambda: late.received == EARLY)
    await wait_until(lambda: sum(one.hop == 3 for one in seen.messages(RelayCommand.END)) == 2)
    await wait_until(lambda: seen.requests(b"X-Or-Diff-From-Consensus"))
    circuit = seen.messages(RelayCommand.BEGIN)[0].circuit
    circuit.truncated(2)
    await wait_until(lambda: circuit.closed)


async def _use_widely(seen: Recording, port: int, socket_path: Path) -> None:
    """A download that is read late; data for no stream; an onion service that nobody knows."""
    await wait_until(lambda: seen.whole_requests(b"/tor/micro/"))
    async with await ask(port, CONNECT, NAME, 80):
        pass  # it is there
    async with await trio.open_unix_socket(socket_path) as stream:
        await _send_request(stream, CONNECT, NAME, 80, SLOW_REQUEST)
        await wait_until(lambda: any(one.received == SLOW_REQUEST for one in seen.streams()))
        (far,) = (one for one in seen.streams() if one.received == SLOW_REQUEST)
        while not seen.messages(RelayCommand.XOFF):  # which needs data that comes when it is late already
            far.write(bytes(1))
            await trio.sleep(POLL_INTERVAL)
        far.write(REQUEST)  # which waits for XON
        far.finish()
        received = b""
        while data := await stream.receive_some():
            received += data
        assert received.endswith(bytes(SLOW_LEN) + REQUEST)
    async with await ask(port, CONNECT, NAME, 443) as stream:
        (far,) = (one for one in seen.streams() if one.target == (NAME, 443))
        far.circuit.send(3, RelayCommand.DATA, far.id ^ 0x4000, b"for nobody")
        far.write(REQUEST)  # which arrives only where the circuit goes on
        try:
            seen.outlived_breach = await stream.receive_some() == REQUEST
        except trio.BrokenResourceError:
            seen.outlived_breach = False
    async with await _connect(port) as stream:
        await _send_request(stream, CONNECT, ONION, 80)
        await wait_until(lambda: seen.requests(b"/tor/hs/3/"))


async def ask(port: int, command: int, host: str, to_port: int) -> trio.SocketStream:
    """A SOCKS5 request that is granted."""
    stream = await _request(port, command, host, to_port)
    reply = await stream.receive_some(300)
    assert reply[:2] == b"\x05\x00", reply
    return stream


async def _request(port: int, command: int, host: str, to_port: int, more: bytes = b"") -> trio.SocketStream:
    """A SOCKS5 request, with `more` in the same segment."""
    stream = await _connect(port)
    await _send_request(stream, command, host, to_port, more)
    return stream


async def _connect(port: int) -> trio.SocketStream:
    while True:
        with suppress(OSError):  # until it listens
            return await trio.open_tcp_stream(HOST, port)
        await trio.sleep(POLL_INTERVAL)


async def _send_request(
    stream: trio.SocketStream, command: int, host: str, to_port: int, more: bytes = b""
) -> None:
    await stream.send_all(b"\x05\x01\x00")
    assert await stream.receive_some(2) == b"\x05\x00"
    where = b"\x03" + bytes([len(host)]) + host.encode()
    if command == RESOLVE_PTR:
        where = b"\x01" + socket.inet_aton(host)
    await stream.send_all(bytes([5, command, 0]) + where + to_port.to_bytes(2, "big") + more)


async def wait_until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.sleep(POLL_INTERVAL)
