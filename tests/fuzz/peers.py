"""What a relay sends, what a proxy's client and another proxy send: bytes as they come, in any pieces.

What is signed or sealed is made right again after each change, so that changes reach what lies behind.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address

from fuzz.world import KINDS, World, pieces
from proto.test_certs import (
    GOOD,
    NOW,
    TLS_DIGEST,
    ed25519_key,
    public,
    relay_identity,
    rsa_crosscert,
    rsa_key,
    signing_cert,
    tls_cert,
)
from proto.test_socks import CONVERSATIONS

from torkit._fast.cells import Command, RelayCommand
from torkit._fast.equix import HashX, verify
from torkit._fast.keys import RsaCertificate
from torkit._fast.memory import held
from torkit.errors import ChannelError, CircuitError, TorkitError
from torkit.hs.messages import (
    decode_introduce_ack,
    decode_rendezvous2,
    introduce_header,
    introduce_plaintext,
)
from torkit.hs.service_messages import decode_intro_established, decode_introduce2, decode_invitation
from torkit.proto import messages
from torkit.proto.cells import decode_certs
from torkit.proto.certs import CertType, decode_ed25519_cert, verify_certs
from torkit.proto.channel import LinkHandshake
from torkit.proto.flow import (
    XOFF,
    ClockGuard,
    CongestionParams,
    DrainWatch,
    StreamParams,
    Vegas,
    XoffCheck,
    Xon,
)
from torkit.proto.request import Command as Wish
from torkit.proto.request import Request
from torkit.proto.socks import Handshake, State
from torkit.proto.socks_client import Conversation, Credentials
from torkit.testing.relay import encode_cell, encode_versions

# --- link cells ------------------------------------------------------------------------------------------


def check_cells(data: bytes) -> None:
    """However the bytes of a link are cut, the same comes of them; and all that they took is given back."""
    before = held()
    whole, cut = World(KINDS[0], is_versioned=False), World(KINDS[0], is_versioned=False)
    assert whole.feed(data, [len(data)]) == cut.feed(data, pieces(data))
    assert whole.state() == cut.state()
    whole.end()
    cut.end()
    assert held() == before


def _link() -> bytes:
    world = World(KINDS[0])
    cells = [
        encode_cell(0, Command.PADDING),
        encode_cell(0, Command.VPADDING, b"abc"),
        encode_cell(world.way.circuit.id, Command.CREATED2, b"\0\1x"),
        world.seal(2, RelayCommand.CONNECTED, 1, b""),
        world.seal(2, RelayCommand.DATA, 1, b"hello"),
        world.seal(0, RelayCommand.DROP, 0, b""),
        encode_cell(world.way.circuit.id, Command.DESTROY, b"\1"),
    ]
    world.end()
    return encode_versions([4, 5]) + b"".join(cells)


LINK = _link()

# --- relay messages, as a layer has opened them ----------------------------------------------------------

AUTH_KEY = bytes(range(32))

# What each message is read by, where it is for a client or a service.
DECODERS: dict[int, Callable[[bytes], object]] = {
    RelayCommand.CONNECTED: messages.decode_connected,
    RelayCommand.END: messages.decode_end,
    RelayCommand.RESOLVED: messages.decode_resolved,
    RelayCommand.EXTENDED2: messages.decode_extended2,
    RelayCommand.TRUNCATED: messages.decode_truncated,
    RelayCommand.XON: messages.decode_xon,
    RelayCommand.XOFF: messages.decode_xoff,
    RelayCommand.BEGIN: messages.decode_begin_service,
    RelayCommand.INTRODUCE_ACK: decode_introduce_ack,
    RelayCommand.RENDEZVOUS2: decode_rendezvous2,
    RelayCommand.INTRO_ESTABLISHED: decode_intro_established,
    RelayCommand.INTRODUCE2: lambda body: decode_introduce2(body, AUTH_KEY),
    RelayCommand.INTRODUCE1: decode_invitation,  # what is sealed in it
}
IS_EARLY, IS_LONG, TAKES, CLOSES, PUTS = 4, 8, 16, 32, 64  # beside the number of a hop


def records(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """What happens and the hop, the command, a stream's name, and a body of up to 510 bytes."""
    at = 0
    while at + 4 <= len(data):
        what, command, name, half = data[at : at + 4]
        yield what, command, name, data[at + 4 : at + 4 + 2 * half]
        at += 4 + 2 * half


def record(what: int, command: int, name: int = 0, body: bytes = b"") -> bytes:
    return bytes([what, command, name, (len(body) + 1) // 2]) + body + bytes(len(body) % 2)


def check_relay(data: bytes) -> None:
    """Whatever a hop says, its circuit alone ends by it, once."""
    if not data:
        return
    before = held()
    world = World(KINDS[data[0] % len(KINDS)])
    for what, command, name, body in records(data[1:]):
        if what & PUTS:
            world.stream.put(body)
        if what & CLOSES:
            world.way.circuit.close_stream(world.stream, b"\6", 60.0)
        if what & TAKES:
            world.stream.take()
        length = int.from_bytes(body[:2], "big") if what & IS_LONG else None
        cell = world.seal(what & 3, command, name, body, early=bool(what & IS_EARLY), length=length)
        for kind, whose, *told in world.feed(cell):
            assert whose == (world.stream.id if kind == "writable" else world.way.circuit.id)
            if kind == "message" and told[1] in DECODERS:
                with suppress(CircuitError):
                    DECODERS[told[1]](told[3])
        assert world.stream.queued < 1 << 20
        world.flush()
    world.check_neighbour()
    world.end()
    assert held() == before


MESSAGES = (
    record(2, RelayCommand.CONNECTED, 1, bytes([192, 0, 2, 1]) + bytes(4)),
    record(2, RelayCommand.DATA, 1, b"hello"),
    record(2 | TAKES | PUTS, RelayCommand.DATA, 1, bytes(490)),
    record(2, RelayCommand.XOFF, 1, b"\0"),
    record(2, RelayCommand.XON, 1, bytes(5)),
    record(2, RelayCommand.SENDME, 0, b"\1\0\x14" + bytes(20)),
    record(0, RelayCommand.TRUNCATED, 0, b"\1"),
    record(1, RelayCommand.EXTENDED2, 0, b"\0\2ab"),
    record(2, RelayCommand.RESOLVED, 2, b"\4\4\1\2\3\4\0\0\0\1"),
    record(2 | CLOSES, RelayCommand.END, 1, b"\6"),
    record(2, RelayCommand.BEGIN, 9, b":80\0"),
    record(0, RelayCommand.DROP),
    record(2 | IS_LONG, RelayCommand.DATA, 1, b"\1\xe8"),  # as long as fits both formats
    record(IS_LONG, RelayCommand.TRUNCATED, 0, b"\1\xf2"),
)
RELAY = [bytes([kind]) + b"".join(MESSAGES) for kind in range(len(KINDS))]
RELAY += [bytes([at % len(KINDS)]) + message for at, message in enumerate(MESSAGES)]


def check_message(data: bytes) -> None:
    """The first byte is the command."""
    if data and data[0] in DECODERS:
        DECODERS[data[0]](data[1:])


RESOLVED = bytes([RelayCommand.RESOLVED]) + b"\4\4\1\2\3\4\0\0\0\1\0\3web\0\0\0\1\xf0\0\0\0\0\1"
INVITATION = introduce_plaintext(
    cookie=bytes(20),
    onion_key=AUTH_KEY,
    link_specifiers=messages.encode_link_specifiers(
        [(IPv4Address("192.0.2.1"), 9001)], rsa_identity=bytes(20), ed25519_identity=AUTH_KEY
    ),
    extensions={1: b"", 2: b"\1" + bytes(16) + bytes(4) + bytes(4) + bytes(16)},
    header_len=55,
)
MEETINGS = (
    bytes([RelayCommand.INTRODUCE1]) + INVITATION,
    bytes([RelayCommand.INTRODUCE2]) + introduce_header(AUTH_KEY) + bytes(32) + INVITATION[:9] + bytes(32),
    bytes([RelayCommand.RENDEZVOUS2]) + bytes(64),
    bytes([RelayCommand.INTRODUCE_ACK]) + bytes(3),
    bytes([RelayCommand.XON]) + bytes(5),
)


def check_equix(data: bytes) -> None:
    """A number, a solution, and HashX's seed: the compiled program and the one that is read say the same."""
    number, solution, seed = int.from_bytes(data[:8], "big"), data[8:24].ljust(16, b"\0"), data[24:]
    quick, slow = HashX(), HashX(portable=True)
    is_made = quick.make(seed)
    assert slow.make(seed) == is_made
    if is_made:
        assert quick.hash(number) == slow.hash(number)
    verify(seed, solution)


EQUIX = bytes(24) + b"challenge"


# --- certificates and the link handshake -----------------------------------------------------------------

IDENTITY, SIGNING = ed25519_key("relay"), ed25519_key("relay signing")
UNSIGNED = {
    CertType.RSA_ID_X509: b"",  # in whose place the good one comes
    CertType.IDENTITY_V_SIGNING: signing_cert(IDENTITY, SIGNING)[:-64],
    CertType.SIGNING_V_TLS_CERT: tls_cert(SIGNING)[:-64],
    CertType.RSA_ID_V_IDENTITY: rsa_crosscert(public(IDENTITY), rsa_key("relay"))[:36],
}


def sign(cert_type: int, cert: bytes) -> bytes:
    match cert_type:
        case CertType.RSA_ID_X509:
            return cert or GOOD.certs[2]
        case CertType.IDENTITY_V_SIGNING:
            return cert + IDENTITY.sign(cert)
        case CertType.SIGNING_V_TLS_CERT:
            return cert + SIGNING.sign(cert)
        case CertType.RSA_ID_V_IDENTITY if len(cert) == 36:
            return rsa_crosscert(cert[:32], rsa_key("relay"), expires_hours=int.from_bytes(cert[32:], "big"))
    return cert


def encode_certs(certs: list[tuple[int, bytes]]) -> bytes:
    return bytes([len(certs)]) + b"".join(struct.pack(">BH", one, len(cert)) + cert for one, cert in certs)


def seal_certs(body: bytes) -> bytes:
    """Each certificate signed as its type says. A body that is none stays as it is."""
    try:
        certs = decode_certs(body)
    except ChannelError:
        return body
    return encode_certs([(one, sign(one, cert)) for one, cert in certs])


def check_certs(body: bytes) -> None:
    """Whatever a CERTS cell says, it is refused or proves the one relay that has the keys."""
    proved = verify_certs(decode_certs(body), tls_certificate_digest=TLS_DIGEST, now=NOW)
    assert proved == relay_identity()


def check_ed25519_cert(body: bytes) -> None:
    cert = decode_ed25519_cert(body)
    assert cert.signed + cert.signature == body
    cert.verify(public(IDENTITY), now=NOW)


def check_x509(der: bytes) -> None:
    try:
        cert = RsaCertificate(der)
    except ValueError:
        return
    assert cert.not_before is not None
    assert cert.not_after is not None
    cert.is_self_signed()
    if cert.key is not None:
        assert cert.key.bits > 0
        cert.key.recover(bytes(cert.key.bits // 8))


def check_handshake(data: bytes) -> None:
    """Cells are (command, length, body). What ends well has proved the relay that we meant."""
    handshake = LinkHandshake(
        expected_rsa=relay_identity().rsa,
        expected_ed25519=relay_identity().ed25519,
        peer_address=IPv4Address("192.0.2.1"),
        tls_certificate_digest=TLS_DIGEST,
        now=NOW,
    )
    handshake.start()
    seen = []
    at = 0
    while at + 3 <= len(data) and handshake.result is None:
        command, length = struct.unpack_from(">BH", data, at)
        body = data[at + 3 : at + 3 + length]
        sent = handshake.receive(command, seal_certs(body) if command == Command.CERTS else body)
        assert [one for one, _ in sent] == ([Command.NETINFO] if command == Command.CERTS else [])
        seen.append(command)
        at += 3 + length
    if handshake.result is not None:
        order = [one for one in seen if one in (Command.VERSIONS, Command.CERTS, Command.NETINFO)]
        assert order == [Command.VERSIONS, Command.CERTS, Command.NETINFO]
        assert handshake.result.peer == relay_identity()


def seal_ed25519(cert: bytes) -> bytes:
    return sign(CertType.IDENTITY_V_SIGNING, cert)


ED25519_CERT = UNSIGNED[CertType.IDENTITY_V_SIGNING]
X509 = GOOD.certs[CertType.RSA_ID_X509]
CERTS = encode_certs([*UNSIGNED.items()])
NETINFO = struct.pack(">I", int(NOW)) + b"\4\4" + bytes(4) + b"\1\4\4" + bytes(4)
HANDSHAKE = b"".join(
    struct.pack(">BH", command, len(body)) + body
    for command, body in (
        (Command.VPADDING, b"x"),
        (Command.VERSIONS, b"\0\3\0\4\0\5"),
        (Command.CERTS, CERTS),
        (Command.AUTH_CHALLENGE, bytes(32) + b"\0\1\0\3"),
        (200, b""),
        (Command.NETINFO, NETINFO),
    )
)

# --- flow control ----------------------------------------------------------------------------------------

VEGAS_NAMES = [
    *("cc_sendme_inc", "cc_cwnd_init", "cc_cwnd_min", "cc_cwnd_max", "cc_cwnd_inc", "cc_cwnd_inc_pct_ss"),
    *("cc_cwnd_inc_rate", "cc_ewma_cwnd_pct", "cc_ewma_max", "cc_ewma_ss", "cc_rtt_reset_pct", "cc_ss_max"),
    *("cc_sscap_exit", "cc_cwnd_full_gap", "cc_cwnd_full_minpct", "cc_cwnd_full_per_cwnd"),
    *("cc_vegas_alpha_exit", "cc_vegas_beta_exit", "cc_vegas_gamma_exit", "cc_vegas_delta_exit"),
]
STREAM_NAMES = ["cc_xoff_client", "cc_xoff_exit", "cc_xon_rate", "cc_xon_change_pct", "cc_xon_ewma_cnt"]


def check_vegas(data: bytes) -> None:
    """First parameters of a consensus, each the number of one and its value; then SENDMEs."""
    count, data = (data[0] % 32, data[1:]) if data else (0, b"")
    chosen = {
        VEGAS_NAMES[number % len(VEGAS_NAMES)]: value
        for number, value in struct.iter_unpack(">Bi", data[: 5 * (min(5 * count, len(data)) // 5)])
    }
    params = CongestionParams.from_params(chosen)
    vegas = Vegas(params, increment=params.sendme_inc, clock=ClockGuard())
    lowest = min(max(params.cwnd_min, params.sendme_inc), params.cwnd_max)
    rest = data[5 * count :]
    for usec, in_flight in struct.iter_unpack(">iI", rest[: 8 * (len(rest) // 8)]):
        vegas.acknowledge(usec / 1e6, in_flight=in_flight >> 1, blocked=bool(in_flight & 1))
        assert lowest <= vegas.window <= params.cwnd_max
        rtt = vegas.rtt
        assert 0 <= rtt.minimum <= max(rtt.ewma, rtt.maximum)
        assert (rtt.ewma == 0) == (rtt.maximum == 0)


def check_stream_flow(data: bytes) -> None:
    """XON and XOFF: what we send alternates, and what a peer may send is bounded by what it had.

    First the parameters, then steps: what, milliseconds, and a count of bytes or a rate.
    """
    values = struct.unpack(">5i", data[:20].ljust(20, b"\0"))
    params = StreamParams.from_params(dict(zip(STREAM_NAMES, values, strict=True)))
    clock = ClockGuard()
    watch, check = DrainWatch(params, clock), XoffCheck(params)
    now, queue, sent, xoffs = 1.0, 0, 0, 0
    rest = data[20:]
    for what, wait, count in struct.iter_unpack(">BHI", rest[: 7 * (len(rest) // 7)]):
        now += wait / 1000
        was_xoff = watch.xoff_sent
        if what % 5 == 0:
            queue += count
            told = watch.queued(queue, now)
            assert told in (None, XOFF)
            assert told is None or not was_xoff
        elif what % 5 == 1:
            taken = min(count, queue)
            queue -= taken
            answer = watch.drained(taken, queue, now)
            assert answer is None or 0 <= answer.kbps_ewma < 1 << 31
            assert not (isinstance(answer, Xon) and was_xoff and queue)
        elif what % 5 == 2:
            check.data_sent(count)
            sent += count
        else:
            try:
                check.xoff() if what % 5 == 3 else check.xon(count)
            except CircuitError:
                return
            xoffs += what % 5 == 3
            assert xoffs * params.xoff_exit <= sent
            assert check.rate is None or 0 < check.rate < 1 << 31


VEGAS = (
    b"\2"
    + struct.pack(">BiBi", 1, 124, 3, 500)
    + b"".join(struct.pack(">iI", 50_000 + 9_000 * at, 248) for at in range(9))
)
STREAM_FLOW = struct.pack(">5i", 500, 500, 500, 25, 2) + b"".join(
    struct.pack(">BHI", *step)
    for step in (
        *((0, 1, 300_000), (0, 9, 30_000), (1, 100, 200_000), (1, 100, 130_000), (2, 0, 300_000), (3, 0, 0)),
        *((4, 0, 100), (0, 1, 20_000), (1, 50, 20_000)),
    )
)

# --- SOCKS, both ways ------------------------------------------------------------------------------------


def check_socks(data: bytes) -> None:
    """However the bytes come, a client gets the same answers, and means the same."""

    def outcome(sizes: list[int]) -> tuple[object, ...]:
        handshake = Handshake()
        left, error = memoryview(data), ""
        for size in sizes:
            piece, left = left[:size], left[size:]
            try:
                if handshake.receive_data(bytes(piece)) is not None:
                    break
            except TorkitError as exc:
                error = str(exc)
                break
        sent, trailing = handshake.data_to_send(), handshake.trailing_data + bytes(left)
        is_over = handshake.state in (State.DONE, State.REFUSED)
        if not is_over:
            handshake.give_up()
        assert bool(error) == (is_over and handshake.request is None)
        assert len(sent) < 32
        return handshake.request, sent, error, b"" if error else trailing

    assert outcome([len(data)]) == outcome(pieces(data))


def check_socks_client(data: bytes) -> None:
    """However a proxy's bytes come, its answer is the same."""

    def outcome(sizes: list[int]) -> tuple[object, ...]:
        asked = Conversation(
            Request(Wish.RESOLVE, "web.test", 0, None, ("ipv4",)), Credentials(b"user", b"password")
        )
        left, error = memoryview(data), ""
        for size in sizes:
            piece, left = left[:size], left[size:]
            try:
                if asked.receive_data(bytes(piece)):
                    break
            except TorkitError as exc:
                error = str(exc)
                break
        trailing = asked.trailing_data + bytes(left)
        return asked.is_complete, asked.answer, asked.data_to_send(), error, b"" if error else trailing

    assert outcome([len(data)]) == outcome(pieces(data))


SOCKS5, SOCKS4 = (CONVERSATIONS[name][0] for name in ("socks5 credentials", "socks4a longest strings"))
PROXY = b"\5\2\1\0\5\0\0\1\xc0\0\2\1\0\0" + b"more"
