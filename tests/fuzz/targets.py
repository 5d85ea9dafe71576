"""What is fuzzed, with something valid, and what must hold of all that is accepted.

Each parser of directory/, those of the proxy's clients, descriptors of onion services layer by layer, what
relays send (peers.py), stories of linked circuits, and of a channel with several circuits.
"""

import gzip
import lzma
import struct
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from random import Random

import h11
import network_docs as nd
from fuzz import peers
from fuzz.channel import check_channel
from fuzz.channel_stories import STORY as CHANNEL_STORY
from fuzz.channel_stories import random_story
from fuzz.linked import check_story
from fuzz.linked_stories import STORY
from hs.making import Service, services

from torkit._fast.hs_ntor import HsNtorClient
from torkit._fast.keys import X25519PrivateKey
from torkit.directory.authorities import parse_certificates
from torkit.directory.compression import decompress
from torkit.directory.consensus import parse_consensus
from torkit.directory.diff import apply_diff
from torkit.directory.directory import Directory
from torkit.directory.extra_info import parse_extra_info
from torkit.directory.microdesc import Microdescs, exit_policies, parse_microdesc, split_microdescs
from torkit.directory.server_descriptor import parse_server_descriptor
from torkit.errors import ChannelError, CircuitError, DocumentError, PeerError, TorkitError
from torkit.hs.descriptor import MAX_LIFETIME, MAX_POINTS, decode_descriptor
from torkit.hs.introduction import relay_of
from torkit.hs.messages import introduce_header
from torkit.hs.pow import choose_effort, make_challenge
from torkit.proto.automap import Automap
from torkit.proto.dns import (
    MAX_ANSWER_LEN,
    Code,
    Type,
    address_of_reverse_name,
    encode_answer,
    parse_query,
)
from torkit.proto.http import Http
from torkit.proto.request import Command
from torkit.testing.directory import consensus_diff, encode_microdescs
from torkit.testing.directory.authority import HOUR

try:
    from compression import zstd  # type: ignore[import-not-found]  # new in Python 3.14
except ImportError:
    from backports import zstd

AUTHORITIES = nd.authorities(3)
RELAYS = nd.full_size(60)[:12]
ROUTER = nd.router(1)
LIMIT = 1 << 20  # bytes that a compressed answer may become


@dataclass(frozen=True)
class Target:
    """`seal` makes of changed text what is sent: signed again, so that changes get past the door.

    `parse` raises nothing but `refusal` for what it refuses; AssertionError where it is wrong.
    """

    valid: bytes
    parse: Callable[[bytes], object]
    seal: Callable[[bytes], bytes] = bytes
    refusal: type[Exception] = DocumentError
    others: tuple[bytes, ...] = ()  # that are valid, too
    examples: int = 150  # changed ones, that `make test` tries

    @property
    def is_text(self) -> bool:
        return b"\0" not in self.valid


def check_consensus(text: bytes) -> None:
    """No entry that was accepted may fail when it is looked at, and the columns say the same."""
    consensus = parse_consensus(text)
    relays = list(consensus.relays)
    assert [one.identity for one in relays] == consensus.relays.identities
    assert [one.digest for one in relays] == consensus.relays.digests
    assert [one.flags for one in relays] == consensus.relays.flags
    assert array("Q", (one.bandwidth for one in relays)) == consensus.relays.bandwidths
    for at, one in enumerate(relays):
        assert at in consensus.relays.indexes_of_nickname(one.nickname)
        assert consensus.relays.index_of(one.identity) == at
    Directory(consensus, {}).is_usable()


def check_microdesc(text: bytes) -> None:
    """The fast road to the policies sees what the whole parser sees."""
    microdesc = parse_microdesc(text)
    assert exit_policies(text) == (microdesc.policy, microdesc.policy6)


def check_microdescs(text: bytes) -> None:
    """What is kept is what a later start finds; the texts are what was sent, but for their annotations."""
    parts = list(split_microdescs(text))
    kept = Microdescs.decode(text)
    assert Microdescs.decode(kept.encode()) == kept
    assert set(kept) == {digest for digest, _, _ in parts}


def check_diff(diff: bytes) -> None:
    """Whatever a diff says, only the text that it names by its digest comes out."""
    assert apply_diff(BASE, diff) == TARGET


def check_content(encoding: str) -> Callable[[bytes], None]:
    def check(body: bytes) -> None:
        assert len(decompress(body, encoding, LIMIT)) <= LIMIT

    return check


def check_http(data: bytes) -> None:
    """However the bytes come, the request is the same, and what goes on can be read in one way only."""
    door = Http()
    request = door.receive_data(data)
    halves = Http()
    middle = len(data) // 2
    again = halves.receive_data(data[:middle]) or halves.receive_data(data[middle:])
    if request is None:
        assert again is None
        return
    assert again is not None
    assert request._replace(forwarded=None) == again._replace(forwarded=None)
    assert data.endswith(door.trailing_data)
    if request.command is Command.CONNECT:
        return
    assert door.head.headers.raw_items() == halves.head.headers.raw_items()
    sent = h11.Connection(h11.CLIENT).send(door.head)
    server = h11.Connection(h11.SERVER)
    server.receive_data(sent or b"")
    read = server.next_event()
    assert isinstance(read, h11.Request)
    assert (read.method, read.target) == (door.head.method, door.head.target)
    names = [name for name, _ in read.headers]
    assert names.count(b"host") == 1
    assert len({b"content-length", b"transfer-encoding"} & {*names}) < 2
    assert not {b"proxy-authorization", b"x-tor-stream-isolation", b"proxy-connection"} & {*names}


def check_dns(packet: bytes) -> None:
    """An answer fits, and repeats the question; a name means the same to all that is asked about it."""
    query = parse_query(packet)
    automap = Automap()
    made_up = automap.addresses_of(query.name)
    assert [automap.name_of(address) for address in made_up] == [query.name.rstrip(".").lower()] * 2
    address = address_of_reverse_name(query.name)
    values: dict[Type, IPv4Address | IPv6Address | str]
    values = {Type.A: made_up[0], Type.AAAA: made_up[1], Type.PTR: query.name}
    found = [] if query.type is None else 50 * [values[query.type]]
    for code in Code:
        answer = encode_answer(query, code, found, ttl=60)
        assert len(answer) <= MAX_ANSWER_LEN
        assert answer[:2] == packet[:2]
        assert answer[12:].startswith(query.question)
    if address is not None:
        assert query.name.lower() == address.reverse_pointer


def check_descriptor(text: bytes) -> None:
    """What was accepted can be met, or is refused by name when it is tried."""
    found = decode_descriptor(
        text,
        blinded=SERVICE.blinded,
        subcredential=SERVICE.subcredential,
        now=SERVICE.now,
        sendme_inc=31,
        client_key=CLIENT_KEY,
    )
    assert len(found.points) <= MAX_POINTS
    assert 0 < found.lifetime <= MAX_LIFETIME
    assert found.sendme_inc in (None, 30, 31, 32)
    for point in found.points:
        try:
            relay = relay_of(point, allow_internal=True)
            keys = {"auth_key": point.auth_key, "enc_key": point.enc_key}
            handshake = HsNtorClient(subcredential=found.subcredential, private_key=b"x" * 32, **keys)
        except CircuitError:
            continue
        assert (len(relay.identity), len(relay.ed25519_identity or b"")) == (20, 32)
        assert len(handshake.seal(introduce_header(point.auth_key), b"where we wait")) == 32 + 13 + 32
    if found.proof_of_work is not None:
        effort = choose_effort(found.proof_of_work.effort, failures=3, maximum=500)
        make_challenge(found.blinded, found.proof_of_work.seed, bytes(16), effort)


def seal_certificate(body: bytes) -> bytes:
    return AUTHORITIES[0].seal_certificate(body)


BASE = nd.consensus(RELAYS, AUTHORITIES)
TARGET = nd.consensus(nd.an_hour_later(RELAYS), AUTHORITIES, valid_after=nd.NOW + HOUR // 2)
COMPRESSED = {
    "deflate": zlib.compress(BASE[:5000]),
    "gzip": gzip.compress(BASE[:5000]) * 2,
    "x-zstd": zstd.compress(BASE[:5000]) * 2,
    "x-tor-lzma": lzma.compress(BASE[:5000], format=lzma.FORMAT_ALONE),
}
SERVICE = Service(*services("plain")[0])
CLIENT_KEY = X25519PrivateKey(b"\1" * 32)
SECOND = (
    b"create2-formats 2\nsingle-onion-service\nflow-control 1-2 31\n"
    b"pow-params v1 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA 10 2030-01-01T00:00:00\n"
    + 2
    * SERVICE.some_point(CLIENT_KEY.public_key).encode()
)
OUTER = SERVICE.descriptor(SECOND)

HTTP = b"""POST http://web.test:80/a?b HTTP/1.1
Host: web.test:80
Content-Length: 3
Connection: keep-alive, X-Mine
X-Mine: 1
Proxy-Authorization: Basic YTpi

abc""".replace(b"\n", b"\r\n")
QUERY = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\x03web\x04test\0" + struct.pack(">HH", 1, 1)
REVERSE = QUERY[:12] + b"\x011\x012\x010\x03192\x07in-addr\x04arpa\0" + struct.pack(">HH", 12, 1)

TARGETS = {
    "consensus-microdesc": Target(BASE, check_consensus),
    "consensus-ns": Target(nd.consensus(RELAYS, AUTHORITIES, flavor="ns"), check_consensus),
    "certificates": Target(AUTHORITIES[0].certificate_body(), parse_certificates, seal_certificate),
    "microdesc": Target(RELAYS[0].microdesc(), check_microdesc),
    "microdescs": Target(
        b"@last-listed 2026-01-01 00:00:00\n" + encode_microdescs(RELAYS[:4]), check_microdescs
    ),
    "server-descriptor": Target(ROUTER.body(ROUTER.items()), parse_server_descriptor, ROUTER.seal),
    "extra-info": Target(ROUTER.body(ROUTER.extra_info_items()), parse_extra_info, ROUTER.seal),
    "diff": Target(consensus_diff(BASE, TARGET), check_diff),
    **{name: Target(body, check_content(name)) for name, body in COMPRESSED.items()},
    "http": Target(HTTP, check_http, refusal=TorkitError),
    "dns": Target(QUERY, check_dns, refusal=PeerError),
    "dns-reverse": Target(REVERSE, check_dns, refusal=PeerError),
    "descriptor": Target(OUTER[: OUTER.rindex(b"signature ")], check_descriptor, SERVICE.signed, TorkitError),
    "descriptor-first": Target(SERVICE.first(SECOND).encode(), check_descriptor, SERVICE.outer, TorkitError),
    "descriptor-second": Target(SECOND, check_descriptor, SERVICE.descriptor, TorkitError),
    "linked": Target(STORY, check_story),
    "channel": Target(
        CHANNEL_STORY,
        check_channel,
        others=tuple(random_story(Random(seed), 25) for seed in range(6)),
        examples=20,
    ),
    "cells": Target(peers.LINK, peers.check_cells),
    "relay": Target(peers.RELAY[0], peers.check_relay, others=(*peers.RELAY[1:],)),
    "messages": Target(peers.RESOLVED, peers.check_message, refusal=CircuitError, others=peers.MEETINGS),
    "equix": Target(peers.EQUIX, peers.check_equix, examples=20),
    "handshake": Target(peers.HANDSHAKE, peers.check_handshake, refusal=ChannelError),
    "certs": Target(peers.CERTS, peers.check_certs, peers.seal_certs, ChannelError),
    "ed25519-cert": Target(peers.ED25519_CERT, peers.check_ed25519_cert, peers.seal_ed25519, ChannelError),
    "x509": Target(peers.X509, peers.check_x509),
    "vegas": Target(peers.VEGAS, peers.check_vegas),
    "stream-flow": Target(peers.STREAM_FLOW, peers.check_stream_flow),
    "socks": Target(peers.SOCKS5, peers.check_socks, others=(peers.SOCKS4,)),
    "socks-proxy": Target(peers.PROXY, peers.check_socks_client),
}


def run(target: Target, text: bytes) -> bool:
    """Whether the parser accepts this text, sealed. Raises what is a finding."""
    try:
        target.parse(target.seal(text))
    except target.refusal:
        return False
    finally:
        if UNRAISABLE:
            raise UNRAISABLE.pop()
    return True


# What the core's C functions could not raise.
UNRAISABLE: list[BaseException] = []


TOKENS = (
    *(b"", b"0", b"1", b"-1", b"65535", b"65536", b"4294967296", b"9" * 5000, b"\xc2\xb2", b"\xd9\xa1"),
    *(b"\0", b"\r", b"\t", b"\xff", b"\xc3", b"=", b"==", b"A" * 27, b"A" * 43, b"\xc3\xa9" * 30, b"$", b"."),
    *(b"accept", b"reject", b"1-0", b"0-0", b"80,80", b"*:*", b"[::]/0:0", b"Bandwidth=-1", b"Relay=63-64"),
    *(b"-----BEGIN SIGNATURE-----", b"-----END SIGNATURE-----", b"-----BEGIN-----", b"@", b"r", b"m", b"opt"),
    *(
        b"Host:",
        b"host: a",
        b"Content-Length: 4\r",
        b"Transfer-Encoding: chunked\r",
        b"CONNECT",
        b"http://a@b/",
    ),
    *(b"\ndirectory-footer\n", b"\nr ", b"\nonion-key\n", b"\ndirectory-signature ", b"\n\n", b"\n.\n"),
)


def mutate(text: bytes, rng: Random) -> bytes:
    """One change that knows about lines and arguments."""
    lines = text.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(7)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif kind == 2:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind < 5:
        arguments = lines[at].split(b" ")
        arguments[rng.randrange(len(arguments))] = rng.choice(TOKENS)
        lines[at] = b" ".join(arguments)
    else:
        line = bytearray(lines[at])
        place = rng.randrange(len(line) + 1)
        line[place : place + rng.randrange(3)] = rng.choice((bytes([rng.randrange(256)]), rng.choice(TOKENS)))
        lines[at] = bytes(line)
    return b"\n".join(lines)
