"""What is fuzzed: each parser of directory/, with a valid document and what must hold of all it accepts."""

import gzip
import lzma
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import network_docs as nd

from torkit.directory.authorities import parse_certificates
from torkit.directory.compression import decompress
from torkit.directory.consensus import parse_consensus
from torkit.directory.diff import apply_diff
from torkit.directory.directory import Directory
from torkit.directory.extra_info import parse_extra_info
from torkit.directory.microdesc import Microdescs, exit_policies, parse_microdesc, split_microdescs
from torkit.directory.server_descriptor import parse_server_descriptor
from torkit.errors import DocumentError

try:
    from compression import zstd  # type: ignore[import-not-found]  # new in Python 3.14
except ImportError:
    from backports import zstd

AUTHORITIES = nd.authorities(3)
RELAYS = nd.full_size(60)[:12]
ROUTER = nd.Router(1)
LIMIT = 1 << 20  # bytes that a compressed answer may become


@dataclass(frozen=True)
class Target:
    """`seal` makes of changed text what is sent: signed again, so that changes get past the door.

    `parse` raises nothing but DocumentError for what it refuses; AssertionError where it is wrong.
    """

    valid: bytes
    parse: Callable[[bytes], object]
    seal: Callable[[bytes], bytes] = bytes


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


def seal_certificate(body: bytes) -> bytes:
    return AUTHORITIES[0].seal_certificate(body)


BASE = nd.consensus(RELAYS, AUTHORITIES)
TARGET = nd.consensus(nd.an_hour_later(RELAYS), AUTHORITIES, valid_after=nd.NOW + nd.HOUR // 2)
COMPRESSED = {
    "deflate": zlib.compress(BASE[:5000]),
    "gzip": gzip.compress(BASE[:5000]) * 2,
    "x-zstd": zstd.compress(BASE[:5000]) * 2,
    "x-tor-lzma": lzma.compress(BASE[:5000], format=lzma.FORMAT_ALONE),
}

TARGETS = {
    "consensus-microdesc": Target(BASE, check_consensus),
    "consensus-ns": Target(nd.consensus(RELAYS, AUTHORITIES, flavor="ns"), check_consensus),
    "certificates": Target(AUTHORITIES[0].certificate_body(), parse_certificates, seal_certificate),
    "microdesc": Target(RELAYS[0].microdesc(), check_microdesc),
    "microdescs": Target(b"@last-listed 2026-01-01 00:00:00\n" + nd.microdescs(RELAYS[:4]), check_microdescs),
    "server-descriptor": Target(ROUTER.body(ROUTER.items()), parse_server_descriptor, ROUTER.seal),
    "extra-info": Target(ROUTER.body(ROUTER.extra_info_items()), parse_extra_info, ROUTER.seal),
    "diff": Target(nd.consensus_diff(BASE, TARGET), check_diff),
    **{name: Target(body, check_content(name)) for name, body in COMPRESSED.items()},
}


def run(target: Target, text: bytes) -> bool:
    """Whether the parser accepts this text, sealed. Raises what is a finding."""
    try:
        target.parse(target.seal(text))
    except DocumentError:
        return False
    return True


TOKENS = (
    *(b"", b"0", b"1", b"-1", b"65535", b"65536", b"4294967296", b"9" * 5000, b"\xc2\xb2", b"\xd9\xa1"),
    *(b"\0", b"\r", b"\t", b"\xff", b"\xc3", b"=", b"==", b"A" * 27, b"A" * 43, b"\xc3\xa9" * 30, b"$", b"."),
    *(b"accept", b"reject", b"1-0", b"0-0", b"80,80", b"*:*", b"[::]/0:0", b"Bandwidth=-1", b"Relay=63-64"),
    *(b"-----BEGIN SIGNATURE-----", b"-----END SIGNATURE-----", b"-----BEGIN-----", b"@", b"r", b"m", b"opt"),
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
