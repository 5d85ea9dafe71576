"""The scriptable relay against a minimal client half: what other tests lean on, checked once.

The client here is the least that can talk to them: ntor and tor1 layers, no windows, no checks
beyond those under test.
"""

import hashlib
import hmac
import inspect
import ssl
import struct
from collections.abc import Callable
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fake_tor import FakeTor

from torkit._fast.cells import Command, RelayCommand
from torkit.client import Tor
from torkit.testing.relay import (
    CC_REQUEST,
    CELL_BODY_LEN,
    NTOR,
    NTOR_V3,
    RELAY_CRYPT_CGO,
    SUBPROTO_REQUEST,
    WITHOUT_CGO,
    WITHOUT_CONGESTION_CONTROL,
    WITHOUT_NTOR_V3,
    Agreement,
    CgoLayer,
    FakeCircuit,
    FakeLink,
    FakeRelay,
    FakeStream,
    HandshakeRefusedError,
    RelayCell,
    aes_ctr,
    answer_begin,
    answer_handshake_ntor_v3,
    decode_extensions,
    encode_cell,
    encode_extensions,
    encode_versions,
    http_response,
    ignore,
    kdf_rfc5869,
    kdf_tor,
    make_chain,
    reference,
    serve_relay,
)

CIRC_ID = 0x80000001
NTOR_V3_VECTOR = {  # proposal 332, "Test vectors"
    "b": "4051daa5921cfa2a1c27b08451324919538e79e788a81b38cbed097a5dff454a",
    "id": "9fad2af287ef942632833d21f946c6260c33fae6172b60006e86e4a6911753a2",
    "y": "4865a5b7689dafd978f529291c7171bc159be076b92186405d13220b80e2a053",
    "client": "9fad2af287ef942632833d21f946c6260c33fae6172b60006e86e4a6911753a2f8307a2bc1870b00"
    "b828bb74dbb8fd88e632a6375ab3bcd1ae706aaa8b6cdd1d252fe9ae91264c91d4ecb8501f79d0387e34ad8ca0f7c995184f7d11d5da4f46"
    "3bebd9151fd3b47c180abc9e044d53565f04d82bbb3bebed3d06cea65db8be9c72b68cd461942088502f67",
    "server": "4bf4814326fdab45ad5184f5518bd7fae25dc59374062698201a50a22954246d2fc5f8773ca824542bc6cf6f57"
    "c7c29bbf4e5476461ab130c5b18ab0a91276651202c3e1e87c0d32054c",
    "keys": "9c19b631fd94ed86a817e01f6c80b0743a43f5faebd39cfaa8b00fa8bcc65c3b",
}


class ClientHop:
    """The client's half of one tor1 layer."""

    def __init__(self, keys: bytes) -> None:
        self.forward_digest, self.backward_digest = hashlib.sha1(keys[:20]), hashlib.sha1(keys[20:40])
        self.forward, self.backward = aes_ctr(keys[40:56]), aes_ctr(keys[56:72])


class Client:
    """A link in the open state and one circuit on it."""

    def __init__(self, relay: FakeRelay) -> None:
        self.link = relay.link()
        self.hops: list[ClientHop] = []
        self.cells: list[tuple[int, bytes]] = []  # (command, body), not yet taken by a test
        self.feed(encode_versions([4, 5]))

    def feed(self, data: bytes) -> None:
        self.take_in(self.link.receive(data))

    def take_in(self, data: bytes) -> None:
        """Frame what the relay said; VERSIONS, which has short ids, is skipped."""
        if not self.cells and data[2:3] == bytes([Command.VERSIONS]):
            data = data[5 + int.from_bytes(data[3:5], "big") :]
        while data:
            command, length, start = data[4], CELL_BODY_LEN, 5
            if command >= 128:
                length, start = int.from_bytes(data[5:7], "big"), 7
            self.cells.append((command, data[start : start + length]))
            data = data[start + length :]

    def pop(self, command: int) -> bytes:
        assert self.cells[0][0] == command
        return self.cells.pop(0)[1]

    def open(self) -> None:
        for command in (Command.CERTS, Command.AUTH_CHALLENGE, Command.NETINFO):
            self.pop(command)

    def create_fast(self) -> None:
        x = bytes(range(20))
        self.feed(encode_cell(CIRC_ID, Command.CREATE_FAST, x))
        reply = self.pop(Command.CREATED_FAST)
        keys = kdf_tor(x + reply[:20], 92)
        assert keys[:20] == reply[20:40]
        self.hops.append(ClientHop(keys[20:]))

    def create(self, relay: FakeRelay) -> None:
        handshake, finish = ntor_client(relay)
        self.feed(encode_cell(CIRC_ID, Command.CREATE2, handshake))
        self.hops.append(ClientHop(finish(self.pop(Command.CREATED2))))

    def extend(self, relay: FakeRelay) -> None:
        handshake, finish = ntor_client(relay)
        self.send(len(self.hops), RelayCommand.EXTEND2, 0, specifiers(relay) + handshake, early=True)
        hop, cell = self.next()
        assert (hop, cell.command) == (len(self.hops), RelayCommand.EXTENDED2)
        self.hops.append(ClientHop(finish(cell.body)))

    def send(
        self, hop: int, command: int, stream_id: int, body: bytes = b"", *, early: bool = False
    ) -> bytes:
        """Send a relay cell; the digest at it, which a SENDME for it would carry."""
        head = struct.pack(">BHHIH", command, 0, stream_id, 0, len(body))
        cell = (head + body).ljust(CELL_BODY_LEN, b"\0")
        target = self.hops[hop - 1]
        target.forward_digest.update(cell)
        digest = target.forward_digest.digest()
        cell = cell[:5] + digest[:4] + cell[9:]
        for layer in reversed(self.hops[:hop]):
            cell = layer.forward.update(cell)
        self.feed(encode_cell(CIRC_ID, Command.RELAY_EARLY if early else Command.RELAY, cell))
        return digest

    def next(self) -> tuple[int, RelayCell]:
        """The next relay cell and its hop; hop 0 where none recognized it."""
        body = self.pop(Command.RELAY)
        for number, hop in enumerate(self.hops, 1):
            body = hop.backward.update(body)
            digest = hop.backward_digest.copy()
            digest.update(body[:5] + bytes(4) + body[9:])
            if body[1:3] == b"\0\0" and digest.digest()[:4] == body[5:9]:
                hop.backward_digest = digest
                command, _, stream_id, _, length = struct.unpack_from(">BHHIH", body)
                return number, RelayCell(command, stream_id, body[11 : 11 + length])
        return 0, RelayCell(0, 0, body)


def ntor_client(relay: FakeRelay) -> tuple[bytes, Callable[[bytes], bytes]]:
    """HTYPE | HLEN | HDATA, and what turns CREATED2's body into key material."""
    x = X25519PrivateKey.generate()
    public = x.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    node_id, onion_key = relay.rsa_identity, relay.ntor_onion_key

    def finish(body: bytes) -> bytes:
        length = int.from_bytes(body[:2], "big")
        server, auth = body[2:34], body[34 : 2 + length]
        protoid = b"ntor-curve25519-sha256-1"
        secret = b"".join(x.exchange(X25519PublicKey.from_public_bytes(key)) for key in (server, onion_key))
        secret += node_id + onion_key + public + server + protoid
        verify = hmac.digest(protoid + b":verify", secret, "sha256")
        auth_input = verify + node_id + onion_key + server + public + protoid + b"Server"
        assert auth == hmac.digest(protoid + b":mac", auth_input, "sha256")
        seed = hmac.digest(protoid + b":key_extract", secret, "sha256")
        return kdf_rfc5869(seed, protoid + b":key_expand", 92)

    handshake = node_id + onion_key + public
    return struct.pack(">HH", NTOR, len(handshake)) + handshake, finish


def specifiers(relay: FakeRelay) -> bytes:
    """IPv4 address, legacy identity and Ed25519 identity, as EXTEND2 wants them."""
    address = bytes(int(part) for part in relay.address[0].split(".")) + struct.pack(">H", relay.address[1])
    fields = ((0, address), (2, relay.rsa_identity), (3, relay.ed_identity))
    return bytes([len(fields)]) + b"".join(bytes([kind, len(data)]) + data for kind, data in fields)


@pytest.fixture
def relays() -> list[FakeRelay]:
    return make_chain(3)


@pytest.fixture
def client(relays: list[FakeRelay]) -> Client:
    """A client with a circuit through all three relays."""
    client = Client(relays[0])
    client.open()
    client.create(relays[0])
    client.extend(relays[1])
    client.extend(relays[2])
    return client


def circuit_of(relay: FakeRelay) -> FakeCircuit:
    return relay.circuits[-1]


def begin(client: Client, stream_id: int = 7) -> None:
    client.send(3, RelayCommand.BEGIN, stream_id, b"example.com:80\0" + bytes(4))
    assert client.next() == (3, RelayCell(RelayCommand.CONNECTED, stream_id, b"\x7f\0\0\x01\0\0\0\x3c"))


# --- Handshakes and certificates -----------------------------------------------------------------------


def test_certificates_form_the_chain_of_tor_spec() -> None:
    relay = FakeRelay()
    certs = dict(relay.make_certs())
    assert sorted(certs) == [2, 4, 5, 7]

    identity = x509.load_der_x509_certificate(certs[2])
    identity.verify_directly_issued_by(identity)
    rsa_key = identity.public_key()
    assert isinstance(rsa_key, RSAPublicKey)
    assert rsa_key.key_size == 1024
    pkcs1 = rsa_key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    assert hashlib.sha1(pkcs1).digest() == relay.rsa_identity

    signing = certs[4][7:39]
    assert certs[4][39:44] == b"\x01\x00\x20\x04\x00"  # one extension: 32 bytes, type 4
    assert certs[4][44:76] == relay.ed_identity
    Ed25519PublicKey.from_public_bytes(relay.ed_identity).verify(certs[4][-64:], certs[4][:-64])
    assert certs[5][7:39] == hashlib.sha256(relay.tls_certificate).digest()
    Ed25519PublicKey.from_public_bytes(signing).verify(certs[5][-64:], certs[5][:-64])

    assert certs[7][:32] == relay.ed_identity
    assert certs[7][36] == 128
    digest = hashlib.sha256(b"Tor TLS RSA/Ed25519 cross-certificate" + certs[7][:36]).digest()
    assert rsa_key.recover_data_from_signature(certs[7][37:], PKCS1v15(), None) == digest  # no DigestInfo


def test_link_handshake_comes_in_order_however_its_bytes_are_cut() -> None:
    relay = FakeRelay()
    link = relay.link()
    versions = encode_versions([4, 5])
    assert all(link.receive(versions[i : i + 1]) == b"" for i in range(len(versions) - 1))
    client = Client(relay)
    client.open()
    assert client.cells == []
    assert client.link.version == 5


def test_edited_certs_reach_the_client() -> None:
    relay = FakeRelay()
    relay.edit_certs = lambda certs: [*certs[1:], certs[1]]
    body = Client(relay).pop(Command.CERTS)
    assert body[0] == 4
    assert body[1] == 4


def test_ntor_v3_agrees_with_the_vector() -> None:
    vector = {name: bytes.fromhex(value) for name, value in NTOR_V3_VECTOR.items()}
    seen: list[bytes] = []

    def reply_to(message: bytes) -> bytes:
        seen.append(message)
        return b"Hola Mundo"

    reply, key_stream = answer_handshake_ntor_v3(
        vector["client"],
        node_id=vector["id"],
        onion_key=X25519PrivateKey.from_private_bytes(vector["b"]),
        ephemeral=X25519PrivateKey.from_private_bytes(vector["y"]),
        reply_to=reply_to,
        verification=b"xyzzy",
    )
    assert seen == [b"hello world"]
    assert reply == vector["server"]
    assert key_stream(32) == vector["keys"]


def test_congestion_control_is_agreed_only_where_both_want_it() -> None:
    relay = FakeRelay()
    asked = encode_extensions([(CC_REQUEST, b"")])
    assert relay.answer_extensions(asked) == Agreement(b"\x01\x02\x01\x1f", congestion_control=True)
    assert relay.answer_extensions(encode_extensions([])) == Agreement(b"\0")
    relay.protocols = WITHOUT_CONGESTION_CONTROL
    assert relay.answer_extensions(asked) == Agreement(b"\0")
    for bad in (b"", b"\x01", b"\0\0", encode_extensions([(3, b""), (1, b"")])):
        with pytest.raises(HandshakeRefusedError):
            decode_extensions(bad)


def test_cgo_is_agreed_only_with_congestion_control_and_where_it_is_advertised() -> None:
    relay = FakeRelay()
    cc, cgo = (CC_REQUEST, b""), (SUBPROTO_REQUEST, RELAY_CRYPT_CGO)
    agreed = relay.answer_extensions(encode_extensions([cc, cgo]))
    assert agreed == Agreement(b"\x01\x02\x01\x1f", congestion_control=True, cgo=True)
    with pytest.raises(HandshakeRefusedError, match="without congestion control"):
        relay.answer_extensions(encode_extensions([cgo]))
    with pytest.raises(HandshakeRefusedError, match="not negotiated"):
        relay.answer_extensions(encode_extensions([cc, (SUBPROTO_REQUEST, b"\x02\x05")]))
    for lacking in (WITHOUT_CGO, "FlowCtrl=1-2 Relay=2-5", "FlowCtrl=1-2 Relay=2-4,6"):
        relay.protocols = lacking
        with pytest.raises(HandshakeRefusedError, match="does not advertise"):
            relay.answer_extensions(encode_extensions([cc, cgo]))


def test_protocols_are_flags_and_ranges_of_them() -> None:
    relay = FakeRelay()
    relay.protocols = "FlowCtrl=1 Relay=2-4,6"
    assert [n for n in range(10) if relay.supports("Relay", n)] == [2, 3, 4, 6]
    assert [n for n in range(10) if relay.supports("FlowCtrl", n)] == [1]
    assert not relay.supports("Link", 4)


def test_ntor_v3_is_refused_where_it_is_not_advertised() -> None:
    relay = FakeRelay()
    relay.protocols = WITHOUT_NTOR_V3
    with pytest.raises(HandshakeRefusedError, match="handshake type 3"):
        relay.handshake(NTOR_V3, bytes(200))


@pytest.mark.parametrize("handshake_type", [NTOR, NTOR_V3])
def test_handshake_for_another_relay_is_destroyed(handshake_type: int) -> None:
    client = Client(FakeRelay())
    client.open()
    body = struct.pack(">HH", handshake_type, 128) + bytes(128)
    client.feed(encode_cell(CIRC_ID, Command.CREATE2, body))
    assert client.pop(Command.DESTROY)[0] == 1
    assert client.link.relay.complaints


# --- Circuits and streams ------------------------------------------------------------------------------


def test_create_fast_circuit_serves_a_directory_request() -> None:
    relay = FakeRelay()
    requests: list[bytes] = []

    def directory(request: bytes) -> bytes:
        requests.append(request)
        return http_response(b"x" * 1000)

    relay.directory = directory
    client = Client(relay)
    client.open()
    client.create_fast()
    client.send(1, RelayCommand.BEGIN_DIR, 3)
    client.send(1, RelayCommand.DATA, 3, b"GET /tor/status HTTP/1.0\r\n")
    client.send(1, RelayCommand.DATA, 3, b"\r\n")
    cells = [client.next()[1] for _ in range(len(client.cells))]
    assert [cell.command for cell in cells] == [4, 2, 2, 2, 3]  # CONNECTED, DATA, DATA, DATA, END
    assert b"".join(cell.body for cell in cells[1:-1]) == http_response(b"x" * 1000)
    assert requests == [b"GET /tor/status HTTP/1.0\r\n\r\n"]
    assert relay.complaints == []


def test_three_hop_chain_echoes_and_ends(relays: list[FakeRelay], client: Client) -> None:
    def echo_and_end(stream: FakeStream, data: bytes) -> None:
        stream.write(data)
        stream.finish()

    relays[2].on_data = echo_and_end
    begin(client)
    stream = circuit_of(relays[2]).streams[7]
    assert stream.target == ("example.com", 80)
    client.send(3, RelayCommand.DATA, 7, b"hello")
    assert client.next() == (3, RelayCell(RelayCommand.DATA, 7, b"hello"))
    assert client.next() == (3, RelayCell(RelayCommand.END, 7, b"\x06"))
    assert circuit_of(relays[0]) is circuit_of(relays[2])
    assert [relay.complaints for relay in relays] == [[], [], []]


def test_resolve_answers_from_the_hosts_table(relays: list[FakeRelay], client: Client) -> None:
    relays[2].hosts["example.com"] = ["192.0.2.1", "2001:db8::1"]
    client.send(3, RelayCommand.RESOLVE, 9, b"example.com\0")
    v4 = b"\x04\x04\xc0\x00\x02\x01" + b"\0\0\0\x3c"
    v6 = b"\x06\x10" + bytes.fromhex("20010db8000000000000000000000001") + b"\0\0\0\x3c"
    assert client.next() == (3, RelayCell(RelayCommand.RESOLVED, 9, v4 + v6))
    client.send(3, RelayCommand.RESOLVE, 10, b"nowhere\0")
    assert client.next()[1].body[0] == 0xF1


def test_upload_earns_sendmes_with_the_digest_of_the_cell(relays: list[FakeRelay], client: Client) -> None:
    begin(client)
    tags = [client.send(3, RelayCommand.DATA, 7, b"x") for _ in range(200)]
    cells = [client.next()[1] for _ in range(len(client.cells))]
    circuit_level = [cell.body for cell in cells if cell.stream_id == 0]
    assert circuit_level == [b"\x01\x00\x14" + tags[99], b"\x01\x00\x14" + tags[199]]
    assert sum(cell.stream_id == 7 for cell in cells) == 4  # one SENDME in 50 cells
    assert relays[2].complaints == []


def test_download_stops_at_the_windows_and_goes_on_after_sendmes(
    relays: list[FakeRelay], client: Client
) -> None:
    begin(client)
    circuit = circuit_of(relays[2])
    circuit.streams[7].write(bytes(498 * 600))
    client.take_in(client.link.take())
    assert len(client.cells) == 500
    tags = []
    for _ in range(500):
        client.next()
        tags.append(client.hops[2].backward_digest.digest())
    client.send(3, RelayCommand.SENDME, 7)
    assert len(client.cells) == 50
    for at in range(5):
        client.send(3, RelayCommand.SENDME, 0, b"\x01\x00\x14" + tags[100 * at + 99])
    assert circuit.hops[2].package_window == 1000 - 550 + 500
    assert relays[2].complaints == []


@pytest.mark.parametrize("tag", [bytes(20), b""])
def test_wrong_tag_from_the_client_closes_its_circuit(
    relays: list[FakeRelay], client: Client, tag: bytes
) -> None:
    begin(client)
    circuit_of(relays[2]).streams[7].write(bytes(498 * 100))
    client.send(3, RelayCommand.SENDME, 0, b"\x01" + struct.pack(">H", len(tag)) + tag)
    assert client.cells[-1][0] == Command.DESTROY
    assert relays[2].complaints == ["a SENDME with a wrong tag"]


def test_sendme_or_data_too_many_from_the_client_closes_its_circuit(
    relays: list[FakeRelay], client: Client
) -> None:
    relays[2].on_sendme_due = ignore
    relays[2].on_stream_sendme_due = ignore
    begin(client)
    for _ in range(501):
        client.send(3, RelayCommand.DATA, 7, b"x")
    assert relays[2].complaints == ["DATA beyond the stream's window"]
    assert client.pop(Command.DESTROY)[0] == 1


def test_hop_with_congestion_control_takes_xon_and_xoff_and_no_stream_sendmes(
    relays: list[FakeRelay], client: Client
) -> None:
    begin(client)
    relays[2].cc_xoff_client = 1
    circuit_of(relays[2]).hops[2].use_congestion_control()
    stream = circuit_of(relays[2]).streams[7]
    tags = [client.send(3, RelayCommand.DATA, 7, b"x") for _ in range(62)]
    for tag in (tags[30], tags[61]):
        assert client.next() == (3, RelayCell(RelayCommand.SENDME, 0, b"\x01\x00\x14" + tag))
    stream.write(bytes(488))
    client.take_in(client.link.take())
    client.next()
    client.send(3, RelayCommand.XOFF, 7, b"\0")
    stream.write(b"later")
    assert client.link.take() == b""
    client.send(3, RelayCommand.XON, 7, b"\0\0\0\1\0")
    assert stream.rates == [256]
    assert client.next() == (3, RelayCell(RelayCommand.DATA, 7, b"later"))
    client.send(3, RelayCommand.SENDME, 7)
    assert relays[2].complaints == ["a stream SENDME under congestion control"]


@pytest.mark.parametrize(
    ("length", "xoffs", "complaint"),
    [
        (487, 1, "XOFF before the data that could have caused it"),
        (3 * 488, 2, "XOFF in XOFF"),
    ],
)
def test_xoff_too_early_or_twice_from_the_client_closes_its_circuit(
    relays: list[FakeRelay], client: Client, length: int, xoffs: int, complaint: str
) -> None:
    begin(client)
    relays[2].cc_xoff_client = 1
    circuit_of(relays[2]).hops[2].use_congestion_control()
    circuit_of(relays[2]).streams[7].write(bytes(length))
    client.take_in(client.link.take())
    for _ in range(xoffs):
        client.send(3, RelayCommand.XOFF, 7, b"\0")
    assert relays[2].complaints == [complaint]


CGO_KEYS = bytes(range(160))


def cgo_pair() -> tuple[reference.CgoLayer, CgoLayer]:
    """The client's layer and the fake relay's, from the same keys."""
    return reference.CgoLayer(CGO_KEYS), CgoLayer(CGO_KEYS)


@pytest.mark.parametrize(
    ("cell", "head"),
    [
        (RelayCell(RelayCommand.DATA, 7, b"hello"), b"\x02\0\x05\0\x07hello"),
        (RelayCell(RelayCommand.SENDME, 0, b"tag"), b"\x05\0\x03tag"),  # no room for a stream id
    ],
)
def test_cgo_cell_has_format_v1_both_ways(cell: RelayCell, head: bytes) -> None:
    client, relay = cgo_pair()
    sealed, tag = relay.originate(Command.RELAY, cell)
    assert len(tag) == 16
    opened, client_tag = client.client_backward(Command.RELAY, sealed)
    assert client_tag == tag
    assert opened[16:].startswith(head + bytes(4))

    sealed, tag = client.client_originate(Command.RELAY, bytes(16) + head.ljust(493, b"\0"))
    opened, relay_tag = relay.open_forward(Command.RELAY, sealed)
    assert relay_tag == tag
    assert relay.decode(opened, early=False) == cell


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (b"\x02\0\x05\0\0hello", "without a stream id"),
        (b"\x63\0\0", "unknown relay command 99"),
        (b"\x00\0\0", "unknown relay command 0"),
        (b"\x02\x01\xe9\0\x07", "announces 489 bytes"),
        (b"\x05\x01\xeb", "announces 491 bytes"),
        (b"\x05\0\0\0\0\0\1", "padding"),
    ],
)
def test_malformed_v1_cell_from_the_client_is_a_breach(message: bytes, complaint: str) -> None:
    client, relay = cgo_pair()
    sealed, _ = client.client_originate(Command.RELAY, bytes(16) + message.ljust(493, b"\0"))
    opened, _ = relay.open_forward(Command.RELAY, sealed)
    with pytest.raises(ValueError, match=complaint):
        relay.decode(opened, early=False)


def test_cgo_cell_is_recognized_under_its_own_command_only() -> None:
    for arrives_as, is_recognized in ((Command.RELAY, False), (Command.RELAY_EARLY, True)):
        client, relay = cgo_pair()
        sealed, _ = client.client_originate(Command.RELAY_EARLY, bytes(509))
        assert (relay.open_forward(arrives_as, sealed)[1] is not None) == is_recognized


def test_streams_of_a_circuit_share_its_window(relays: list[FakeRelay], client: Client) -> None:
    for stream_id in (7, 8, 9):
        begin(client, stream_id)
    for stream in circuit_of(relays[2]).streams.values():
        stream.write(bytes(498 * 400))
    client.take_in(client.link.take())
    assert len(client.cells) == 1000


def test_stream_sendme_too_many_from_the_client_closes_its_circuit(
    relays: list[FakeRelay], client: Client
) -> None:
    begin(client)
    client.send(3, RelayCommand.SENDME, 7)
    assert relays[2].complaints == ["a stream SENDME too many"]


def test_ninth_relay_early_cell_closes_its_circuit(relays: list[FakeRelay], client: Client) -> None:
    for _ in range(6):  # two went into EXTEND2
        client.send(3, RelayCommand.DROP, 0, early=True)
    assert relays[0].complaints == []
    client.send(3, RelayCommand.DROP, 0, early=True)
    assert relays[0].complaints == ["more than 8 RELAY_EARLY cells"]


def test_extend_to_another_ed25519_identity_is_destroyed(relays: list[FakeRelay]) -> None:
    client = Client(relays[0])
    client.open()
    client.create(relays[0])
    relays[1].ed_identity, wanted = bytes(32), relays[1].ed_identity
    handshake, _ = ntor_client(relays[1])
    body = specifiers(relays[1])[:-32] + wanted + handshake
    client.send(1, RelayCommand.EXTEND2, 0, body, early=True)
    assert client.pop(Command.DESTROY)[0] == 7


def test_extend_outside_relay_early_is_a_breach(relays: list[FakeRelay]) -> None:
    client = Client(relays[0])
    client.open()
    client.create(relays[0])
    client.send(1, RelayCommand.EXTEND2, 0, specifiers(relays[1]) + ntor_client(relays[1])[0])
    assert relays[0].complaints == ["EXTEND2 outside RELAY_EARLY"]


# --- Misbehaviour --------------------------------------------------------------------------------------


def test_data_from_the_wrong_hop_and_relay_early_reach_the_client(
    relays: list[FakeRelay], client: Client
) -> None:
    circuit = circuit_of(relays[2])
    begin(client)

    circuit.send(1, RelayCommand.DATA, 7, b"from the wrong hop")
    client.take_in(client.link.take())
    assert client.next() == (1, RelayCell(RelayCommand.DATA, 7, b"from the wrong hop"))

    circuit.send(3, RelayCommand.DROP, early=True)
    client.take_in(client.link.take())
    client.pop(Command.RELAY_EARLY)


@pytest.mark.parametrize("spoil", [{"wrong_digest": True}, {"flip_bit": 8 * 200}, {"recognized": 1}])
def test_spoilt_cell_is_recognized_by_no_hop(
    relays: list[FakeRelay], client: Client, spoil: dict[str, Any]
) -> None:
    circuit_of(relays[2]).send(3, RelayCommand.DROP, 0, bytes(400), **spoil)
    client.take_in(client.link.take())
    assert client.next()[0] == 0


def test_held_cell_can_be_replayed_and_reordered(relays: list[FakeRelay], client: Client) -> None:
    begin(client)
    circuit = circuit_of(relays[2])
    held = circuit.send(3, RelayCommand.DATA, 7, b"once", hold=True)
    assert client.link.take() == b""
    client.link.push(held + held)
    client.take_in(client.link.take())
    assert client.next()[0] == 3
    assert client.next()[0] == 0  # the replay decrypts to noise


def test_handlers_can_be_silent_or_answer_twice(relays: list[FakeRelay], client: Client) -> None:
    relays[2].on_begin = ignore
    client.send(3, RelayCommand.BEGIN, 8, b"example.com:80\0")
    assert client.cells == []

    def twice(stream: FakeStream) -> None:
        answer_begin(stream)
        answer_begin(stream)

    relays[2].on_begin = twice
    client.send(3, RelayCommand.BEGIN, 9, b"example.com:80\0")
    assert [client.next()[1].command for _ in range(2)] == [RelayCommand.CONNECTED] * 2


def test_truncated_and_destroy_reach_the_client(relays: list[FakeRelay], client: Client) -> None:
    circuit = circuit_of(relays[2])
    circuit.truncated(2, 6)
    circuit.destroy(12)
    client.take_in(client.link.take())
    assert client.next() == (2, RelayCell(RelayCommand.TRUNCATED, 0, b"\x06"))
    assert client.pop(Command.DESTROY)[0] == 12


# --- Over TLS ------------------------------------------------------------------------------------------


async def connect(address: tuple[str, int]) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    stream = trio.SSLStream(await trio.open_tcp_stream(*address), context, https_compatible=True)
    await stream.do_handshake()
    return stream


async def receive_until(stream: trio.SSLStream[trio.SocketStream], length: int) -> bytes:
    data = b""
    while len(data) < length and (more := await stream.receive_some()):
        data += bytes(more)
    return data


async def test_relay_over_tls_shows_the_certificate_its_certs_vouch_for() -> None:
    relay = FakeRelay()
    async with serve_relay(relay) as address:
        stream = await connect(address)
        await stream.send_all(encode_versions([4, 5]))
        data = await receive_until(stream, 11 + 514)
        assert data[:11] == encode_versions([3, 4, 5])
        assert stream.getpeercert(binary_form=True) == relay.tls_certificate
        relay.links[0].send_cell(0, Command.PADDING, b"unasked")
        assert b"unasked" in await receive_until(stream, 514)
        await stream.aclose()


@pytest.mark.parametrize("abrupt", [False, True])
async def test_relay_over_tls_can_close_in_mid_cell(abrupt: bool) -> None:
    relay = FakeRelay()

    def half_a_cell(link: FakeLink) -> None:
        link.push(encode_cell(0, Command.NETINFO)[:100])
        link.close(abrupt=abrupt)

    relay.on_versions = half_a_cell
    async with serve_relay(relay) as address:
        stream = await connect(address)
        await stream.send_all(encode_versions([4]))
        assert await receive_until(stream, 514) == encode_cell(0, Command.NETINFO)[:100]
        await stream.aclose()


# --- The client that commands are tested with -------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("request", "connect", "resolve", "new_identity", "wait_ready", "progress_changes"),
        *("choose_path", "build_circuit"),
    ],
)
def test_the_fake_client_takes_what_the_client_takes(name: str) -> None:
    fake, real = (inspect.signature(getattr(one, name)).parameters for one in (FakeTor, Tor))
    assert [(p.name, p.kind, p.default) for p in fake.values()] == [
        (p.name, p.kind, p.default) for p in real.values()
    ]
