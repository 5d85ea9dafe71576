"""A scripted network in a thread, whose exits lead to servers of this machine, for programs without trio.

with running_network(tmp_path) as network:
    network.servers["web.test"] = port         where the exits connect a stream to web.test; else they refuse
    network.servers["web.test:443"] = other    the same for one port of it
    network.exits["mute.test"] = ignore        what they do in place of that
"""

import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from served import ServedNetwork, serve_network

from torkit.config import Network
from torkit.errors import EndReason
from torkit.testing.relay import FakeStream
from torkit.testnet.in_thread import kept_open

HOST = "127.0.0.1"
NAMES = ("web.test", "example.com")  # of the server that speaks TLS


@dataclass
class RunningNetwork:
    """What happens at the exits. Their handlers run in the network's thread."""

    file: Path
    servers: dict[str, int] = field(default_factory=dict)
    exits: dict[str, Callable[[FakeStream], object]] = field(default_factory=dict)
    answers: dict[str, Callable[[FakeStream], object]] = field(default_factory=dict)  # to what is sent there
    begun: list[tuple[str, int]] = field(default_factory=list)  # an entry for each stream: where to
    circuits: list[int] = field(default_factory=list)  # and one that tells its circuit from others
    ended: list[str] = field(default_factory=list)  # whose streams the client has ended

    def _serve(self, nursery: trio.Nursery, network: ServedNetwork) -> None:
        inputs: dict[FakeStream, trio.MemorySendChannel[bytes]] = {}

        def begin(stream: FakeStream) -> None:
            assert stream.target is not None
            host, port = stream.target
            self.begun.append(stream.target)
            self.circuits.append(id(stream.circuit))
            if host in self.exits:
                self.exits[host](stream)
            elif (server := self.servers.get(f"{host}:{port}", self.servers.get(host))) is not None:
                send, receive = trio.open_memory_channel[bytes](100_000)
                inputs[stream] = send
                nursery.start_soon(_connect, stream, server, receive)
            else:
                stream.end(EndReason.CONNECTREFUSED)

        def take(stream: FakeStream, data: bytes) -> None:
            assert stream.target is not None
            if stream in inputs:
                inputs[stream].send_nowait(bytes(data))
            elif stream.target[0] in self.answers:
                self.answers[stream.target[0]](stream)

        def end(stream: FakeStream, _: bytes) -> None:
            assert stream.target is not None
            self.ended.append(stream.target[0])
            if stream in inputs:
                inputs.pop(stream).close()

        for name, relay in network.relays.items():
            if name.startswith("exit"):
                relay.on_begin, relay.on_data, relay.on_end = begin, take, end


async def _connect(stream: FakeStream, port: int, inputs: trio.MemoryReceiveChannel[bytes]) -> None:
    try:
        server = await trio.open_tcp_stream(HOST, port)
    except OSError:
        stream.end(EndReason.CONNECTREFUSED)
        return
    stream.connected("192.0.2.1")

    async def download() -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in server:
                stream.write(bytes(data))
            stream.finish()

    async with server, trio.open_nursery() as nursery:
        nursery.start_soon(download)
        with suppress(trio.BrokenResourceError):
            async for data in inputs:
                await server.send_all(data)
        nursery.cancel_scope.cancel()


def write_network(network: Network, path: Path) -> Path:
    """The file that describes a network of scripted relays."""
    voters = [
        f"'{one.nickname} v3ident={v3ident.hex()} {one.address}:{one.dir_port} {one.fingerprint.hex()}'"
        for v3ident, one in ((one.v3ident, one) for one in network.authorities)
        if v3ident is not None
    ]
    fallbacks = [f"'{one.address} orport={one.or_port} id={one.identity.hex()}'" for one in network.fallbacks]
    path.write_text(
        f"authorities = [{', '.join(voters)}]\nfallbacks = [{', '.join(fallbacks)}]\n"
        "testing = true\ndistinct_subnets = false\n"
    )
    return path


@contextmanager
def running_network(directory: Path, *, exits: int = 2) -> Iterator[RunningNetwork]:
    with kept_open(_serve_network(directory, exits), "scripted network") as (network, _):
        yield network


@asynccontextmanager
async def _serve_network(directory: Path, exits: int) -> AsyncIterator[RunningNetwork]:
    async with serve_network(exits=exits, ports="1-65535") as served, trio.open_nursery() as nursery:
        running = RunningNetwork(write_network(served.config, directory / "network.toml"))
        running._serve(nursery, served)
        yield running
        nursery.cancel_scope.cancel()


@cache
def _certified() -> tuple[bytes, bytes]:
    """A certificate for web.test and example.com, signed by itself, and its key: PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAMES[0])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in NAMES]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def tls_contexts(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """That of a server which is one of NAMES, and that of a client which believes it.

    `directory/web.test.pem` is what another program has to believe.
    """
    certificate, key = _certified()
    (directory / "web.test.key").write_bytes(key)
    (directory / "web.test.pem").write_bytes(certificate)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "web.test.pem", directory / "web.test.key")
    return server, ssl.create_default_context(cadata=certificate.decode())
